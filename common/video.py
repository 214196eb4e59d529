"""Video files: frames by exact index from any container FFmpeg reads, and H.264 MP4 files.

Seeking by arithmetic on timestamps is off by frames in AVI, MPEG-TS and open-GOP files. Here an index is a
place in a decode from the start; jumps go by the timestamps that decode produced, checked frame by frame.

Shape legend: T frames, H height, W width, C channels (RGB). Pixels are uint8.
"""

import io
import math
import operator
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from .errors import InputError, MediaError
from .files import whole_file
from .images import check_frames
from .media_file import DecodeError, open_media, orientation

SAME_RATE = 0.02  # share by which the rate of some frames may differ from that of the file
WORTH_SEEKING = 16  # frames; decoding on over a shorter gap is cheaper than starting the decoder anew
NO_PTS = -1  # for frames without a timestamp
CRF = 18  # constant quality of H.264; visually close to lossless

Numbered = tuple[int, av.VideoFrame]


class TooShortError(MediaError):
    """The file is sound but has fewer frames than are asked for."""


class VideoInfo(NamedTuple):
    """What a complete decode found; height and width are those after rotation."""

    num_frames: int
    fps: float  # mean rate
    height: int
    width: int
    duration_s: float
    times_s: tuple[float, ...]  # of each frame, since the first


class VideoReader:
    """The frames of one video file by index; use it in a `with` block, or close it.

    The first request decodes from the start as far as it must and remembers timestamps; later ones seek to
    the key frame before. Audio is ignored, rotation is applied.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the file.

        Raises:
            MediaError: no such file, or no video in it.
        """
        self.path = Path(path)
        self._pts: list[int] = []  # timestamps in order of display, as far as decoded
        self._keys: list[int] = [0]  # indices of key frames among them
        self._size = (0, 0)  # height and width
        self._complete = False  # the table reaches the end of the file
        self._seekable = True
        self._file = open_media(self.path)

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    @cached_property
    def info(self) -> VideoInfo:
        """Number of frames, size and timing; decodes the file once.

        Raises:
            MediaError: the file holds no frame or is damaged.
        """
        if not self._complete:
            deque(self._from_start(), maxlen=0)
        num_frames = len(self._pts)
        fps = Fraction(self._file.rate or 25)
        if self._pts_increase():
            times = [(pts - self._pts[0]) * (self._file.time_base or Fraction(1)) for pts in self._pts]
        else:
            times = [i / fps for i in range(num_frames)]
        if num_frames > 1:
            fps = (num_frames - 1) / times[-1]
        times_s = tuple(float(time) for time in times)
        return VideoInfo(num_frames, float(fps), *self._size, float(times[-1] + 1 / fps), times_s)

    @property
    def num_frames(self) -> int:
        """Number of frames, from the times of packets, which are not decoded, so that damage does not matter.

        Counted by decoding where the file does not tell those times, or told others than were decoded so far.

        Raises:
            MediaError: that takes decoding, and the file holds no frame or is damaged.
        """
        if not self._complete and not (self._listed and self._listed[: len(self._pts)] == self._pts):
            deque(self._from_start(), maxlen=0)
        return len(self._pts) if self._complete else len(self._listed)

    @cached_property
    def _listed(self) -> list[int]:
        """When the frames are shown, as their packets say; [] if they do not."""
        with closing(open_media(self.path)) as file:
            times = file.times()
        return times if all(a < b for a, b in pairwise(times)) else []

    @property
    def fps(self) -> float:
        """Mean rate as the header has it, or that of the frames decoded so far if they contradict it.

        Raises:
            MediaError: as `info`, where the header has none.
        """
        rate, time_base, num_gaps = self._file.rate, self._file.time_base, len(self._pts) - 1
        if self._complete or not time_base or not (num_gaps > 0 or rate):
            return self.info.fps
        if num_gaps > 0 and self._pts_increase():
            elapsed = (self._pts[-1] - self._pts[0]) * time_base
            if not rate or abs(elapsed - num_gaps / rate) > 2 * time_base + SAME_RATE * num_gaps / rate:
                return float(num_gaps / elapsed)
        return float(rate or 25)

    @property
    def is_picture(self) -> bool:
        """Whether the format is one of pictures, still or moving."""
        return self._file.is_picture

    @property
    def is_still(self) -> bool:
        """Whether the file is a still picture, of whatever suffix."""
        return self.is_picture and self.num_frames == 1

    def frames_chosen(self, choose: Callable[[int], Sequence[int]]) -> np.ndarray:
        """The frames that `choose` picks when told how many there are: (T, H, W, 3).

        It is asked again where what was decoded shows that the file has another number.

        Raises:
            MediaError: as `frames` and `num_frames`, and what `choose` raises.
        """
        while True:
            total = self.num_frames
            try:
                found = self.frames(choose(total))
            except TooShortError:
                if self.num_frames == total:
                    raise
            else:
                if self.num_frames == total:
                    return found

    def frames(self, indices: Iterable[int] | None = None) -> np.ndarray:
        """The frames with these indices, in this order (repeats allowed), or all: (T, H, W, 3).

        Raises:
            TooShortError: an index is past the end.
            MediaError: another is out of range, or the file is damaged or empty.
        """
        if indices is None:
            return np.stack([self._file.pixels(frame) for _, frame in self._from_start()])
        order = [operator.index(i) for i in indices]
        wanted = sorted(set(order))
        if not wanted or wanted[0] < 0:
            raise MediaError(
                f"video {self.path}: got frame indices {order}, wanted some, none below 0; correct them"
            )
        found: dict[int, np.ndarray] = {}
        if wanted[-1] < len(self._pts) and self._seekable and self._pts_increase():
            for run in self._runs(wanted):
                found |= self._collect(self._from_key(self._key_before(run[0])), run)
            self._seekable = len(found) == len(wanted)
        missing = [i for i in wanted if i not in found]
        if missing and not (self._complete and missing[-1] >= len(self._pts)):
            found |= self._collect(self._from_start(), missing)
        if wanted[-1] not in found:
            raise TooShortError(
                f"video {self.path}: got frame index {wanted[-1]}, wanted 0 to {len(self._pts) - 1}; "
                f"the file has {len(self._pts)} frames, ask for fewer"
            )
        return np.stack([found[i] for i in order])

    def _from_start(self) -> Iterator[Numbered]:
        """Every frame with its index, noting timestamps and key frames on the way."""
        self.close()
        self._file = open_media(self.path)  # not every format can seek back to its first frame
        index = -1
        for index, frame in enumerate(self._file.frames()):
            if frame.is_corrupt:
                raise DecodeError(
                    f"video {self.path}: got frame {index} damaged, wanted a whole file; fetch it again"
                )
            if index == len(self._pts):
                self._note(index, frame)
            yield index, frame
        if index < 0:
            raise MediaError(f"video {self.path}: got no frame at all, wanted one or more; fetch it again")
        self._complete = True

    def _note(self, index: int, frame: av.VideoFrame) -> None:
        size = (frame.width, frame.height) if orientation(frame).turned else (frame.height, frame.width)
        if index == 0:
            self._size = size
        elif size != self._size:
            raise MediaError(
                f"video {self.path}: got a frame {index} of {size} after {self._size} (height, width), "
                "wanted one size throughout; convert it with a fixed size"
            )
        self._pts.append(NO_PTS if frame.pts is None else frame.pts)
        if frame.key_frame and index:
            self._keys.append(index)

    def _from_key(self, key: int) -> Iterator[Numbered]:
        """Frames from key frame `key` on, for as long as they are those of the table."""
        if not self._file.seek(self._pts[key]):
            return
        index = key
        try:
            for frame in self._file.frames():
                if index == key and frame.pts is not None and frame.pts < self._pts[key]:
                    continue  # left over from the key frame before
                known = index < len(self._pts) and frame.pts == self._pts[index]
                if not known or frame.is_corrupt or (index == key and not frame.key_frame):
                    return
                yield index, frame
                index += 1
        except DecodeError:
            return  # the decode from the start decides whether the file is damaged

    def _collect(self, walk: Iterator[Numbered], wanted: Sequence[int]) -> dict[int, np.ndarray]:
        """Pixels of the frames of `walk` whose index is wanted; stops after the last."""
        left, found = set(wanted), {}
        for index, frame in walk:
            if index in left:
                found[index] = self._file.pixels(frame)
                left.remove(index)
            if not left:
                break
        return found

    def _runs(self, wanted: list[int]) -> Iterator[list[int]]:
        """`wanted` in pieces, cut where a key frame lies far enough ahead to jump to it."""
        run = wanted[:1]
        for i in wanted[1:]:
            if self._key_before(i) > run[-1] + WORTH_SEEKING:
                yield run
                run = []
            run.append(i)
        yield run

    def _key_before(self, index: int) -> int:
        return self._keys[bisect_right(self._keys, index) - 1]

    def _pts_increase(self) -> bool:
        """False for raw streams, which have no timestamps, and for H.264 in AVI, where they are guesses."""
        return all(a < b for a, b in pairwise(self._pts))


def probe(path: str | Path) -> VideoInfo:
    """Number of frames, size and timing of a video file; decodes it once.

    Raises:
        MediaError: no such file, no video, damaged or empty.
    """
    with VideoReader(path) as reader:
        return reader.info


def read_frames(path: str | Path, indices: Sequence[int] | None = None) -> np.ndarray:
    """The frames with these indices, or all: uint8 (T, H, W, 3).

    Raises:
        MediaError: as VideoReader, or an index is out of range.
    """
    with VideoReader(path) as reader:
        return reader.frames(indices)


def read_video(
    path: str | Path, start: int = 0, num_frames: int | None = None, stride: int = 1
) -> np.ndarray:
    """`num_frames` frames (all that are left if None) from `start` on, every `stride`-th: uint8 (T, H, W, 3).

    Raises:
        MediaError: as VideoReader, or the file is too short.
    """
    with VideoReader(path) as reader:
        if num_frames is None:
            return reader.frames(range(start, max(reader.info.num_frames, start + 1), stride))
        return reader.frames(range(start, start + num_frames * stride, stride))


def write_video(path: str | Path, frames_THWC: np.ndarray, fps: float) -> None:
    """Write an H.264 MP4 file that every browser plays; it is whole or absent.

    Raises:
        ValueError: pixels that are not uint8 RGB.
        InputError: an odd size, or the file cannot be written.
    """
    path = Path(path)
    check_frames(frames_THWC, f"writing {path}")
    _, H, W, _ = frames_THWC.shape
    if H % 2 or W % 2:
        raise InputError(
            f"writing {path}: got frames of {H}x{W}, wanted even height and width (colours are halved); "
            f"use resize_crop(frames, {H - H % 2}, {W - W % 2})"
        )
    if path.suffix.lower() != ".mp4":
        raise InputError(f"writing {path}: got suffix {path.suffix!r}, wanted .mp4; rename it")
    rate = Fraction(fps).limit_denominator(1001) if math.isfinite(fps) else Fraction(0)
    if rate <= 0:
        raise InputError(f"writing {path}: got fps={fps}, wanted a positive number; 24 is usual")
    with whole_file(path) as temporary:
        _encode(temporary, frames_THWC, rate)


def animated_png(frames_THWC: np.ndarray, fps: float) -> bytes:
    """Uint8 RGB frames as a PNG that every browser plays, without end and without loss.

    Raises:
        ValueError: pixels that are not uint8 RGB.
    """
    check_frames(frames_THWC, "animated PNG")
    file = io.BytesIO()
    with av.open(file, "w", format="apng", options={"plays": "0"}) as container:
        stream = container.add_stream("apng", rate=Fraction(fps).limit_denominator(1001))
        _, stream.height, stream.width, _ = frames_THWC.shape
        stream.pix_fmt = "rgb24"
        for frame_HWC in frames_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def _encode(path: Path, frames_THWC: np.ndarray, rate: Fraction) -> None:
    options = {"movflags": "+faststart"}  # a browser can start before it has the whole file
    with av.open(str(path), "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(CRF)})
        _, stream.height, stream.width, _ = frames_THWC.shape
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context  # untagged, players guess the colours by the size of the picture
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        for index, image_HWC in enumerate(frames_THWC):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image_HWC), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
