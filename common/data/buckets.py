"""Which size a clip is trained at, and what keeps a size from being used.

Clips of one size and length are a bucket. Functions take numbers or arrays alike: the scan of a million
annotations and the reader of one clip go by the same rules.
"""

from typing import Any, NamedTuple

import numpy as np
from pydantic import model_validator

from common.config import Config, key
from common.errors import InputError

VAE_STRIDE = (
    4,
    8,
    8,
)  # frames, rows and columns of pixels in one latent cell; the first frame is a cell alone
HW_STRIDE = 32  # pixels; sides that are multiples never need padding
TOKEN = 16  # pixels along the side of a token: a patch of 2 x 2 latent cells


class Bucket(NamedTuple):
    """The size of a clip in pixels."""

    num_frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.num_frames}x{self.height}x{self.width}"

    @property
    def num_tokens(self) -> int:
        """What the transformer sees of one clip, before padding."""
        return latent_length(self.num_frames) * -(-self.height // TOKEN) * -(-self.width // TOKEN)


def latent_length(num_frames: Any, stride: int = VAE_STRIDE[0]) -> Any:
    """Latent frames of a clip: the first frame is one, then every `stride` begun are one more."""
    return -(-(num_frames - 1) // stride) + 1


def rounded_up(count: int, multiple: int) -> int:
    """The next multiple at or above `count`."""
    return -(-count // multiple) * multiple


class SizesConfig(Config):
    """One of three: `height` and `width`, `max_tokens`, or `max_height` and `max_width`."""

    height: int | None = key(None, ge=TOKEN, multiple_of=TOKEN)  # one size for every clip
    width: int | None = key(None, ge=TOKEN, multiple_of=TOKEN)
    max_tokens: int | None = key(None, ge=1)  # of a frame; a token is 16 x 16 pixels
    min_tokens: int = key(1, ge=1)
    max_height: int | None = key(None, ge=TOKEN)  # clips are shrunk until they fit in
    max_width: int | None = key(None, ge=TOKEN)
    min_height: int = key(1, ge=1)
    min_width: int = key(1, ge=1)
    hw_stride: int = key(HW_STRIDE, ge=TOKEN, multiple_of=TOKEN)  # sizes are multiples of it
    max_aspect: float = key(2.0, ge=1)  # of height to width, or against that of the one size

    @model_validator(mode="after")
    def _one_kind(self) -> "SizesConfig":
        pairs = ((self.height, self.width), (self.max_tokens,), (self.max_height, self.max_width))
        given = [pair for pair in pairs if any(value is not None for value in pair)]
        if len(given) != 1 or None in given[0]:
            raise InputError(
                "give exactly one of height and width (one size for all), max_tokens, "
                "and max_height and max_width"
            )
        return self


class Sizes(NamedTuple):
    """A size for each clip (0: none), and the clips with a fault; a clip may have several."""

    height: Any
    width: Any
    below_stride: Any
    too_small: Any
    bad_aspect: Any


def sizes_of(config: SizesConfig, height: Any, width: Any) -> Sizes:
    """The training size of clips of this height and width."""
    if config.height is not None and config.width is not None:
        target = config.height / config.width
        fine = has_aspect(height, width, target / config.max_aspect, target * config.max_aspect)
        same = np.zeros_like(height)
        return Sizes(same + config.height, same + config.width, same > 0, same > 0, ~fine)
    h, w = cut_to_stride(*scaled_size(config, height, width), config.hw_stride)
    too_small = h * w < config.min_tokens * TOKEN**2
    too_small |= (h < config.min_height) | (w < config.min_width)
    fine = has_aspect(h, w, 1 / config.max_aspect, config.max_aspect)
    return Sizes(h, w, (h <= 0) | (w <= 0), too_small, ~fine)


def scaled_size(config: SizesConfig, height: Any, width: Any) -> tuple[Any, Any]:
    """Height and width after shrinking, before the cut to multiples of the stride."""
    if config.max_tokens is not None:
        return shrunk_to_area(height, width, config.max_tokens * TOKEN**2)
    return fitted(height, width, config.max_height, config.max_width, enlarge=False)


def shrunk_to_area(height: Any, width: Any, max_area: int) -> tuple[Any, Any]:
    """The size shrunk to at most `max_area` pixels, sides rounded down; never enlarged."""
    area = np.maximum(np.multiply(height, width, dtype=np.int64), 1)
    scale = np.where(area > max_area, np.sqrt(max_area / area), 1.0)
    return _whole(height * scale), _whole(width * scale)


def fitted(height: Any, width: Any, max_height: Any, max_width: Any, enlarge: bool) -> tuple[Any, Any]:
    """The size scaled until it just fits, sides rounded down; a smaller one stays unless `enlarge`."""
    scale = np.minimum(max_height / np.maximum(height, 1), max_width / np.maximum(width, 1))
    scale = scale if enlarge else np.minimum(scale, 1.0)
    return _whole(height * scale), _whole(width * scale)


def _whole(length: Any) -> Any:
    """Rounded down, but 351.9999999 (of 720 * (352 / 720)) is 352."""
    return np.floor(length + 1e-9).astype(np.int64)


def cut_to_stride(height: Any, width: Any, stride: int) -> tuple[Any, Any]:
    """The largest multiples of `stride` within a size."""
    return height // stride * stride, width // stride * stride


def has_aspect(height: Any, width: Any, least: float, greatest: float) -> Any:
    """Whether height / width lies between two bounds."""
    aspect = height / np.maximum(width, 1)
    return (aspect >= least) & (aspect <= greatest)
