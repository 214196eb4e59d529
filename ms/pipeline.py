"""Text and images to video: prepare what is given, denoise latents by a sampler's table, decode.

Noise is drawn in NumPy and handed in, and every coefficient comes from the table, so both trees make the same
video.

Shapes: B videos denoised together, G = 2B under guidance (unconditional first) else B; C channels, T frames,
H height, W width of the latents; L text tokens, R table rows.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from mindspore import Tensor, nn

from common.conditions import grid_inputs
from common.errors import InputError, NotFiniteError
from common.guidance import Guidance
from common.masks import Condition
from common.noise import index_of, normal
from common.rope import timestep_features
from common.samplers import SamplerTable

from . import ops, runtime
from .kernels import kernel
from .posterior import from_latent
from .transformer import ConditionProjection, TextProjection, Transformer
from .vae import WFVAE

NUM_SCALARS = 7  # columns of a step's row before the weights of past predictions


class Step(NamedTuple):
    """What a callback sees after each model evaluation."""

    index: int
    num_steps: int
    timestep: float
    latent_BCTHW: Tensor
    output_GCTHW: Tensor  # the transformer's raw output, before guidance


class Denoiser(nn.Cell):
    """One row of a sampler's table as one graph: model, guidance, multiply-adds."""

    def __init__(self, transformer: Transformer, guidance: Guidance, num_past: int):
        super().__init__(auto_prefix=False)
        self.transformer = transformer
        self.guided = guidance.on
        self.guidance_scale = guidance.scale
        self.guidance_rescale = guidance.rescale
        self.num_past = num_past
        self.std = kernel("std")

    def construct(
        self,
        x_BCTHW: Tensor,
        anchor_BCTHW: Tensor,
        past: tuple,
        noise_BCTHW: Tensor,
        row: Tensor,
        features_GF: Tensor,
        text_kv: tuple,
        keep_text_G11L: Tensor | None,
        cos_S13P: Tensor,
        sin_S13P: Tensor,
        keep_video: tuple | None,
        condition_sGE: Tensor | None,
    ) -> tuple:
        """(next latents, anchor, remembered predictions, raw output); row holds one row of the table in
        float32.
        """
        model_input = ops.cast_like(row[0] * x_BCTHW, text_kv[0])
        if self.guided:
            model_input = ops.cat((model_input, model_input), 0)
        output_GCTHW = ops.to_float32(
            self.transformer(
                model_input,
                features_GF,
                text_kv,
                keep_text_G11L,
                cos_S13P,
                sin_S13P,
                keep_video,
                condition_sGE,
            )
        )
        output_BCTHW = self.guide(output_GCTHW) if self.guided else output_GCTHW

        anchor_BCTHW = row[6] * x_BCTHW + (1.0 - row[6]) * anchor_BCTHW
        past = (row[1] * x_BCTHW + row[2] * output_BCTHW, *past)
        next_BCTHW = row[3] * x_BCTHW + row[4] * anchor_BCTHW + row[5] * noise_BCTHW
        for i in range(self.num_past):
            next_BCTHW = next_BCTHW + row[NUM_SCALARS + i] * past[i]
        return next_BCTHW, anchor_BCTHW, past[: self.num_past - 1], output_GCTHW

    def guide(self, output_GCTHW: Tensor) -> Tensor:
        """Classifier-free guidance (arXiv:2207.12598), rescaled against over-exposure (arXiv:2305.08891,
        section 3.4).
        """
        empty, text = ops.chunk(output_GCTHW, 2, 0)
        guided = empty + self.guidance_scale * (text - empty)
        if self.guidance_rescale == 0.0:
            return guided
        calmed = guided * (self.std(text) / self.std(guided))
        return self.guidance_rescale * calmed + (1.0 - self.guidance_rescale) * guided


def table_rows(table: SamplerTable) -> np.ndarray:
    """The table as float32 rows for `Denoiser`: input scale, prediction, sample, anchor, noise, set anchor,
    past.
    """
    scalars = (
        table.input_scale_R,
        table.pred_sample_R,
        table.pred_output_R,
        table.sample_R,
        table.anchor_R,
        table.noise_R,
        table.set_anchor_R,
    )
    assert len(scalars) == NUM_SCALARS
    return np.concatenate([np.stack(scalars, axis=1), table.past_RH], axis=1).astype(np.float32)


def seeded_noise(shape: tuple, seeds: list[int], window: int = 0) -> Callable[[int], np.ndarray]:
    """Noise (B,C,T,H,W) by draw index, video b from seeds[b] alone: how videos are batched does not change
    them.

    Args:
        window: of a video that is made in several, each with noise of its own.
    """

    def draw(index: int) -> np.ndarray:
        stream = index_of(f"window {window} draw {index}") if window else index
        return np.stack([normal(shape[1:], seed, stream) for seed in seeds])

    return draw


class LatentSampler:
    """Draws latents by a sampler's table. What is compiled for one batch serves the next of the same shape.

    Args:
        dtype: of the transformer's parameters.
    """

    def __init__(
        self,
        transformer: Transformer,
        table: SamplerTable,
        guidance: Guidance,
        dtype: str = "float32",
    ):
        self.table = table
        self.device = runtime.device_of(transformer)
        self.dtype = dtype
        self.config = transformer.config
        self.guided = guidance.on
        self.num_past = table.past_RH.shape[1]
        self.denoiser = Denoiser(transformer, guidance, self.num_past)
        self.text_projection = TextProjection(transformer)
        self.takes_condition = transformer.takes_condition
        if self.takes_condition:
            self.condition_projection = ConditionProjection(transformer)

    def __call__(
        self,
        text_GLC: np.ndarray,
        keep_text_GL: np.ndarray | None,
        latent_shape: tuple,
        noise: Callable[[int], np.ndarray],
        callback: Callable[[Step], None] | None = None,
        condition: Condition | None = None,
    ) -> Tensor:
        """Latents (B,C,T,H,W) float32.

        Args:
            text_GLC, keep_text_GL: text states and mask, as `trim_text` gives them for all prompts of a run;
                under guidance the B unconditional rows stand before the B prompts.
            latent_shape: (B, C, T, H, W).
            noise: draw 0 is the initial noise, draw r + 1 belongs to row r; rows without noise ask for none.
            callback: called after every model evaluation.
            condition: what an image-to-video model is shown of the B videos.

        Raises:
            NotFiniteError: after the first step whose latents are not finite.
        """
        G = latent_shape[0] * (2 if self.guided else 1)
        if len(text_GLC) != G:
            raise InputError(
                f"sampler: got {len(text_GLC)} rows of text, wanted {G} for {latent_shape[0]} videos"
            )
        if self.takes_condition != (condition is not None):
            raise InputError(
                f"sampler: got {'no ' if condition is None else ''}condition for a model that takes "
                f"{'one' if self.takes_condition else 'none'}; frames that are not given are masked"
            )
        rows, features = table_rows(self.table), timestep_features(self.table.timesteps_R)
        with runtime.inference():
            conditions = self.conditions(text_GLC, keep_text_GL, latent_shape[2:], condition)
            x = self.on_device((self.table.init_noise_sigma * noise(0)).astype(np.float32))
            still = self.on_device(np.zeros(latent_shape, np.float32))
            anchor, past = still, (still,) * (self.num_past - 1)
            for r in range(len(self.table)):
                fresh = self.on_device(noise(r + 1)) if self.table.draws_noise_R[r] else still
                row, features_GF = self.on_device(rows[r]), np.repeat(features[r : r + 1], G, axis=0)
                x, anchor, past, output = self.denoiser(
                    x, anchor, runtime.varying(past), fresh, row, self.on_device(features_GF), *conditions
                )
                self.check_finite(x, r)
                if callback is not None:
                    callback(Step(r, len(self.table), float(self.table.timesteps_R[r]), x, output))
        return x

    def check_finite(self, x_BCTHW: Tensor, row: int) -> None:
        """Stop where going on is useless; the latents are small beside a step, so they are fetched for it."""
        finite_B = np.isfinite(runtime.to_numpy(x_BCTHW)).all(axis=(1, 2, 3, 4))
        if not finite_B.all():
            raise NotFiniteError(
                f"sampler: after step {row + 1} of {len(self.table)} (timestep "
                f"{self.table.timesteps_R[row]:g}) the latents are not finite, with dtype {self.dtype}",
                tuple(np.flatnonzero(~finite_B).tolist()),
            )

    def conditions(
        self,
        text_GLC: np.ndarray,
        keep_text_GL: np.ndarray | None,
        latent_thw: tuple,
        condition: Condition | None = None,
    ) -> tuple:
        """What every step shares: text keys and values, text mask, rotary tables, video masks, and what is
        given of the videos.
        """
        grid = grid_inputs(self.config, latent_thw, len(text_GLC), None, self.dtype)
        text_kv = runtime.varying(self.text_projection(self.on_device(text_GLC, self.dtype)))
        masks = grid.keep_video and runtime.varying(tuple(self.on_device(mask) for mask in grid.keep_video))
        keep_text = None if keep_text_GL is None else self.on_device(keep_text_GL[:, None, None, :])
        tables = self.on_device(grid.cos_S13P), self.on_device(grid.sin_S13P)
        return text_kv, keep_text, *tables, masks, self.project(condition)

    def project(self, condition: Condition | None) -> Tensor | None:
        """What is added to the tokens of G videos: under guidance both halves are shown the same."""
        if condition is None:
            return None
        patches_SBF = condition.patches(self.config)
        if self.guided:
            patches_SBF = np.concatenate([patches_SBF, patches_SBF], axis=1)
        return self.condition_projection(self.on_device(patches_SBF, self.dtype))

    def on_device(self, array: np.ndarray, dtype: str | None = None) -> Tensor:
        """An array beside the transformer."""
        return runtime.to_tensor(array, self.device, dtype)


def encode(vae: WFVAE, x_BCTHW: np.ndarray, chunk_frames: int = 0) -> np.ndarray:
    """Moments (B,2Z,T',H/8,W/8) float32 of pixels in [-1, 1]; chunk_frames as in WFVAE.encode."""
    with runtime.inference():
        x = ops.cast_like(runtime.to_tensor(x_BCTHW, runtime.device_of(vae)), vae.decoder.conv_out.weight)
        return runtime.to_numpy(vae.encode(x, chunk_frames)).astype(np.float32)


def decode(vae: WFVAE, latent_BCTHW: Tensor, chunk_frames: int = 0) -> np.ndarray:
    """Pixels (B,3,T,H,W) float32, about [-1, 1], of the transformer's latents; chunk_frames as in
    WFVAE.decode.
    """
    device, channels = runtime.device_of(vae), vae.config.latent_dim
    scale, shift = (
        runtime.to_tensor(np.broadcast_to(np.asarray(values, np.float32), (channels,)).copy(), device)
        for values in (vae.config.scale, vae.config.shift)
    )
    with runtime.inference():
        z = ops.cast_like(from_latent(latent_BCTHW, scale, shift), vae.decoder.conv_out.weight)
        return runtime.to_numpy(vae.decode(z, chunk_frames))
