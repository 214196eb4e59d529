"""Pictures as files and as model input: photographs, PNG, contact sheets, and the pixel range of the model.

Shape legend: B batch, C channels, T frames, H height, W width. Files and screens are uint8 RGB with C last.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from .alpha import on_white
from .errors import MediaError
from .files import whole_file

WANTED = "wanted a PNG, JPEG, WebP, BMP or TIFF picture"
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000")
TIFF_STARTS = (b"II*\0", b"MM\0*")
MAY_MOVE = ("PNG", "WEBP", "GIF")  # what holds several pictures in other formats are previews or pages
PILLOW_ERRORS = (  # that it raises for damaged files; it promises no more than OSError
    *(OSError, EOFError, SyntaxError, ValueError, IndexError, OverflowError, RuntimeError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


class MovingError(MediaError):
    """A file that moves, where a still picture is wanted."""


def read_image(path: str | Path) -> np.ndarray:
    """The picture as uint8 RGB (H, W, 3), turned upright as its EXIF data say.

    Grey and palettes become RGB, 16 bits are scaled to 8, transparent pixels lie on white.

    Raises:
        MovingError: a GIF, WebP or PNG of several frames.
        MediaError: no such file, no picture, or a depth other than 8 or 16 bits.
    """
    path = Path(path)
    if not path.is_file():
        raise MediaError(f"image {path}: got no such file, {WANTED}; check the path")
    try:
        decoded = _decode(path)
    except (*PILLOW_ERRORS, cv2.error) as error:
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        got = f"{path.stat().st_size} bytes that do not decode"
        raise MediaError(f"image {path}: got {got}, {WANTED}{reason}; save it again") from None
    if decoded.num_frames > 1:
        raise MovingError(
            f"image {path}: got a moving picture of {decoded.num_frames} frames, wanted a still one; save "
            "the frame you want as PNG, or all as MP4"
        )
    pixels = decoded.pixels_HWC
    if pixels.dtype not in (np.uint8, np.uint16):
        raise MediaError(f"image {path}: got {pixels.dtype} pixels, wanted 8 or 16 bits; convert it to PNG")
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, axis=-1)
    if pixels.shape[2] == 4:
        pixels = on_white(pixels)
    return np.ascontiguousarray(TURNS[decoded.orientation](pixels))


class _Decoded(NamedTuple):
    pixels_HWC: np.ndarray  # grey (H, W), RGB or RGBA, of any depth
    orientation: int = 1  # as EXIF numbers them
    num_frames: int = 1


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # what makes a picture of this orientation upright
    1: lambda x_HWC: x_HWC,
    2: lambda x_HWC: x_HWC[:, ::-1],
    3: lambda x_HWC: x_HWC[::-1, ::-1],
    4: lambda x_HWC: x_HWC[::-1],
    5: lambda x_HWC: x_HWC.swapaxes(0, 1),
    6: lambda x_HWC: np.rot90(x_HWC, -1),
    7: lambda x_HWC: x_HWC.swapaxes(0, 1)[::-1, ::-1],
    8: lambda x_HWC: np.rot90(x_HWC),
}


def _decode(path: Path) -> _Decoded:
    """What Pillow and OpenCV make of a file; their errors are the caller's."""
    try:
        image = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        if _begins(path, *TIFF_STARTS):  # of three floats a pixel, for one
            return _Decoded(_decode_deep(path))
        raise
    with image:
        num_frames = getattr(image, "n_frames", 1) if image.format in MAY_MOVE else 1
        if num_frames > 1:
            return _Decoded(np.empty(0), num_frames=num_frames)
        deep = any(";16" in str(tile.args) for tile in image.tile) and image.mode != "I;16"
        image.load()  # which finds what is damaged or missing
        orientation = _orientation(image)  # of a TIFF 1 by now: Pillow turns it here, OpenCV below
        if deep:  # Pillow leaves 8 of the 16 bits
            return _Decoded(_decode_deep(path), orientation)
        if image.mode in ("I", "F"):
            return _Decoded(np.asarray(image))
        if image.mode.startswith("I;16"):
            return _Decoded(_grey_of_16_bits(image), orientation)
        mode = "RGBA" if image.has_transparency_data else "RGB"
        return _Decoded(np.asarray(image if image.mode == mode else image.convert(mode)), orientation)


def _decode_deep(path: Path) -> np.ndarray:
    """RGB or RGBA of any depth, as it lies in the file."""
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise UnidentifiedImageError
    if pixels.ndim == 2:
        return pixels
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def _grey_of_16_bits(image: Image.Image) -> np.ndarray:
    grey = np.asarray(image).astype(np.uint16)
    level = image.info.get("transparency")
    if level is None:
        return grey
    return np.stack([grey, grey, grey, np.where(grey == level, 0, 65535).astype(np.uint16)], axis=-1)


def _orientation(image: Image.Image) -> int:
    """As EXIF says, from 1 to 8; 1 where that cannot be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except PILLOW_ERRORS:
        return 1
    return found if isinstance(found, int) and found in TURNS else 1


def is_animated_webp(path: Path) -> bool:
    """Whether a file is WebP of several frames, by its first bytes (RFC 9649)."""
    with path.open("rb") as file:
        start = file.read(21)
    return start[:4] == b"RIFF" and start[8:16] == b"WEBPVP8X" and len(start) == 21 and bool(start[20] & 2)


def animation(path: Path) -> Iterator[tuple[np.ndarray, float]]:
    """The frames of an animated WebP or PNG, RGB, upright and on white; and when each is shown, in seconds.

    Raises:
        MediaError: it is damaged from there on.
    """
    frames = _animation(path)
    for number in count():
        try:
            decoded, time_s = next(frames, (None, 0.0))
        except PILLOW_ERRORS as error:
            raise MediaError(
                f"video {path}: got '{error}' after {number} frames, wanted a whole file; fetch or convert "
                "it again"
            ) from None
        if decoded is None:
            return
        image_HWC = TURNS[decoded.orientation](on_white(decoded.pixels_HWC))
        yield np.ascontiguousarray(image_HWC), time_s


def _animation(path: Path) -> Iterator[tuple[_Decoded, float]]:
    """What Pillow makes of each frame; its errors are the caller's."""
    time_s = 0.0
    with Image.open(path, formats=("WEBP", "PNG")) as image:
        num_frames = getattr(image, "n_frames", 1)
        first = 1 if getattr(image, "default_image", False) else 0  # that one is for what cannot show motion
        orientation = _orientation(image)  # of all frames
        for number in range(first, num_frames):
            image.seek(number)
            yield _Decoded(np.asarray(image.convert("RGBA")), orientation, num_frames), time_s
            time_s += image.info.get("duration", 0) / 1000


def _begins(path: Path, *starts: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(max(map(len, starts))).startswith(starts)


def write_png(path: str | Path, image_HWC: np.ndarray) -> None:
    """Write uint8 RGB (H, W, 3) without loss; the file is whole or absent.

    Raises:
        ValueError: other pixels.
        InputError: the file cannot be written.
    """
    if image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or image_HWC.dtype != np.uint8:
        got = f"{image_HWC.dtype} of shape {image_HWC.shape}"
        raise ValueError(f"writing {path}: got {got}, wanted uint8 (H, W, 3); see to_uint8")
    encoded, data = cv2.imencode(".png", cv2.cvtColor(image_HWC, cv2.COLOR_RGB2BGR))
    assert encoded
    with whole_file(path) as temporary:
        temporary.write_bytes(data.tobytes())


def contact_sheet(frames_THWC: np.ndarray, columns: int = 4, max_frames: int = 16) -> np.ndarray:
    """Frames of a clip in rows as one picture (H, W, 3): `max_frames` at most, evenly over the clip."""
    check_frames(frames_THWC, "contact sheet")
    count = min(len(frames_THWC), max_frames)
    picked = frames_THWC[np.linspace(0, len(frames_THWC) - 1, count).round().astype(int)]
    columns = min(columns, count)
    rows = -(-count // columns)
    _, H, W, C = picked.shape
    cells = np.zeros((rows * columns, H, W, C), np.uint8)  # cells left over stay black
    cells[:count] = picked
    # (r c) h w C -> (r h) (c w) C
    return cells.reshape(rows, columns, H, W, C).transpose(0, 2, 1, 3, 4).reshape(rows * H, columns * W, C)


def write_contact_sheet(
    path: str | Path, frames_THWC: np.ndarray, columns: int = 4, max_frames: int = 16
) -> None:
    """Write the contact sheet of a clip as PNG."""
    write_png(path, contact_sheet(frames_THWC, columns, max_frames))


def side_by_side(left_THWC: np.ndarray, right_THWC: np.ndarray) -> np.ndarray:
    """Two clips of equal size in one, the second to the right of the first.

    Raises:
        ValueError: they differ in length or size.
    """
    check_frames(left_THWC, "left clip")
    check_frames(right_THWC, "right clip")
    if left_THWC.shape != right_THWC.shape:
        raise ValueError(
            f"side by side: got {left_THWC.shape} and {right_THWC.shape}, wanted one size and length; "
            "cut the longer one and use resize_crop"
        )
    return np.concatenate([left_THWC, right_THWC], axis=2)


def to_model(frames_THWC: np.ndarray) -> np.ndarray:
    """uint8 pixels as the model takes them, float32 in [-1, 1]: "t h w c -> 1 c t h w"."""
    check_frames(frames_THWC, "model input")
    x_THWC = frames_THWC.astype(np.float32) / 255 * 2 - 1
    return np.ascontiguousarray(x_THWC.transpose(3, 0, 1, 2)[None])


def to_uint8(x_CTHW: np.ndarray) -> np.ndarray:
    """What the VAE decodes as uint8 pixels: "c t h w -> t h w c"; a leading batch of one is accepted.

    Values outside [-1, 1] are cut, fractions are dropped: both as the reference does.

    Raises:
        ValueError: not one clip, or NaN.
    """
    if x_CTHW.ndim == 5 and len(x_CTHW) == 1:
        x_CTHW = x_CTHW[0]
    if x_CTHW.ndim != 4 or len(x_CTHW) != 3:
        raise ValueError(
            f"pixels: got shape {x_CTHW.shape}, wanted (3, T, H, W) of one clip; pass x_BCTHW[i]"
        )
    x_THWC = x_CTHW.transpose(1, 2, 3, 0).astype(np.float32)
    num_nan = int(np.isnan(x_THWC).sum())
    if num_nan:
        raise ValueError(f"pixels: got {num_nan} NaN of {x_THWC.size}, wanted numbers; decode in float32")
    return ((x_THWC / 2 + 0.5).clip(0, 1) * 255).astype(np.uint8)


def resize_crop(frames_THWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Frames of this size: scaled without distortion until they just cover it, then cut around the centre."""
    check_frames(frames_THWC, "resize")
    _, H, W, _ = frames_THWC.shape
    scale = max(height / H, width / W)
    scaled_H, scaled_W = max(height, round(H * scale)), max(width, round(W * scale))
    top, left = (scaled_H - height) // 2, (scaled_W - width) // 2
    if (scaled_H, scaled_W) != (H, W):
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR  # area: shrinking must not alias
        frames_THWC = np.stack([cv2.resize(f, (scaled_W, scaled_H), interpolation=how) for f in frames_THWC])
    return np.ascontiguousarray(frames_THWC[:, top : top + height, left : left + width])


def check_frames(frames_THWC: np.ndarray, where: str) -> None:
    """Raise ValueError, opened by `where`, unless `frames_THWC` is uint8 (T, H, W, 3) and not empty."""
    if (
        frames_THWC.ndim != 4
        or frames_THWC.shape[3] != 3
        or frames_THWC.dtype != np.uint8
        or not frames_THWC.size
    ):
        got = f"{frames_THWC.dtype} of shape {frames_THWC.shape}"
        raise ValueError(f"{where}: got {got}, wanted uint8 (T, H, W, 3) with T >= 1; see to_uint8")
