"""The denoiser's loss: squared error of its prediction, weighted per sample, over the cells that hold video.

Shapes: B batch, C channels, T frames, H height, W width (latent cells).
"""

from torch import Tensor, nn

from . import ops
from .transformer import TextProjection, Transformer


class DiffusionLoss(nn.Module):
    """Mean over the kept cells of weight * (prediction - target)^2."""

    terms = ("loss",)

    def __init__(self, transformer: Transformer):
        super().__init__()
        self.transformer = transformer
        self.text_projection = TextProjection(transformer)

    def forward(
        self,
        latent_BCTHW: Tensor,
        noise_BCTHW: Tensor,
        mixture_5B: Tensor,
        keep_BTHW: Tensor | None,
        features_BF: Tensor,
        text_BLC: Tensor,
        keep_text_B11L: Tensor | None,
        cos_S13P: Tensor,
        sin_S13P: Tensor,
        keep_video: tuple | None,
        scale: Tensor,
    ) -> tuple:
        """(scale * loss, terms, prediction).

        Args:
            mixture_5B: rows of common.diffusion.Mixture.
            keep_BTHW: 1 where a cell counts; None when all do.
            scale: what the loss is multiplied with, so that half-precision gradients do not vanish.
        """
        signal, share, target_signal, target_noise, weight = ops.unstack(mixture_5B, 0)
        noisy = per_sample(signal) * latent_BCTHW + per_sample(share) * noise_BCTHW
        target = per_sample(target_signal) * latent_BCTHW + per_sample(target_noise) * noise_BCTHW
        x_BCTHW = ops.cast_like(noisy, text_BLC)
        text_kv = self.text_projection(text_BLC)
        prediction = self.transformer(
            x_BCTHW, features_BF, text_kv, keep_text_B11L, cos_S13P, sin_S13P, keep_video
        )
        error = ops.to_float32(prediction) - target
        error_BTHW = (per_sample(weight) * error * error).mean(1)
        if keep_BTHW is None:
            loss = error_BTHW.mean()
        else:
            loss = (error_BTHW * keep_BTHW).sum() / keep_BTHW.sum()
        return scale * loss, ops.stack([ops.detach(loss)], 0), prediction

    def after(self, rest: tuple, finite: Tensor) -> None:
        """Nothing but parameters changes."""


def per_sample(x_B: Tensor) -> Tensor:
    """Shape (B) as (B,1,1,1,1)."""
    return x_B.reshape(-1, 1, 1, 1, 1)
