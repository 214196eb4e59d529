"""What is transparent is white, what is turned is upright, and what moves is told from what does not."""

import zlib
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from common import media_file, video
from common.alpha import Alpha, on_white
from common.data.frames import read_frames
from common.images import MovingError, read_image
from common.video import VideoReader

H, W = 32, 48
RED, HALF_GREEN, NONE = (255, 0, 0, 255), (0, 255, 0, 128), (0, 0, 255, 0)  # in columns of 16 pixels
SEEN = [[255, 0, 0], [127, 255, 127], [255, 255, 255]]


def columns() -> np.ndarray:
    """Opaque red, half transparent green, invisible blue: (H, W, 4)."""
    return np.broadcast_to(np.array([RED, HALF_GREEN, NONE], np.uint8).repeat(16, 0), (H, W, 4)).copy()


def encode(path: Path, codec: str, pix_fmt: str, rgba=None, num_frames: int = 5, **options: str) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = W, H, pix_fmt
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(columns() if rgba is None else rgba, format="rgba")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def middles(image_HWC: np.ndarray) -> np.ndarray:
    return image_HWC[H // 2, 8::16].astype(int)


MOVING = {
    "prores.mov": ("prores_ks", "yuva444p10le", {}),
    "animation.mov": ("qtrle", "argb", {}),
    "png.mov": ("png", "rgba", {}),
    "vp9.webm": ("libvpx-vp9", "yuva420p", {"lossless": "1"}),
    "vp8.webm": ("libvpx", "yuva420p", {"auto-alt-ref": "0", "crf": "4", "b": "2M"}),
    "ffv1.mkv": ("ffv1", "bgra", {}),
    "apng.apng": ("apng", "rgba", {}),
}


@pytest.mark.parametrize("name", MOVING)
def test_transparent_parts_of_a_video_are_white(tmp_path, name):
    codec, pix_fmt, options = MOVING[name]
    path = encode(tmp_path / name, codec, pix_fmt, **options)
    frames_THWC = video.read_frames(path)
    assert len(frames_THWC) == 5
    for image_HWC in frames_THWC:
        assert abs(middles(image_HWC) - SEEN).max() <= 3
    fitted = read_frames(path, np.array([1, 3]), lambda x: x)  # as training reads them
    assert (fitted == frames_THWC[[1, 3]]).all()


@pytest.mark.parametrize(
    ("mode", "stored"),
    [
        (0x000, columns()),
        (0x100, columns()),
        (0x101, np.dstack([on_white(columns()), columns()[..., 3]])),
        (0x102, np.dstack([(columns()[..., :3] * (columns()[..., 3:] / 255)).round(), columns()[..., 3]])),
    ],
)
def test_the_header_of_a_mov_says_whether_colours_are_multiplied(tmp_path, mode, stored):
    path = encode(tmp_path / "a.mov", "qtrle", "argb", stored.astype(np.uint8))
    data = bytearray(path.read_bytes())
    place = data.index(b"vmhd") + 8
    data[place : place + 2] = mode.to_bytes(2, "big")
    path.write_bytes(data)
    assert abs(middles(video.read_frames(path, [2])[0]) - SEEN).max() <= 1


def test_pixels_on_white_are_rounded_to_the_nearest_level():
    c, a = (x.astype(np.uint8).ravel() for x in np.meshgrid(np.arange(256), np.arange(256)))
    rgba = np.stack([c, c, c, a], axis=-1)
    exact = c.astype(float) * a / 255 + 255 - a
    assert (on_white(rgba)[:, 0] == np.rint(exact)).all()
    assert (on_white(rgba, Alpha.ON_WHITE)[:, 0] == c).all()
    assert on_white(rgba, Alpha.ON_BLACK).max() == 255


def test_the_fourth_byte_of_plain_avi_pixels_has_no_meaning(tmp_path):
    """Screen recorders leave it at 0."""
    path = encode(tmp_path / "a.avi", "rawvideo", "bgra")
    assert middles(video.read_frames(path, [0])[0]).tolist() == [list(x[:3]) for x in (RED, HALF_GREEN, NONE)]


def test_alpha_that_this_ffmpeg_cannot_decode_is_refused(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.webm", "libvpx-vp9", "yuva420p")
    monkeypatch.setattr(media_file, "WITH_ALPHA", {"vp9": "another"})
    with pytest.raises(ValueError, match=r"a\.webm: got vp9 with alpha, which takes FFmpeg's another"):
        video.probe(path)


def png(color_type: int, depth: int, samples: np.ndarray, *chunks: bytes) -> bytes:
    """A PNG written by hand: kinds that Pillow does not write."""

    def chunk(kind_and_content: bytes) -> bytes:
        crc = zlib.crc32(kind_and_content)
        return (len(kind_and_content) - 4).to_bytes(4, "big") + kind_and_content + crc.to_bytes(4, "big")

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in samples)
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, color_type, 0, 0, 0])
    written = [b"IHDR" + header, *chunks, b"IDAT" + zlib.compress(rows), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, written))


GREY = np.array([[0, 1000, 65535]])  # the middle one is transparent, or half so
DEEP_ALPHA = np.array([[65535, 32768, 0]])
PALETTE = b"PLTE" + bytes([255, 0, 0, 0, 255, 0, 0, 0, 255]), b"tRNS" + bytes([255, 128, 0])
ON_WHITE = {
    "a palette": (png(3, 8, np.array([[0, 1, 2]]), *PALETTE), SEEN),
    "grey of which one level is transparent": (png(0, 8, np.array([[1, 2, 3]]), b"tRNS\0\2"), [1, 255, 3]),
    "grey and alpha": (png(4, 8, np.array([[[9, 255], [100, 51], [7, 0]]])), [9, 224, 255]),
    "deep grey of which one level is transparent": (png(0, 16, GREY, b"tRNS\3\xe8"), [0, 255, 255]),
    "deep grey and alpha": (png(4, 16, np.dstack([GREY, DEEP_ALPHA])), [0, 129, 255]),
    "deep colours of which one is transparent": (
        png(2, 16, np.dstack([GREY] * 3), b"tRNS" + b"\3\xe8" * 3),
        [0, 255, 255],
    ),
    "deep colours and alpha": (png(6, 16, np.dstack([GREY] * 3 + [DEEP_ALPHA])), [0, 129, 255]),
}


@pytest.mark.parametrize("kind", ON_WHITE)
def test_transparent_parts_of_a_picture_are_white(tmp_path, kind):
    content, seen = ON_WHITE[kind]
    (tmp_path / "a.png").write_bytes(content)
    wanted = np.array(seen) if np.ndim(seen) == 2 else np.array(seen)[:, None].repeat(3, 1)
    assert abs(read_image(tmp_path / "a.png")[0].astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("suffix", ["webp", "tiff", "png", "gif"])
def test_transparent_parts_of_other_pictures_are_white(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(columns()).save(tmp_path / f"a.{suffix}", **options)
    found = middles(read_image(tmp_path / f"a.{suffix}"))
    assert (found[[0, 2]] == np.array(SEEN)[[0, 2]]).all()
    assert suffix == "gif" or (found[1] == SEEN[1]).all()  # a GIF has no half transparent pixels
    assert (middles(video.read_frames(tmp_path / f"a.{suffix}")[0]) == found).all()


def turned(orientation: int) -> tuple[np.ndarray, Image.Exif]:
    """Four coloured corners as a camera of that orientation stores them, with the EXIF data that say so."""
    stored = [
        lambda x: x,
        lambda x: x[:, ::-1],
        lambda x: x[::-1, ::-1],
        lambda x: x[::-1],
        lambda x: x.swapaxes(0, 1),
        lambda x: np.rot90(x),
        lambda x: x.swapaxes(0, 1)[::-1, ::-1],
        lambda x: np.rot90(x, -1),
    ][orientation - 1](corners())
    exif = Image.Exif()
    exif[0x0112] = orientation
    return np.ascontiguousarray(stored), exif


def corners() -> np.ndarray:
    return np.array([[RED[:3], (0, 255, 0)], [(0, 0, 255), (9, 9, 9)]], np.uint8).repeat(8, 0).repeat(16, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tiff", "lzw.tiff", "moving.png", "moving.webp"])
def test_pictures_are_turned_upright(tmp_path, name, orientation):
    stored, exif = turned(orientation)
    options = {"a.webp": {"lossless": True}, "lzw.tiff": {"compression": "tiff_lzw"}}.get(name, {})
    if name.startswith("moving"):
        options = {"save_all": True, "append_images": [Image.fromarray(255 - stored)], "lossless": True}
    Image.fromarray(stored).save(tmp_path / name, exif=exif, **options)
    if name.startswith("moving"):
        assert (video.read_frames(tmp_path / name, [1, 0]) == np.stack([255 - corners(), corners()])).all()
    else:
        assert (read_image(tmp_path / name) == corners()).all()
        assert (video.read_frames(tmp_path / name) == corners()).all()


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_deep_pictures_are_turned_upright(tmp_path, suffix):
    stored, exif = turned(6)
    cv2.imwrite(str(tmp_path / "deep.tiff"), stored[..., ::-1].astype(np.uint16) * 257)
    content = png(2, 16, stored.astype(np.uint16) * 257, b"eXIf" + exif.tobytes()[6:])
    (tmp_path / "deep.png").write_bytes(content)
    if suffix == "tiff":  # OpenCV writes no orientation: its tag in the place of one of the same type
        data = (tmp_path / "deep.tiff").read_bytes()
        planar = (284).to_bytes(2, "little") + b"\3\0\1\0\0\0\1\0\0\0"
        assert data.count(planar) == 1
        (tmp_path / "deep.tiff").write_bytes(
            data.replace(planar, (274).to_bytes(2, "little") + b"\3\0\1\0\0\0\6\0\0\0")
        )
    assert (read_image(tmp_path / f"deep.{suffix}") == corners()).all()


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.gif"])
def test_pictures_that_move_are_videos(tmp_path, name):
    frames = [np.full((H, W, 4), 40 * i, np.uint8) for i in range(1, 5)]
    for frame in frames:
        frame[..., 3] = 255
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(tmp_path / name, save_all=True, append_images=rest, duration=80, lossless=True)
    with pytest.raises(MovingError, match=rf"image .*{name}: got a moving picture of 4 frames, wanted"):
        read_image(tmp_path / name)
    with VideoReader(tmp_path / name) as reader:
        assert not reader.is_still
        assert reader.frames([3, 0])[:, 0, 0, 0].tolist() == [160, 40]
        assert reader.info[:2] == (4, pytest.approx(12.5))
        assert reader.fps == pytest.approx(12.5)


def test_the_content_counts_and_not_the_suffix(tmp_path):
    Image.fromarray(columns()).save(tmp_path / "still.gif")
    (tmp_path / "still.mp4").write_bytes((tmp_path / "still.gif").read_bytes())
    for name in ("still.gif", "still.mp4"):
        assert (middles(read_image(tmp_path / name))[0] == RED[:3]).all()
        with VideoReader(tmp_path / name) as reader:
            assert reader.is_still


def test_a_photograph_with_a_preview_does_not_move(tmp_path):
    """Phones write JPEG files of several pictures."""
    first, second = Image.new("RGB", (32, 16), RED[:3]), Image.new("RGB", (8, 4))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert abs(read_image(tmp_path / "a.jpg").astype(int) - RED[:3]).max() < 4
