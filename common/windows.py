"""Videos longer than a model takes: windows that overlap, each beginning with the last frames of the other.

Shapes: B videos, C channels, T frames, H height, W width of pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .images import to_model
from .masks import MASKED

JUMP = 2.0  # times the usual change from frame to frame
LEVEL = 1.0  # grey levels that nobody sees


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
    usual_brightness: float  # what nine in ten other frames stay below
    usual_motion: float

    @property
    def jumps(self) -> bool:
        return (
            self.brightness > JUMP * self.usual_brightness + LEVEL
            or self.motion > JUMP * self.usual_motion + LEVEL
        )


def plan_windows(num_frames: int, window: int, overlap: int) -> list[Window]:
    """Windows that cover the video; all but a single one have `window` frames, the last ends with the video.

    Raises:
        ValueError: the overlap leaves nothing new.
    """
    if num_frames <= window:
        return [Window(0, num_frames, 0)]
    if not 0 < overlap < window:
        raise ValueError(
            f"overlap_frames: got {overlap}, wanted 1 to {window - 1} of {window} (window_frames)"
        )
    found = [Window(0, window, 0)]
    while found[-1].stop < num_frames:
        start = min(found[-1].stop - overlap, num_frames - window)
        found.append(Window(start, window, found[-1].stop - start))
    return found


def window_pixels(
    window: Window,
    frames: Sequence[np.ndarray],
    indices: Sequence[Sequence[int]],
    so_far_BCTHW: np.ndarray | None,
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """What is known of a window's frames: (x_BCTHW in [-1, 1], `MASKED` elsewhere; given_BT).

    Args:
        frames, indices: for each video what a user gives: uint8 (N,H,W,3), and their places in the whole.
        so_far_BCTHW: the videos up to the window's first new frame; none before the first window.
    """
    B, T = len(frames), window.num_frames
    x_BCTHW = np.full((B, 3, T, *size), MASKED, np.float32)
    given_BT = np.zeros((B, T), bool)
    if window.num_known:
        assert so_far_BCTHW is not None
        x_BCTHW[:, :, : window.num_known] = so_far_BCTHW[:, :, window.start :].clip(-1, 1)
        given_BT[:, : window.num_known] = True
    for clip_CTHW, given_T, pictures, places in zip(x_BCTHW, given_BT, frames, indices, strict=True):
        for picture_HWC, place in zip(pictures, places, strict=True):
            if window.start + window.num_known <= place < window.stop:
                clip_CTHW[:, place - window.start] = to_model(picture_HWC[None])[0, :, 0]
                given_T[place - window.start] = True
    return x_BCTHW, given_BT


def check_joins(frames_THWC: np.ndarray, windows: Sequence[Window]) -> list[Join]:
    """How a video changes where two windows meet, beside what it does elsewhere."""
    new = [window.start + window.num_known for window in windows[1:]]
    if not new:
        return []
    frames = frames_THWC.astype(np.float32)
    motion = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    brightness = np.abs(np.diff(frames.mean(axis=(1, 2, 3))))
    others = np.setdiff1d(np.arange(len(motion)), np.array(new) - 1)
    usual = [float(np.quantile(changes[others], 0.9)) for changes in (brightness, motion)]
    return [Join(frame, float(brightness[frame - 1]), float(motion[frame - 1]), *usual) for frame in new]
