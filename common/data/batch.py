"""Clips of a batch in one array.

Shape legend: B batch, C channels, T frames, H height, W width.
"""

from collections.abc import Sequence

import numpy as np

from common.errors import InputError

from .buckets import TOKEN, VAE_STRIDE, Bucket, latent_length, rounded_up


def stack(clips: Sequence[np.ndarray]) -> np.ndarray:
    """Clips (C, T, H, W) of one size as x_BCTHW.

    Raises:
        InputError: sizes differ, or do not cut into tokens.
    """
    shapes = {clip.shape for clip in clips}
    _, _, H, W = clips[0].shape
    if len(shapes) > 1 or H % TOKEN or W % TOKEN:
        raise InputError(
            f"batch: got clips of {sorted(shapes)}, wanted one size in multiples of {TOKEN} pixels; "
            "group them by size, or pad them"
        )
    return np.stack(clips)


def pad(clips: Sequence[np.ndarray], size: Bucket) -> tuple[np.ndarray, np.ndarray]:
    """Clips filled up with zeros at the end of each axis, and which latent cells hold video.

    Returns:
        x_BCTHW of `size` (height and width rounded up to whole tokens), and keep_BTHW of latent cells.
    """
    height, width = rounded_up(size.height, TOKEN), rounded_up(size.width, TOKEN)
    _, down, across = VAE_STRIDE
    x_BCTHW = np.zeros((len(clips), 3, size.num_frames, height, width), clips[0].dtype)
    cells = latent_length(size.num_frames), height // down, width // across
    keep_BTHW = np.zeros((len(clips), *cells), bool)
    for clip, x_CTHW, keep_THW in zip(clips, x_BCTHW, keep_BTHW):
        _, T, H, W = clip.shape
        x_CTHW[:, :T, :H, :W] = clip
        keep_THW[: latent_length(T), : -(-H // down), : -(-W // across)] = True
    return x_BCTHW, keep_BTHW
