"""Chosen frames of a video file, each brought to size as soon as it is decoded.

Shape legend: T frames, H height, W width, C channels (RGB).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from common.data.clip_file import ClipFile, TooShortError
from common.video import to_rgb

WORTH_JUMPING = 48  # frames before the first wanted one; fewer are decoded and passed over
REORDERED = 32  # packets that may precede one that is shown before them

Fit = Callable[[np.ndarray], np.ndarray]  # frames_THWC to frames_THWC


def read_frames(path: str | Path, indices: np.ndarray, fit: Fit) -> np.ndarray:
    """The frames with these indices, ascending, repeats allowed, each through `fit`: (T, H, W, 3).

    Raises:
        TooShortError: the file ends before the last of them.
        MediaError: the file is damaged.
    """
    wanted = np.unique(indices)
    with closing(IndexedFile(path)) as file:
        fitted = file.jump_to(wanted, fit) if wanted[0] >= WORTH_JUMPING else None
        fitted = fitted or file.walk(wanted, fit)
    if len(fitted) < len(wanted):
        raise TooShortError(f"video {path}: got no frame {wanted[len(fitted)]}; correct cut or num_frames")
    return np.stack([fitted[place] for place in np.searchsorted(wanted, indices)])


class IndexedFile(ClipFile):
    """A video file that gives frames by index, decoding from the start or from the key frame before."""

    def walk(self, wanted: np.ndarray, fit: Fit) -> list[np.ndarray]:
        """The wanted frames, as many as there are, decoding from the start."""
        return _pick(self._from_start(), wanted, fit)

    def jump_to(self, wanted: np.ndarray, fit: Fit) -> list[np.ndarray] | None:
        """The wanted frames of a file of constant rate with an index; None where that fails."""
        if self.estimate() <= wanted[-1]:
            return None
        time_base, fps = self._stream.time_base, self._stream.average_rate
        assert time_base is not None
        assert fps is not None
        ticks = 1 / Fraction(fps) / time_base  # from frame to frame
        first = (self._stream.start_time or 0) + int(wanted[0]) * ticks
        self._stream.codec_context.thread_count = 1  # each further one decodes a frame too many
        try:
            if not self._evenly_spaced(int(wanted[-1]) + 1):
                return None
            self._container.seek(round(first), stream=self._stream)
            fitted = _pick(
                _numbered(self._container.decode(self._stream), int(wanted[0]), first, ticks), wanted, fit
            )
        except FFmpegError:
            return None  # the decode from the start decides whether the file is damaged
        return fitted if len(fitted) == len(wanted) else None

    def _evenly_spaced(self, count: int) -> bool:
        """Whether the first `count` frames come at the mean rate: a dropped one moves all that follow.

        An MP4 lists the times of all frames in its header. Other files are read, not decoded, up to there.
        """
        stream = self._stream
        assert stream.time_base is not None
        assert stream.average_rate is not None
        ticks = float(1 / stream.average_rate / stream.time_base)
        if len(stream.index_entries) == stream.frames:
            times = [entry.timestamp for entry in islice(stream.index_entries, count)]  # in order of decoding
        else:
            packets = islice(self._container.demux(stream), count + REORDERED)
            times = sorted(packet.pts for packet in packets if packet.pts is not None)[:count]
        late = (np.array(times) - times[0]) / ticks - np.arange(len(times)) if times else np.ones(1)
        return len(times) == count and bool(np.abs(late).max() < 0.5)


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


def _pick(walk: Iterable[tuple[int, av.VideoFrame]], wanted: np.ndarray, fit: Fit) -> list[np.ndarray]:
    left, fitted = set(wanted.tolist()), []
    for index, frame in walk:
        if index in left:
            left.remove(index)
            fitted.append(fit(to_rgb(frame)[None])[0])
            if not left:
                break
    return fitted
