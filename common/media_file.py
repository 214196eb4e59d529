"""An open file of moving pictures: what its header says, its frames in order, and their pixels as seen.

Pillow reads animated WebP and PNG and still pictures, FFmpeg all else. Errors of both become MediaError.

Shape legend: H height, W width, C channels (RGB). Pixels are uint8.
"""

from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import av
import numpy as np
from av.codec.codec import UnknownCodecError
from av.codec.context import CodecContext
from av.container import InputContainer
from av.error import FFmpegError
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext

from .alpha import Alpha, mov_alpha, on_white
from .errors import MediaError
from .images import animation, is_animated_webp, read_image

WANTED = "wanted a video file such as MP4, MKV, AVI or GIF"
REORDERED = 32  # packets that may precede one that is shown before them
INDEXED = ("mp4", "matroska")  # containers whose seeks are reliable
PICTURES = ("image2", "gif", "apng", "webp")  # also hold still pictures, as do "png_pipe" etc.
STILL = tuple(f"{name}_pipe" for name in ("png", "jpeg", "webp", "bmp", "tiff"))  # FFmpeg's, of one frame
WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders of these leave alpha out
# PyAV 18.1 raises IndexError where a stream begins in the middle of a transport stream.
PYAV_ERRORS = (FFmpegError, IndexError)


class DecodeError(MediaError):
    """The file is damaged, or FFmpeg cannot decode what is in it."""


class MediaFile(Protocol):
    """The frames of one file, from the first on or from where `seek` went."""

    path: Path
    time_base: Fraction | None  # seconds a tick; times below are ticks
    rate: Fraction | None  # frames a second on the average, as the header has it
    start: int  # time of the first frame
    duration_s: float  # as the header has it; 0: not told
    is_picture: bool  # of a format that holds still pictures too
    num_listed: int  # frames as the header of an MP4 or Matroska file has them; 0: not to be relied on

    def close(self) -> None: ...

    def frames(self) -> Iterator[av.VideoFrame]: ...

    def seek(self, time: int) -> bool: ...

    def one_thread(self) -> None: ...

    def times(self, count: int | None = None) -> list[int]: ...

    def pixels(self, frame: av.VideoFrame) -> np.ndarray: ...


def open_media(path: Path) -> MediaFile:
    """Open a file, whatever its name says it is.

    Raises:
        MediaError: no such file, or no moving pictures in it.
    """
    if not path.is_file():
        raise MediaError(f"video {path}: got no such file, {WANTED}; check the path")
    if is_animated_webp(path):
        return PillowFile(path, moves=True)
    file = FFmpegFile(path)
    if file.format not in (*STILL, "apng"):
        return file
    file.close()
    return PillowFile(path, moves=file.format == "apng")


class FFmpegFile:
    """The first video stream of a file that FFmpeg opens; sound is passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._container, self._stream = _open(path)
        self._alpha: Alpha | None = None  # not looked up yet
        self._context = self._alpha_decoder()
        stream = self._stream
        self.time_base, self.start = stream.time_base, stream.start_time or 0
        self.rate = stream.average_rate or stream.guessed_rate or None
        self.is_picture = self.format.endswith("_pipe") or self.format in PICTURES
        self.duration_s = self._duration_s()
        self.num_listed = self._num_listed()

    @property
    def format(self) -> str:
        """FFmpeg's names of the container, with commas between."""
        return self._container.format.name

    def close(self) -> None:
        """Give the file back."""
        self._container.close()

    def frames(self) -> Iterator[av.VideoFrame]:
        """Frames in order of display.

        Raises:
            DecodeError: the file is damaged from there on.
        """
        number = 0
        try:
            for number, frame in enumerate(self._decoded(), 1):  # noqa: B007
                yield frame
        except PYAV_ERRORS as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise DecodeError(
                f"video {self.path}: got {reason!r} after {number} frames, wanted a whole file; "
                "fetch or convert it again"
            ) from None

    def seek(self, time: int) -> bool:
        """Go to the key frame before `time`; whether that was possible."""
        if self._context is not None:
            return False  # key frames of colours and of alpha need not coincide
        try:
            self._container.seek(time, stream=self._stream)
        except FFmpegError:
            return False
        return True

    def one_thread(self) -> None:
        """Decode with one thread from the first frame on: each further one decodes a frame too many."""
        self._stream.codec_context.thread_count = 1

    def times(self, count: int | None = None) -> list[int]:
        """When the first `count` frames are shown, or all, in ascending order; [] if the file does not tell.

        An MP4 lists the times of frames in its header, in order of decoding. For all frames, and in other
        files, packets are read, not decoded, as far as the file is whole.
        """
        stream = self._stream
        if count is not None and len(stream.index_entries) == stream.frames:
            return [entry.timestamp for entry in islice(stream.index_entries, count)]
        times = []
        try:
            packets = self._container.demux(stream)
            for packet in packets if count is None else islice(packets, count + REORDERED):
                if packet.size and packet.pts is None and count is None:
                    return []
                if packet.size and packet.pts is not None and not packet.is_discard:
                    times.append(packet.pts)
        except PYAV_ERRORS:
            pass  # what lies behind cannot be read as a frame either
        return sorted(times)[:count]

    def pixels(self, frame: av.VideoFrame) -> np.ndarray:
        """RGB (H, W, 3) of a frame, upright as the file says, on white where it is transparent.

        Raises:
            DecodeError: a pixel format that cannot be shown.
        """
        transparent = self._has_alpha(frame)
        try:
            layout = "rgba" if transparent else "rgb24"
            image_HWC = frame.to_ndarray(format=layout, threads=1)  # more threads cost more than they save
        except FFmpegError as error:
            raise DecodeError(
                f"video {self.path}: got {error.strerror!r} for pixels of format {frame.format.name}, "
                f"{WANTED}; convert it"
            ) from None
        return upright(on_white(image_HWC, self._meaning()) if transparent else image_HWC, frame)

    def _decoded(self) -> Iterator[av.VideoFrame]:
        if self._context is None:
            yield from self._container.decode(self._stream)
            return
        for packet in self._container.demux(self._stream):
            for frame in self._context.decode(packet if packet.size else None):
                if not frame.format.name.startswith("yuv") or frame.format.components[0].bits > 8:
                    raise MediaError(
                        f"video {self.path}: got {self._context.name} with alpha and {frame.format.name} "
                        "colours, of which FFmpeg drops the alpha; convert it to ProRes 4444 or VP9 of 8 bits"
                    )
                yield frame

    def _alpha_decoder(self) -> VideoCodecContext | None:
        """A decoder for alpha that Matroska keeps beside the frames, where the stream has such alpha."""
        codec = self._stream.codec_context.name
        if self._stream.metadata.get("alpha_mode") != "1" or codec not in WITH_ALPHA:
            return None
        try:
            context = CodecContext.create(WITH_ALPHA[codec], "r")
        except UnknownCodecError:
            self.close()
            raise MediaError(
                f"video {self.path}: got {codec} with alpha, which takes FFmpeg's {WITH_ALPHA[codec]}, not "
                "in this build; install PyAV from its wheel, or convert the file to ProRes 4444"
            ) from None
        assert isinstance(context, VideoCodecContext)
        return context

    def _has_alpha(self, frame: av.VideoFrame) -> bool:
        if not (frame.format.has_palette or any(c.is_alpha for c in frame.format.components)):
            return False
        codec = self._stream.codec_context.name
        if codec == "hevc":  # what its alpha is, straight or not, PyAV does not tell
            raise MediaError(
                f"video {self.path}: got HEVC with alpha, which is not supported; convert it to ProRes 4444"
            )
        return (codec, self.format) != ("rawvideo", "avi")  # the fourth byte of BI_RGB has no meaning

    def _meaning(self) -> Alpha:
        if self._alpha is None:
            is_mov = "mov" in self.format.split(",")
            self._alpha = mov_alpha(self.path, self._stream.id) if is_mov else Alpha.STRAIGHT
        return self._alpha

    def _duration_s(self) -> float:
        stream = self._stream
        if stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        return (self._container.duration or 0) / 1_000_000

    def _num_listed(self) -> int:
        names = self.format.split(",")
        if not set(INDEXED) & set(names) or not self._stream.average_rate or self._context is not None:
            return 0
        return self._stream.frames or int(self.duration_s * self._stream.average_rate)


class PillowFile:
    """A picture as a video, a still one of one frame: FFmpeg lacks animated WebP, and PyAV lacks EXIF."""

    time_base: Fraction | None = Fraction(1, 90_000)
    rate: Fraction | None = None
    start = 0
    duration_s = 0.0
    is_picture = True
    num_listed = 0

    def __init__(self, path: Path, moves: bool) -> None:
        self.path, self.moves = path, moves

    def close(self) -> None:
        """Nothing: each walk over the frames opens the file."""

    def frames(self) -> Iterator[av.VideoFrame]:
        """Frames in order of display, without alpha.

        Raises:
            MediaError: the file is damaged from there on.
        """
        assert self.time_base is not None
        for image_HWC, time_s in animation(self.path) if self.moves else [(read_image(self.path), 0.0)]:
            frame = av.VideoFrame.from_ndarray(image_HWC, format="rgb24")
            frame.pts, frame.time_base = round(time_s / self.time_base), self.time_base
            yield frame

    def seek(self, time: int) -> bool:
        """Nowhere: frames build on one another."""
        return False

    def one_thread(self) -> None:
        """Nothing: there is no other."""

    def times(self, count: int | None = None) -> list[int]:
        """None of a moving one: they take decoding."""
        return [] if self.moves else [0]

    def pixels(self, frame: av.VideoFrame) -> np.ndarray:
        """RGB (H, W, 3)."""
        return frame.to_ndarray()


def _open(path: Path) -> tuple[InputContainer, av.VideoStream]:
    try:
        container = av.open(str(path.absolute()), metadata_errors="replace")  # titles need not be UTF-8
    except FFmpegError as error:
        raise MediaError(
            f"video {path}: got {error.strerror!r}, {WANTED}; fetch or convert it again"
        ) from None
    pictures = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not pictures or container.format.name == "tty":  # FFmpeg plays any .txt as terminal art
        container.close()
        raise MediaError(f"video {path}: got no moving pictures in it, {WANTED}; is it sound or text?")
    if pictures[0].codec_context is None:
        container.close()
        raise MediaError(
            f"video {path}: got an encrypted stream or a codec that this FFmpeg lacks, {WANTED}; convert it"
        )
    pictures[0].thread_type = "AUTO"
    return container, pictures[0]


class Orientation(NamedTuple):
    """How to show a picture: rows and columns exchanged first, then the flips."""

    turned: bool
    upside_down: bool
    mirrored: bool


def orientation(frame: av.VideoFrame) -> Orientation:
    """What a frame's display matrix says, to the nearest quarter turn (libavutil/display.h)."""
    try:
        matrix = frame.side_data.get(SideData.DISPLAYMATRIX)  # type: ignore[arg-type] PyAV's stub wants str
    except ValueError:  # PyAV 18.1 names not every kind of side data, EXIF for one: mirrors stay unknown
        turns = round(frame.rotation / 90) % 4
        return Orientation(turns % 2 == 1, turns in (1, 2), turns in (2, 3))
    if matrix is None:
        return Orientation(False, False, False)
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()  # x' = a x + c y, y' = b x + d y
    turned = abs(b) > abs(a)
    across, down = (c, b) if turned else (a, d)
    return Orientation(turned, down < 0, across < 0)


def upright(image_HWC: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """The pixels of `frame` as its display matrix wants them shown."""
    turned, upside_down, mirrored = orientation(frame)
    if turned:
        image_HWC = image_HWC.transpose(1, 0, 2)
    return image_HWC[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
