"""The denoiser's loss: squared error of its prediction, weighted per sample, over the cells that hold video.

Shapes: S video tokens (padded) in native order, B batch, F values of a patch ("(p q c)").
"""

from torch import Tensor, nn

from . import ops, runtime
from .transformer import ConditionProjection, TextProjection, Transformer


class DiffusionLoss(nn.Module):
    """Mean over the kept cells of weight * (prediction - target)^2."""

    terms = ("loss",)

    def __init__(self, transformer: Transformer, dtype: str = "float32"):
        """
        Args:
            dtype: of activations.
        """
        super().__init__()
        self.transformer = transformer
        self.dtype = runtime.DTYPES[dtype]
        self.text_projection = TextProjection(transformer)
        if transformer.takes_condition:
            self.condition_projection = ConditionProjection(transformer)

    def forward(
        self,
        latent_SBF: Tensor,
        noise_SBF: Tensor,
        share_SBF: Tensor,
        mixture_5B: Tensor,
        features_BF: Tensor,
        text_BLC: Tensor,
        keep_text_B11L: Tensor | None,
        cos_S13P: Tensor,
        sin_S13P: Tensor,
        keep_video: tuple | None,
        condition_SBF: Tensor | None,
        scale: Tensor,
    ) -> tuple:
        """(scale * loss, terms, prediction).

        Args:
            share_SBF: what each value counts in the mean: they add up to 1, padding has 0; (S,1,1) where
                all samples are whole.
            mixture_5B: rows of common.diffusion.Mixture.
            condition_SBF: patches of common.masks.Condition; None for a text-to-video model.
            scale: what the loss is multiplied with, so that half-precision gradients do not vanish.
        """
        sequence = self.transformer.sequence
        signal, noise, target_signal, target_noise, weight = ops.unstack(mixture_5B, 0)
        noisy = per_sample(signal) * latent_SBF + per_sample(noise) * noise_SBF
        target = per_sample(target_signal) * latent_SBF + per_sample(target_noise) * noise_SBF
        x_SBF = ops.to_dtype(noisy, self.dtype)
        text_kv = self.text_projection(ops.to_dtype(text_BLC, self.dtype))
        condition_sBE = None
        if condition_SBF is not None:
            condition_sBE = self.condition_projection(ops.to_dtype(condition_SBF, self.dtype))
        prediction = self.transformer.denoise(
            x_SBF, features_BF, text_kv, keep_text_B11L, cos_S13P, sin_S13P, keep_video, condition_sBE
        )
        error = ops.to_float32(prediction) - sequence.share(target)
        # the mean over ranks follows: those that share a sequence add up to it
        loss = sequence.size * (per_sample(weight) * sequence.share(share_SBF) * error * error).sum()
        return scale * loss, ops.stack([ops.detach(loss)], 0), prediction

    def after(self, rest: tuple, finite: Tensor) -> None:
        """Nothing but parameters changes."""


def per_sample(x_B: Tensor) -> Tensor:
    """Shape (B) as (1,B,1)."""
    return x_B.reshape(1, -1, 1)
