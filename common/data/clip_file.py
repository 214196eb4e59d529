"""One clip out of a video file at a random place, without decoding all that lies before it.

`VideoReader` gives frames by exact index and decodes from the start to know it. A training clip needs no
exact index: here the header of an MP4 or Matroska file says roughly where to begin, and decoding starts at
the key frame before. Whatever looks odd on the way falls back to the exact reader.

Shape legend: T frames, H height, W width, C channels (RGB). Pixels are uint8.
"""

from collections.abc import Callable
from contextlib import closing
from itertools import islice, takewhile
from pathlib import Path

import av
import numpy as np

from common.media_file import DecodeError
from common.video import TooShortError, VideoReader

Fit = Callable[[np.ndarray], np.ndarray]  # frames_THWC to frames_THWC


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

    def choose(total: int) -> range:
        if total <= gaps * rates[0]:
            raise TooShortError(
                f"video {path}: got {total} frames, wanted {gaps * rates[0] + 1} or more; use longer videos"
            )
        rate = min(drawn, (total - 1) // gaps) if gaps else drawn
        start = int(place * (total - gaps * rate))
        return range(start, start + gaps * rate + 1, rate)

    with closing(ClipFile(path)) as file:
        total = file.estimate()
        if total > gaps * rates[0]:
            found = file.jump(choose(total), fit)
            if found is not None:
                return found
        return fit(file.frames_chosen(choose))


class ClipFile(VideoReader):
    """A video file that can also begin near a frame."""

    def estimate(self) -> int:
        """The number of frames as the header has it; 0 where it is not to be relied on."""
        return self._file.num_listed

    def jump(self, indices: range, fit: Fit) -> np.ndarray | None:
        """Frames as far apart as `indices`, from about the first of them on; None where that fails."""
        file, found = self._file, []
        assert file.time_base is not None
        assert file.rate is not None
        target = file.start + round(indices.start / file.rate / file.time_base)
        file.one_thread()
        if not file.seek(target):
            return None
        try:
            later = (f for f in takewhile(_is_sound, file.frames()) if f.pts is not None and f.pts >= target)
            for frame in islice(later, 0, indices[-1] - indices.start + 1, indices.step):
                found.append(fit(file.pixels(frame)[None]))
        except DecodeError:
            return None  # the exact reader decides whether the file is damaged
        if len(found) < len(indices) or len({frames.shape for frames in found}) > 1:
            return None
        return np.concatenate(found)


def _is_sound(frame: av.VideoFrame) -> bool:
    return frame.pts is not None and not frame.is_corrupt
