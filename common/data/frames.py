"""Chosen frames of a video file, each brought to size as soon as it is decoded.

Shape legend: T frames, H height, W width, C channels (RGB).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from common.errors import MediaError
from common.media_file import DecodeError
from common.video import TooShortError

from .clip_file import ClipFile

WORTH_JUMPING = 48  # frames before the first wanted one; fewer are decoded and passed over
SAME_RATE = 0.05  # share by which an annotated rate may differ from that of the file

Fit = Callable[[np.ndarray], np.ndarray]  # frames_THWC to frames_THWC


class OtherRateError(MediaError):
    """The frames do not come at the rate that their annotation says."""


def read_frames(path: str | Path, indices: np.ndarray, fit: Fit, fps: float | None = None) -> np.ndarray:
    """The frames with these indices, ascending, repeats allowed, each through `fit`: (T, H, W, 3).

    Args:
        fps: frames a second that the file must have, within 5 %.

    Raises:
        OtherRateError: it has others.
        TooShortError: the file ends before the last of them.
        MediaError: the file is damaged.
    """
    wanted = np.unique(indices)
    with closing(IndexedFile(path)) as file:
        if fps is not None:
            file.check_rate(fps)
        fitted = file.jump_to(wanted, fit) if wanted[0] >= WORTH_JUMPING else None
        fitted = fitted or file.walk(wanted, fit)
    if len(fitted) < len(wanted):
        raise TooShortError(f"video {path}: got no frame {wanted[len(fitted)]}; correct cut or num_frames")
    return np.stack([fitted[place] for place in np.searchsorted(wanted, indices)])


class IndexedFile(ClipFile):
    """A video file that gives frames by index, decoding from the start or from the key frame before."""

    def walk(self, wanted: np.ndarray, fit: Fit) -> list[np.ndarray]:
        """The wanted frames, as many as there are, decoding from the start."""
        return self._pick(self._from_start(), wanted, fit)

    def jump_to(self, wanted: np.ndarray, fit: Fit) -> list[np.ndarray] | None:
        """The wanted frames of a file of constant rate with an index; None where that fails."""
        if self.estimate() <= wanted[-1]:
            return None
        file = self._file
        assert file.time_base is not None
        assert file.rate is not None
        ticks = 1 / Fraction(file.rate) / file.time_base  # from frame to frame
        first = file.start + int(wanted[0]) * ticks
        file.one_thread()
        if not self._evenly_spaced(int(wanted[-1]) + 1, float(ticks)) or not file.seek(round(first)):
            return None
        try:
            fitted = self._pick(_numbered(file.frames(), int(wanted[0]), first, ticks), wanted, fit)
        except DecodeError:
            return None  # the decode from the start decides whether the file is damaged
        return fitted if len(fitted) == len(wanted) else None

    def _evenly_spaced(self, count: int, ticks: float) -> bool:
        """Whether the first `count` frames come at the mean rate: a dropped one moves all that follow."""
        times = self._file.times(count)
        late = (np.array(times) - times[0]) / ticks - np.arange(len(times)) if times else np.ones(1)
        return len(times) == count and bool(np.abs(late).max() < 0.5)

    def check_rate(self, fps: float) -> None:
        """
        Raises:
            OtherRateError: the file does not have `fps` frames a second on the average.
        """
        told = self._file.rate
        if told and abs(fps / told - 1) > SAME_RATE:
            measured = self._measured_rate() or float(told)
            if abs(fps / measured - 1) > SAME_RATE:
                raise OtherRateError(
                    f"video {self.path}: got {measured:.5g} frames a second, wanted {fps:.5g} as annotated; "
                    "correct fps"
                )

    def _measured_rate(self) -> float | None:
        """From the times of all packets: FFmpeg's rate of a file that does not list them is an estimate."""
        times, time_base = self._listed, self._file.time_base
        if len(times) < 2 or not time_base:
            return None
        return float((len(times) - 1) / ((times[-1] - times[0]) * time_base))

    def _pick(
        self, walk: Iterable[tuple[int, av.VideoFrame]], wanted: np.ndarray, fit: Fit
    ) -> list[np.ndarray]:
        left, fitted = set(wanted.tolist()), []
        for index, frame in walk:
            if index in left:
                left.remove(index)
                fitted.append(fit(self._file.pixels(frame)[None])[0])
                if not left:
                    break
        return fitted


def _numbered(
    frames: Iterable[av.VideoFrame], index: int, first: Fraction, ticks: Fraction
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames from number `index` on, for as long as their times are those of a constant rate."""
    for frame in frames:
        if frame.pts is None or frame.is_corrupt:
            return
        late = (frame.pts - first) / ticks
        if late < -0.5:
            continue  # between the key frame and the first wanted one
        if late >= 0.5:
            return
        yield index, frame
        index, first = index + 1, first + ticks
