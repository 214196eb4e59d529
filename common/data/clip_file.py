"""One clip out of a video file at a random place, without decoding all that lies before it.

`VideoReader` gives frames by exact index and decodes from the start to know it. A training clip needs no
exact index: here the header of an MP4 or Matroska file says roughly where to begin, and decoding starts at
the key frame before. Whatever looks odd on the way falls back to the exact reader.

Shape legend: T frames, H height, W width, C channels (RGB). Pixels are uint8.
"""

from collections.abc import Callable
from contextlib import closing
from fractions import Fraction
from itertools import islice, takewhile
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from common.errors import MediaError
from common.video import VideoReader, to_rgb

INDEXED = ("mp4", "matroska")  # containers whose seeks are reliable

Fit = Callable[[np.ndarray], np.ndarray]  # frames_THWC to frames_THWC


class TooShortError(MediaError):
    """The file is sound but has fewer frames than a clip."""


def read_clip(
    path: Path, num_frames: int, rates: tuple[int, int], rng: np.random.Generator, fit: Fit
) -> np.ndarray:
    """Frames (T, H, W, 3) from a random start, a random step apart, each through `fit`.

    rates: the least and the greatest step; for a short file the drawn one shrinks, down to the least.

    Raises:
        TooShortError: even the least step is too great.
        MediaError: the file is damaged.
    """
    drawn, place = int(rng.integers(*rates, endpoint=True)), rng.random()
    gaps = num_frames - 1

    def choose(total: int) -> tuple[int, int]:
        rate = min(drawn, (total - 1) // gaps) if gaps else drawn
        return int(place * (total - gaps * rate)), rate

    with closing(ClipFile(path)) as file:
        total = file.estimate()
        if total > gaps * rates[0]:
            start, rate = choose(total)
            found = file.jump(start, num_frames, rate, fit)
            if found is not None:
                return found
        total = file.info.num_frames
        if total <= gaps * rates[0]:
            raise TooShortError(
                f"video {path}: got {total} frames, wanted {gaps * rates[0] + 1} or more; use longer videos"
            )
        start, rate = choose(total)
        return fit(file.frames(range(start, start + gaps * rate + 1, rate)))


class ClipFile(VideoReader):
    """A video file that can also begin near a frame."""

    def estimate(self) -> int:
        """The number of frames as the header has it; 0 where it is not to be relied on."""
        if not any(name in self._container.format.name for name in INDEXED) or not self._stream.average_rate:
            return 0
        if self._stream.frames:
            return self._stream.frames
        duration_s = (self._container.duration or 0) / 1_000_000
        return int(duration_s * self._stream.average_rate)

    def jump(self, start: int, num_frames: int, rate: int, fit: Fit) -> np.ndarray | None:
        """`num_frames` frames, every `rate`-th, from about frame `start` on; None where that fails."""
        time_base, fps = self._stream.time_base, self._stream.average_rate
        assert time_base is not None
        assert fps is not None
        target = (self._stream.start_time or 0) + round(start / Fraction(fps) / time_base)
        self._stream.codec_context.thread_count = 1  # each further one decodes a frame too many
        found = []
        try:
            self._container.seek(target, stream=self._stream)
            sound = takewhile(_is_sound, self._container.decode(self._stream))
            later = (frame for frame in sound if frame.pts is not None and frame.pts >= target)
            for frame in islice(later, 0, (num_frames - 1) * rate + 1, rate):
                found.append(fit(to_rgb(frame)[None]))
        except FFmpegError:
            return None  # the exact reader decides whether the file is damaged
        if len(found) < num_frames or len({frames.shape for frames in found}) > 1:
            return None
        return np.concatenate(found)


def _is_sound(frame: av.VideoFrame) -> bool:
    return frame.pts is not None and not frame.is_corrupt
