"""Videos longer than a model takes: windows that overlap, each beginning where the one before ends.

Shapes: B videos, C channels, T frames, H height, W width of pixels.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .errors import InputError
from .given import Given
from .images import to_model
from .masks import MASKED

JUMP = 2.0  # times the usual change from frame to frame
LEVEL = 1.0  # grey levels; a smaller change is not seen


class Window(NamedTuple):
    """A stretch of the video that is made at once."""

    start: int
    num_frames: int
    num_known: int  # its first frames, made by the window before

    @property
    def stop(self) -> int:
        return self.start + self.num_frames


class Join(NamedTuple):
    """How a video changes at the first new frame of a window, in grey levels of 255."""

    frame: int
    brightness: float  # change of the mean
    motion: float  # mean change of a pixel
    usual_brightness: float  # nine in ten other frames change less
    usual_motion: tuple[float, float]  # one in ten changes less, and nine in ten do

    @property
    def jumps(self) -> bool:
        """Whether brightness or place jumps, or motion stops, more than anyone would overlook."""
        least, most = self.usual_motion
        return (
            self.brightness > JUMP * self.usual_brightness + LEVEL
            or self.motion > JUMP * most + LEVEL
            or self.motion < (least - LEVEL) / JUMP
        )


def plan_windows(num_frames: int, window: int, overlap: int) -> list[Window]:
    """Windows that cover the video, each with `overlap` known frames; the last ends with the video and makes
    some frames of the one before anew.

    Raises:
        InputError: the overlap leaves nothing new.
    """
    if num_frames <= window:
        return [Window(0, num_frames, 0)]
    if not 0 < overlap < window:
        raise InputError(
            f"overlap_frames: got {overlap}, wanted 1 to {window - 1} of {window} (window_frames)"
        )
    found = [Window(0, window, 0)]
    while found[-1].stop < num_frames:
        start = min(found[-1].stop - overlap, num_frames - window)
        found.append(Window(start, window, overlap))
    return found


def joined(so_far_BCTHW: np.ndarray | None, window: Window, pixels_BCTHW: np.ndarray) -> np.ndarray:
    """The videos with the new frames of a window."""
    if so_far_BCTHW is None:
        return pixels_BCTHW
    known = so_far_BCTHW[:, :, : window.start + window.num_known]
    return np.concatenate([known, pixels_BCTHW[:, :, window.num_known :]], axis=2)


def window_pixels(
    window: Window, given: Sequence[Given], so_far_BCTHW: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """What is known of a window's frames: (x_BCTHW in [-1, 1], `MASKED` elsewhere; given_BT).

    Args:
        given: of each video; all have one size.
        so_far_BCTHW: the videos as far as they are made; none before the first window.
    """
    B, T, size = len(given), window.num_frames, given[0].size
    x_BCTHW = np.full((B, 3, T, *size), MASKED, np.float32)
    given_BT = np.zeros((B, T), bool)
    if window.num_known:
        assert so_far_BCTHW is not None
        known = so_far_BCTHW[:, :, window.start : window.start + window.num_known]
        x_BCTHW[:, :, : window.num_known] = known.clip(-1, 1)
        given_BT[:, : window.num_known] = True
    for clip_CTHW, given_T, entry in zip(x_BCTHW, given_BT, given, strict=True):
        for frame_HWC, place in zip(entry.frames_NHWC, entry.indices, strict=True):
            if window.start + window.num_known <= place < window.stop:
                clip_CTHW[:, place - window.start] = to_model(frame_HWC[None])[0, :, 0]
                given_T[place - window.start] = True
    return x_BCTHW, given_BT


def check_joins(frames_THWC: np.ndarray, windows: Sequence[Window]) -> list[Join]:
    """How a video changes where two windows meet, beside what it does elsewhere."""
    new = [window.start + window.num_known for window in windows[1:]]
    if not new:
        return []
    brightness, motion = np.array([_change(a, b) for a, b in pairwise(frames_THWC)]).T
    others = np.setdiff1d(np.arange(len(motion)), np.array(new) - 1)
    least, most = np.quantile(motion[others], [0.1, 0.9]).tolist()
    usual = float(np.quantile(brightness[others], 0.9)), (least, most)
    return [Join(frame, float(brightness[frame - 1]), float(motion[frame - 1]), *usual) for frame in new]


def _change(before_HWC: np.ndarray, after_HWC: np.ndarray) -> tuple[float, float]:
    """Of the mean, and of a pixel on average."""
    difference = after_HWC.astype(np.float32) - before_HWC
    return abs(float(difference.mean())), float(np.abs(difference).mean())
