"""Pictures come in upright, as RGB and 8 bits, and go out as the model's numbers say."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from common import images
from tests.recorded import recorded

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


HEADER = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
HUGE = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + HEADER + struct.pack(">I", zlib.crc32(HEADER))


def corners(side: int = 16) -> np.ndarray:
    """Red, green over blue, white: (side, 2 * side, 3), so that every turn and mirroring shows."""
    quarters = np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8)
    return quarters.repeat(side // 2, 0).repeat(side, 1)


def clip(frames: int = 5, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def save(path: Path, pixels_bgr: np.ndarray) -> Path:
    path.write_bytes(cv2.imencode(path.suffix, pixels_bgr)[1].tobytes())
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_a_picture_is_rgb(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", corners()[..., ::-1])
    assert (images.read_image(path) == corners()).all()


def test_a_name_may_have_any_letters(tmp_path):
    images.write_png(tmp_path / "猫 é.png", corners())
    assert (images.read_image(tmp_path / "猫 é.png") == corners()).all()


@pytest.mark.parametrize(("orientation", "quarter_turns"), [(1, 0), (3, 2), (6, 1), (8, 3)])
def test_a_photograph_is_turned_upright(tmp_path, orientation, quarter_turns):
    stored = np.rot90(corners(), quarter_turns)  # EXIF 6: the camera's top is the picture's right
    jpeg = cv2.imencode(".jpg", np.ascontiguousarray(stored[..., ::-1]))[1].tobytes()
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\0\0" + b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
    (tmp_path / "a.jpg").write_bytes(
        jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    )
    image_HWC = images.read_image(tmp_path / "a.jpg")
    assert image_HWC.shape == corners().shape
    centres = (slice(4, None, 8), slice(8, None, 16))
    assert abs(image_HWC[centres].astype(int) - corners()[centres]).max() < 12


def test_grey_becomes_rgb(tmp_path):
    grey_HW = np.arange(48, dtype=np.uint8).reshape(6, 8)
    image_HWC = images.read_image(save(tmp_path / "a.png", grey_HW))
    assert (image_HWC == grey_HW[..., None]).all()
    assert image_HWC.shape == (6, 8, 3)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, channels):
    levels_HW = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    levels_HW[:15] += 128  # the largest rounding error
    pixels = np.stack([levels_HW] * channels, axis=-1)
    if channels == 4:
        pixels[..., 3] = 65535
    image_HWC = images.read_image(save(tmp_path / "a.png", pixels.squeeze()))
    assert (image_HWC == np.arange(256).reshape(16, 16, 1)).all()


def test_transparent_pixels_lie_on_white(tmp_path):
    bgra = np.zeros((1, 3, 4), np.uint8)
    bgra[0, :, 2], bgra[0, :, 3] = 255, (0, 51, 255)
    image_HWC = images.read_image(save(tmp_path / "a.png", bgra))
    assert image_HWC.tolist() == [[list(WHITE), [255, 204, 204], list(RED)]]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("gone.png", None, "no such file"),
        ("empty.png", b"", "0 bytes that do not decode"),
        ("a.png", b"hello", "5 bytes that do not decode"),
        ("half.jpg", b"\xff\xd8\xff", "3 bytes that do not decode"),
        ("huge.png", HUGE, "33 bytes that do not decode"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(tmp_path, name, content, problem):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"image .*{name}: got {problem}, wanted a PNG.+; \w+"):
        images.read_image(tmp_path / name)


def test_float_pixels_are_refused(tmp_path):
    path = save(tmp_path / "a.tiff", np.ones((4, 4, 3), np.float32))
    with pytest.raises(ValueError, match=r"got float32 pixels, wanted 8 or 16 bits"):
        images.read_image(path)


def test_png_is_lossless_and_replaces_the_old_file(tmp_path):
    (tmp_path / "a.png").write_bytes(b"old")
    images.write_png(tmp_path / "a.png", clip()[0])
    assert (images.read_image(tmp_path / "a.png") == clip()[0]).all()
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_failed_block_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half() -> None:
        with images.whole_file(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("image", [clip(), clip()[0, ..., 0], clip()[0] / 255])
def test_other_pixels_are_not_written(tmp_path, image):
    with pytest.raises(ValueError, match=r"got .+, wanted uint8 \(H, W, 3\)"):
        images.write_png(tmp_path / "a.png", image)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"writing .*no/a\.png: got 'No such file.*check that .*no exists"):
        images.write_png(tmp_path / "no" / "a.png", clip()[0])


def test_a_contact_sheet_reads_left_to_right_and_down(tmp_path):
    frames_THWC = clip(5)
    images.write_contact_sheet(tmp_path / "sheet.png", frames_THWC, columns=3)
    sheet_HWC = images.read_image(tmp_path / "sheet.png")
    assert sheet_HWC.shape == (2 * 6, 3 * 8, 3)
    cells = [sheet_HWC[top : top + 6, left : left + 8] for top in (0, 6) for left in (0, 8, 16)]
    assert all((cell == frame).all() for cell, frame in zip(cells, frames_THWC, strict=False))
    assert not cells[5].any()


def test_a_contact_sheet_of_a_long_clip_has_both_ends():
    frames_THWC = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1).repeat(3, axis=3)
    assert images.contact_sheet(frames_THWC, columns=2, max_frames=4)[..., 0].tolist() == [[0, 33], [66, 99]]


def test_side_by_side_keeps_left_on_the_left():
    both_THWC = images.side_by_side(clip(), 255 - clip())
    assert (both_THWC[:, :, :8] == clip()).all()
    assert (both_THWC[:, :, 8:] == 255 - clip()).all()
    with pytest.raises(ValueError, match=r"got \(5, 6, 8, 3\) and \(4, 6, 8, 3\)"):
        images.side_by_side(clip(), clip(4))


def test_pixels_survive_the_way_through_the_model():
    x_1CTHW = images.to_model(clip())
    assert x_1CTHW.shape == (1, 3, 5, 6, 8)
    assert x_1CTHW.dtype == np.float32
    np.testing.assert_allclose(x_1CTHW[0, 1, 2], clip()[2, :, :, 1] / 127.5 - 1, rtol=0, atol=1e-6)
    half_a_level = np.float32(1 / 255)  # fractions are dropped, so rounding errors must not cross a level
    assert (images.to_uint8(x_1CTHW + half_a_level) == clip()).all()


def test_pixels_are_cut_and_truncated():
    x_CTHW = np.array([-1.5, -1, 0, 0.9999, 1, 7], np.float32).reshape(1, 1, 1, -1).repeat(3, 0)
    assert images.to_uint8(x_CTHW)[0, 0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


def test_pixels_equal_the_reference():
    outputs = recorded("sample_t2v_ddim").outputs
    decoded_BCTHW = outputs["decoded_float"].swapaxes(1, 2)
    assert (images.to_uint8(decoded_BCTHW) == outputs["video_uint8"][0]).all()


@pytest.mark.parametrize("shape", [(2, 3, 1, 4, 4), (4, 1, 4, 4), (3, 4, 4)])
def test_what_is_not_one_clip_is_refused(shape):
    with pytest.raises(ValueError, match=r"got shape .+, wanted \(3, T, H, W\) of one clip"):
        images.to_uint8(np.zeros(shape, np.float32))


def test_nan_is_counted():
    x_CTHW = np.zeros((3, 1, 2, 2), np.float32)
    x_CTHW[0, 0, 1] = np.nan
    with pytest.raises(ValueError, match="got 2 NaN of 12"):
        images.to_uint8(x_CTHW)


@pytest.mark.parametrize("size", [(6, 8), (3, 4), (12, 16), (5, 3), (3, 20), (7, 7)])
def test_resize_crop_gives_the_size_asked_for(size):
    assert images.resize_crop(clip(), *size).shape == (5, *size, 3)


def test_resize_crop_keeps_the_ratio_and_the_centre():
    frames_THWC = np.zeros((1, 40, 80, 3), np.uint8)
    frames_THWC[:, 10:30, 30:50] = 255  # a square in the middle
    image_HW = images.resize_crop(frames_THWC, 20, 20)[0, ..., 0]
    wanted = np.zeros((20, 20), np.uint8)
    wanted[5:15, 5:15] = 255
    assert (image_HW == wanted).all()
    assert (images.resize_crop(frames_THWC, 40, 80) == frames_THWC).all()


def test_shrinking_does_not_alias():
    stripes_THWC = np.zeros((1, 64, 64, 3), np.uint8)
    stripes_THWC[:, :, 1::4] = stripes_THWC[:, :, 2::4] = 255  # just where plain interpolation looks
    assert (abs(images.resize_crop(stripes_THWC, 16, 16).astype(int) - 127.5) < 2).all()
