"""How a clip is cut in time and space for a VAE that cannot hold it whole, and how the parts are joined.

Lengths are positions along one axis: pixels on the pixel side of the VAE, cells on its latent side. In time,
n latent frames stand for stride * (n - 1) + 1 pixel frames.

Shapes: B batch, C channels, T frames, H height, W width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pydantic import NonNegativeInt, model_validator

from .config import Config
from .errors import InputError


class TilingConfig(Config):
    """The size of the parts, in latent cells (of OD-VAE: 4 frames, 8x8 pixels).

    The defaults are those of the reference's decoder; of its encoder: `window_frames=10, tile_size=0`.
    """

    window_frames: NonNegativeInt = 6  # latent frames coded together; 0: all of them
    overlap_frames: int = 2  # of those, given by the window before: context, dropped from the result
    tile_size: NonNegativeInt = 64  # latent rows and columns coded together; 0: all of them
    overlap_size: NonNegativeInt = 8  # of those, shared with the next tile and blended

    @model_validator(mode="after")
    def _check(self) -> "TilingConfig":
        if self.window_frames and not 1 <= self.overlap_frames < self.window_frames:
            raise InputError(
                f"overlap_frames is {self.overlap_frames} and window_frames {self.window_frames}; overlap "
                "must be at least 1 and less than the window (window_frames 0 keeps all frames together)"
            )
        if self.tile_size and 2 * self.overlap_size > self.tile_size:
            raise InputError(
                f"overlap_size is {self.overlap_size}; it must be at most half of tile_size {self.tile_size}"
            )
        return self


@dataclass(frozen=True)
class Span:
    """One part along one axis: what the coder reads, and what of its result is kept.

    Before that, result[i] becomes fade[i] * result[i] + (1 - fade[i]) * rest[i], where rest is what the part
    before returned beyond its own keep.stop. Where fade is empty nothing is blended.
    """

    read: slice
    keep: slice
    fade: tuple[float, ...] = ()


@dataclass(frozen=True)
class TilePlan:
    """The parts along time, height and width; every combination of three is one call of the coder."""

    time: tuple[Span, ...]
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]


def encode_plan(latent_thw: tuple, stride_thw: tuple, tiling: TilingConfig) -> TilePlan:
    """Parts of a clip in pixels whose results are latents."""
    (T, H, W), (stride_t, stride_h, stride_w) = latent_thw, stride_thw
    return TilePlan(
        time_spans(T, tiling, stride_t, 1),
        space_spans(H, tiling, stride_h, 1),
        space_spans(W, tiling, stride_w, 1),
    )


def decode_plan(latent_thw: tuple, stride_thw: tuple, tiling: TilingConfig) -> TilePlan:
    """Parts of latents whose results are pixels."""
    (T, H, W), (stride_t, stride_h, stride_w) = latent_thw, stride_thw
    return TilePlan(
        time_spans(T, tiling, 1, stride_t),
        space_spans(H, tiling, 1, stride_h),
        space_spans(W, tiling, 1, stride_w),
    )


def time_spans(latent_frames: int, tiling: TilingConfig, stride_in: int, stride_out: int) -> tuple[Span, ...]:
    """Windows until one reaches the end; all but the first drop the frames of their overlap."""
    size = tiling.window_frames or latent_frames
    step = size - tiling.overlap_frames
    spans, start, stop = [], 0, 0
    while stop < latent_frames:
        stop = min(start + size, latent_frames)
        dropped = tiling.overlap_frames if start else 0
        read = slice(start * stride_in, (stop - 1) * stride_in + 1)
        keep = slice(causal_frames(dropped, stride_out), causal_frames(stop - start, stride_out))
        spans.append(Span(read, keep))
        start += step
    return tuple(spans)


def causal_frames(latent_frames: int, stride: int) -> int:
    """Frames that the first latent frames of a clip stand for; the first one holds a single frame."""
    return stride * (latent_frames - 1) + 1 if latent_frames else 0


def space_spans(latent_size: int, tiling: TilingConfig, stride_in: int, stride_out: int) -> tuple[Span, ...]:
    """Tiles at the multiples of tile_size - overlap_size, each fading in over what the one before shares.

    The last may lie wholly in the overlap, as in the reference. An axis that fits in one tile is not cut.
    """
    size = tiling.tile_size
    if size == 0 or latent_size <= size:
        return (Span(slice(0, latent_size * stride_in), slice(0, latent_size * stride_out)),)
    step = size - tiling.overlap_size
    spans = []
    for start in range(0, latent_size, step):
        stop = min(start + size, latent_size)
        shared = (min(tiling.overlap_size, stop - start) if start else 0) * stride_out
        read = slice(start * stride_in, stop * stride_in)
        keep = slice(0, min(step, stop - start) * stride_out)
        spans.append(Span(read, keep, tuple(i / shared for i in range(shared))))
    return tuple(spans)


def run_plan(coder: Callable[[np.ndarray], np.ndarray], x_BCTHW: np.ndarray, plan: TilePlan) -> np.ndarray:
    """Code the parts of a clip and join what is kept of them."""
    return np.concatenate([_run_window(coder, x_BCTHW, window, plan) for window in plan.time], axis=2)


def _run_window(coder: Callable, x_BCTHW: np.ndarray, window: Span, plan: TilePlan) -> np.ndarray:
    """A tile fades in from the one above, then from the one on its left, both as they are after their own
    fading: in the corners, where four tiles meet, this order decides.
    """
    bands, above = [], []
    for row in plan.rows:
        tiles, kept = [], []
        for i, column in enumerate(plan.columns):
            tile = coder(x_BCTHW[:, :, window.read, row.read, column.read])[:, :, window.keep].copy()
            if row.fade:
                _fade_in(tile, above[i], row.fade, 3)
            if column.fade:
                _fade_in(tile, tiles[-1], column.fade, 4)
            tiles.append(tile)
            kept.append(tile[:, :, :, row.keep, column.keep])
        bands.append(np.concatenate(kept, axis=4))
        above = tiles
    return np.concatenate(bands, axis=3)


def _fade_in(tile: np.ndarray, before: np.ndarray, fade: tuple[float, ...], axis: int) -> None:
    """Mix the end of the part before into the start of `tile`, in place."""
    weights, shared = np.array(fade, tile.dtype), len(fade)
    start = np.moveaxis(tile, axis, -1)[..., :shared]
    start[...] = start * weights + np.moveaxis(before, axis, -1)[..., -shared:] * (1 - weights)
