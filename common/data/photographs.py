"""Freely licensed photographs from the pip package scikit-image, and a camera that glides over them.

Shape legend: T frames, H height, W width, C channels (RGB). Pixels are uint8.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from common.errors import InputError

PHOTOGRAPHS = (  # those that scikit-image calls CC0, in the public domain or free of known restrictions
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "retina.jpg",
    "rocket.jpg",
)
MAX_ZOOM = 1.5  # within one clip
MAX_PAN = 0.75  # within one clip, of the shorter side of the window


def find_photographs() -> list[Path]:
    """The photographs of the installed scikit-image; it is not imported.

    Raises:
        InputError: it is not installed, or has other files.
    """
    package = find_spec("skimage")
    if package is None or not package.submodule_search_locations:
        raise InputError("photographs: got no scikit-image, wanted its pictures; pip install scikit-image")
    folder = Path(package.submodule_search_locations[0]) / "data"
    missing = [name for name in PHOTOGRAPHS if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"photographs {folder}: got no {', '.join(missing)}, wanted those of version 0.26; "
            "pip install scikit-image==0.26.0"
        )
    return [folder / name for name in PHOTOGRAPHS]


@cache
def read_photograph(path: Path) -> np.ndarray:
    """The picture (H, W, 3), kept for the next time."""
    from PIL import Image  # comes with scikit-image; OpenCV grumbles about their colour profiles

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def glide(
    image_HWC: np.ndarray, rng: np.random.Generator, num_frames: int, height: int, width: int
) -> np.ndarray:
    """A clip (T, H, W, 3) of a random window that pans and zooms over a picture, slow at both ends."""
    H, W, _ = image_HWC.shape
    largest = min(H / height, W / width)  # scale: pixels of the picture for one pixel of the clip
    smallest = min(max(1.0, largest / 4), largest / MAX_ZOOM)
    first = rng.uniform(np.log(smallest), np.log(largest))
    last = np.clip(first + rng.uniform(-1, 1) * np.log(MAX_ZOOM), np.log(smallest), np.log(largest))
    scales = np.exp([first, last])
    rooms = np.array([(H - height * scale, W - width * scale) for scale in scales])
    start = rng.random(2) * rooms[0]  # top and left
    pan = rng.uniform(-1, 1, 2) * MAX_PAN * scales[0] * min(height, width)
    end = np.clip(start + pan, 0, rooms[1])
    time = np.linspace(0, 1, num_frames) if num_frames > 1 else np.zeros(1)
    picture_HWC, ratio = _shrunk(image_HWC, scales.min())
    frames = []
    for way in time * time * (3 - 2 * time):
        scale = ratio * (scales[0] + (scales[1] - scales[0]) * way)
        top, left = ratio * (start + (end - start) * way)
        frames.append(_window(picture_HWC, top, left, scale, (width, height)))
    return np.stack(frames)


def _shrunk(image_HWC: np.ndarray, scale: float) -> tuple[np.ndarray, float]:
    """The picture averaged down by `scale` if that shrinks it, so that windows do not alias; by how much."""
    if scale <= 1:
        return image_HWC, 1.0
    H, W, _ = image_HWC.shape
    size = max(1, round(W / scale)), max(1, round(H / scale))
    return cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA), size[0] / W


def _window(
    picture_HWC: np.ndarray, top: float, left: float, scale: float, size_WH: tuple[int, int]
) -> np.ndarray:
    shift = scale / 2 - 0.5  # a pixel's place is its centre: scale * (x + 0.5) + left = x' + 0.5
    matrix = np.array([[scale, 0, left + shift], [0, scale, top + shift]])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture_HWC, matrix, size_WH, flags=how, borderMode=cv2.BORDER_REPLICATE)
