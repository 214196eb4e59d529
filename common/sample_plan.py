"""What a sampling run makes, before a model is loaded: sizes, windows, and what is given of each video."""

import math
from typing import NamedTuple

import numpy as np

from .data.buckets import Bucket
from .given import check_given, read_given
from .models import TransformerConfig, VAEConfig
from .runs import SampleConfig, latent_size
from .sharing import check_tokens
from .trained_size import trained_frames, warnings_of
from .windows import Window, plan_windows


class VideoPlan(NamedTuple):
    """One entry for each prompt, but for the windows, which all share."""

    windows: list[Window]
    sizes: list[tuple[int, int]]  # height and width
    frames: list[np.ndarray]  # given ones, uint8 (N,H,W,3)
    indices: list[tuple[int, ...]]  # and their places in the video
    warnings: list[str]


def plan_videos(
    config: SampleConfig, num_prompts: int, vae: VAEConfig, transformer: TransformerConfig
) -> VideoPlan:
    """
    Raises:
        ValueError: what is given cannot be read or does not fit the model, or a size that cannot be made.
    """
    given = read_given(config, num_prompts, config.num_frames)
    check_given(given, transformer)
    window, overlap = config.num_frames, 0
    if transformer.mask_channels:
        window = config.window_frames or max(1, trained_frames(transformer, vae))
        overlap = config.overlap_frames or _quarter(window)
    windows = plan_windows(config.num_frames, window, overlap)
    sizes = [entry.size(config.max_hxw, config.height, config.width) for entry in given]
    found = []
    for height, width in dict.fromkeys(sizes):
        size = Bucket(windows[0].num_frames, height, width)
        num_tokens = math.prod(latent_size(size, vae, transformer)) // transformer.patch_size**2
        check_tokens(config.parallel.sequence, transformer, num_tokens)
        found += warnings_of(transformer, vae, *size)
    frames = [entry.fitted(config.max_hxw, *size) for entry, size in zip(given, sizes, strict=True)]
    return VideoPlan(windows, sizes, frames, [entry.indices for entry in given], found)


def _quarter(window: int) -> int:
    """About a quarter of a window, in whole latent frames."""
    return max(1, round((window - 1) / 16) * 4 + 1) if window > 1 else 0
