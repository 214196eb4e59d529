"""Videos of any length, with frames that are given: what is known of a window is encoded, the rest denoised,
all decoded, and the last frames are known to the next window.

Shapes: B videos, C channels, T frames, H height, W width; N given frames.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np

from common.cli import Stopwatch
from common.given import Given, check_given
from common.latents import draw_latents
from common.masks import Condition, add_noise, compress_mask, generate_mask
from common.noise import index_of, normal
from common.windows import Window, joined, window_pixels

from . import runtime
from .pipeline import LatentSampler, Step, decode, encode, seeded_noise
from .vae import WFVAE


class Made(NamedTuple):
    """Videos of a batch."""

    pixels_BCTHW: np.ndarray | None  # float32, about [-1, 1]; whole for the writer only
    latents: list[np.ndarray]  # (B,C,T,H,W) of each window


class VideoMaker:
    """Makes the videos of a batch, window by window.

    Args:
        chunk_frames: latent frames that go through the VAE at a time after the first; 0: all.
        noise_strength: standard deviation of noise on what is given.
        at_work: a context in which the VAE may be used.
        is_writer: others that share the sequence decode only what the next window needs.
    """

    def __init__(
        self,
        sampler: LatentSampler,
        vae: WFVAE,
        watch: Stopwatch,
        chunk_frames: int = 0,
        noise_strength: float = 0.0,
        at_work: Callable[[], AbstractContextManager] = nullcontext,
        is_writer: bool = True,
    ):
        self.sampler, self.vae, self.watch = sampler, vae, watch
        self.chunk_frames, self.noise_strength, self.at_work = chunk_frames, noise_strength, at_work
        self.is_writer = is_writer

    def __call__(
        self,
        text: tuple,
        windows: Sequence[Window],
        given: Sequence[Given],
        seeds: list[int],
        callback: Callable[[Step], None] | None = None,
    ) -> Made:
        """Denoise, and decode, each window in turn.

        Args:
            text: states and mask, as LatentSampler takes them.
            given: what is given of each video; all have one size.
            seeds: of each video; they alone decide its noise.

        Raises:
            InputError: frames are given to a text-to-video model.
        """
        check_given(given, self.sampler.config)
        states, keep_text = text
        made, latents = None, []
        for number, window in enumerate(windows):
            condition = None
            if self.sampler.takes_condition:
                x_BCTHW, given_BT = window_pixels(window, given, made)
                with self.watch.stage("condition"), self.at_work():
                    condition = self.condition(x_BCTHW, given_BT, seeds, number)
            shape = self.latent_shape(len(seeds), window.num_frames, given[0].size)
            noise = seeded_noise(shape, seeds, number)
            with self.watch.stage("denoise"):
                latent = self.sampler(states, keep_text, shape, noise, callback, condition)
            latents.append(runtime.to_numpy(latent))
            if self.is_writer or window is not windows[-1]:
                with self.watch.stage("decode"), self.at_work():
                    made = joined(made, window, decode(self.vae, latent, self.chunk_frames))
        return Made(made, latents)

    def latent_shape(self, batch: int, num_frames: int, size: tuple[int, int]) -> tuple:
        """(B,C,T,H,W) of the latents of a window."""
        stride_t, stride_h, stride_w = self.vae.config.stride_thw
        frames = (num_frames - 1) // stride_t + 1
        return batch, self.sampler.config.in_channels, frames, size[0] // stride_h, size[1] // stride_w

    def condition(
        self, x_BCTHW: np.ndarray, given_BT: np.ndarray, seeds: list[int], window: int
    ) -> Condition:
        """What the model is shown: pixels with nothing in the frames that it has to make."""
        generate_B1THW = generate_mask(given_BT, None, *x_BCTHW.shape[3:])
        if self.noise_strength:
            noise = draw(x_BCTHW.shape[1:], seeds, f"noise on what is given, window {window}")
            sigma = np.full(len(seeds), self.noise_strength, np.float32)
            x_BCTHW = add_noise(x_BCTHW, generate_B1THW, noise, sigma)
        stride = self.vae.config.stride_thw
        moments_BZTHW = encode(self.vae, x_BCTHW, self.chunk_frames * stride[0])
        B, two_Z, T, H, W = moments_BZTHW.shape
        noise = draw((two_Z // 2, T, H, W), seeds, f"posterior of what is given, window {window}")
        latent = draw_latents(moments_BZTHW, noise, self.vae.config)
        return Condition(latent, compress_mask(generate_B1THW, stride))


def draw(shape: tuple, seeds: list[int], kind: str) -> np.ndarray:
    """Normal noise (B, *shape), video b from seeds[b] alone."""
    return np.stack([normal(shape, seed, index_of(kind)) for seed in seeds])
