"""Frames as the model takes them: cut to the aspect, scaled as the reference scales, in [-1, 1].

Shape legend: T frames, H height, W width, C channels (RGB); M output length of one axis, K taps of a filter.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from common.errors import InputError

from .buckets import SizesConfig, cut_to_stride, scaled_size


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, frames_THWC: np.ndarray) -> np.ndarray:
        """The frames inside it."""
        rows = slice(self.top, self.top + self.height)
        return frames_THWC[:, rows, self.left : self.left + self.width]


class Fit(NamedTuple):
    """How frames come to their training size: cut, scaled to (height, width), cut again."""

    before: Box
    scaled: tuple[int, int]
    after: Box

    def __call__(self, frames_THWC: np.ndarray) -> np.ndarray:
        """The frames in their training size, float32, still in [0, 255]."""
        return self.after.cut(resize(self.before.cut(frames_THWC), *self.scaled))


def fit_of(config: SizesConfig, height: int, width: int) -> Fit:
    """The way from this size to the training size."""
    if config.height is not None and config.width is not None:
        return fit_to_size(height, width, config.height, config.width)
    h, w = (int(side) for side in scaled_size(config, height, width))
    return Fit(Box(0, 0, height, width), (h, w), stride_box(h, w, config.hw_stride))


def fit_to_size(height: int, width: int, target_height: int, target_width: int) -> Fit:
    """Cut to the target's aspect, then scale."""
    target = target_height, target_width
    return Fit(aspect_box(height, width, *target), target, Box(0, 0, *target))


def aspect_box(height: int, width: int, target_height: int, target_width: int, top: bool = False) -> Box:
    """The largest box of the target's aspect in the middle, or at the top."""
    aspect = target_height / target_width
    if height / width > aspect:
        h, w = int(width * aspect), width
    else:
        h, w = height, int(height / aspect)
    return Box(0 if top else round((height - h) / 2), round((width - w) / 2), h, w)


def stride_box(height: int, width: int, stride: int) -> Box:
    """The largest box with sides that are multiples of `stride`, in the middle."""
    h, w = cut_to_stride(height, width, stride)
    return Box((height - h) // 2, (width - w) // 2, h, w)


def resize(frames_THWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Frames of another size as float32, antialiased; values keep their range.

    The rule is torch's bilinear interpolation with both antialias and align_corners set, as the released
    models were trained with.
    """
    if not frames_THWC.size or min(height, width) < 1:
        raise InputError(f"resize: got {frames_THWC.shape} to {height}x{width}, wanted at least one pixel")
    return np.stack([_resize_axis(_resize_axis(f, height, 0), width, 1) for f in frames_THWC])


def _resize_axis(frame: np.ndarray, length: int, axis: int) -> np.ndarray:
    if frame.shape[axis] == length:
        return frame.astype(np.float32, copy=False)
    places_KM, weights_KM = _filter(frame.shape[axis], length)
    shape = [1] * frame.ndim
    shape[axis] = length
    total = np.float32(0)
    for places_M, weights_M in zip(places_KM, weights_KM):
        total = total + frame.take(places_M, axis) * weights_M.reshape(shape)
    return np.asarray(total)


@lru_cache(maxsize=64)
def _filter(length: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """For every output of an axis the inputs it mixes, and their weights: a triangle around its centre.

    In float32, as in torch: the places themselves are rounded, and the weights with them.
    """
    scale = np.float32(length - 1) / np.float32(max(target - 1, 1))
    reach = max(scale, np.float32(1))
    half = np.float32(0.5)
    centre_1M = scale * (np.arange(target, dtype=np.float32) + half)[None]
    first_1M = np.floor(centre_1M - reach - half).astype(np.int64)
    places_KM = first_1M + np.arange(2 * int(np.ceil(reach)) + 3)[:, None]
    weights_KM = np.maximum(0, 1 - np.abs(places_KM.astype(np.float32) + half - centre_1M) / reach)
    weights_KM[(places_KM < 0) | (places_KM >= length)] = 0
    weights_KM /= weights_KM.sum(0)
    used = weights_KM.any(1)
    return places_KM[used].clip(0, length - 1), weights_KM[used].astype(np.float32)
