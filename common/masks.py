"""Which frames of a clip are given to an image-to-video model, and what it is shown of them (Open-Sora Plan
v1.3, arXiv:2412.00131, section 2.3).

The model is shown the clip with -1 in every frame that it has to generate, as latents, and a mask that is 1
there. One model so learns six tasks, and any other choice of frames.

Shapes: B clips, C channels, T frames, H height, W width, of pixels or of latents; M mask channels; S tokens,
F values of a patch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import model_validator

from .config import Config, key
from .errors import InputError
from .models import TransformerConfig
from .skiparse import to_patches

MaskType = Literal["t2iv", "i2v", "transition", "continuation", "clear", "random_temporal"]
ImageMaskType = Literal["t2iv", "clear"]
VIDEO_RATIOS: dict = {"t2iv": 5, "continuation": 5, "random_temporal": 10, "i2v": 40, "transition": 40}
IMAGE_RATIOS: dict = {"t2iv": 90, "clear": 10}
MASKED = -1.0  # pixels of frames to be generated: black


class MaskConfig(Config):
    """How often each task is trained. Ratios are taken relative to their sum; all zero: all alike."""

    video: dict[MaskType, float] = key(VIDEO_RATIOS)
    image: dict[ImageMaskType, float] = key(IMAGE_RATIOS)
    # bounds of the share of frames that continuation and random_temporal give
    min_clear_ratio: float = key(0.0, ge=0, le=1)
    max_clear_ratio: float = key(1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> "MaskConfig":
        if self.min_clear_ratio > self.max_clear_ratio:
            raise InputError(
                f"min_clear_ratio={self.min_clear_ratio} is above max_clear_ratio={self.max_clear_ratio}"
            )
        for name in ("video", "image"):
            ratios = getattr(self, name)
            if not ratios or min(ratios.values()) < 0 or not math.isfinite(sum(ratios.values())):
                raise InputError(f"{name}={ratios} must name a task or more, each with a ratio of 0 or more")
        return self


class Condition(NamedTuple):
    """What the model is shown of clips beside their noisy latents."""

    latent_BCTHW: np.ndarray  # of the clip with nothing in the frames to be generated
    mask_BMTHW: np.ndarray  # float32: 1 where it has to generate

    def patches(self, config: TransformerConfig) -> np.ndarray:
        """(S,B,F) in native order: the latents' values "(p q c)", then the mask's "(p q m)"."""
        cut = (to_patches(part, config.patch_size, config.skip_stride) for part in self)
        return np.concatenate([*cut], axis=-1).astype(np.float32)


def shares_of(ratios: Mapping[Any, float]) -> dict[str, float]:
    """Ratios that add up to 1."""
    total = sum(ratios.values())
    return {name: ratio / total if total else 1 / len(ratios) for name, ratio in ratios.items()}


def given_frames(
    kind: str,
    num_frames: int,
    draw_count: Callable[[int, int], int],
    draw_frames: Callable[[int, int], Sequence[int]],
    clear_ratios: tuple[float, float] = (0.0, 1.0),
) -> np.ndarray:
    """Which frames a task gives: boolean (T,).

    Args:
        draw_count: a number from the first to the second, both included.
        draw_frames: of so many frames, the indices of so many different ones.
        clear_ratios: the least and the largest share of frames that are given where it is drawn.
    """
    given_T = np.zeros(num_frames, bool)
    low, high = (math.floor(num_frames * clear_ratios[0]), math.ceil(num_frames * clear_ratios[1]))
    if kind == "i2v":
        given_T[0] = True
    elif kind == "transition":
        given_T[[0, -1]] = True
    elif kind == "clear":
        given_T[:] = True
    elif kind == "continuation":
        given_T[: draw_count(low, high)] = True
    elif kind == "random_temporal":
        given_T[list(draw_frames(num_frames, draw_count(low, high)))] = True
    else:
        assert kind == "t2iv"
    return given_T


def draw_given(config: MaskConfig, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Which frames one clip of a training batch gives: boolean (T,)."""
    shares = shares_of(config.image if num_frames == 1 else config.video)
    kinds = sorted(shares)  # in whatever order a config names them
    kind = rng.choice(kinds, p=[shares[kind] for kind in kinds])
    return given_frames(
        str(kind),
        num_frames,
        lambda low, high: int(rng.integers(low, high + 1)),
        lambda total, count: rng.permutation(total)[:count].tolist(),
        (config.min_clear_ratio, config.max_clear_ratio),
    )


def generate_mask(
    given_BT: np.ndarray, inside_BTHW: np.ndarray | None, height: int, width: int
) -> np.ndarray:
    """generate_B1THW, float32: 1 where the model has to generate, 0 on given frames and on padding.

    Args:
        inside_BTHW: where pixels are video; None: all are.
    """
    B, T = given_BT.shape
    mask = np.broadcast_to(~given_BT[:, None, :, None, None], (B, 1, T, height, width))
    return (mask if inside_BTHW is None else mask & inside_BTHW[:, None]).astype(np.float32)


def latent_mask(
    given_BT: np.ndarray, latent_hw: tuple[int, int], stride_thw: tuple[int, int, int]
) -> np.ndarray:
    """The mask of whole clips in the size of latents (B,M,T,H,W)."""
    _, stride_h, stride_w = stride_thw
    return compress_mask(
        generate_mask(given_BT, None, latent_hw[0] * stride_h, latent_hw[1] * stride_w), stride_thw
    )


def masked(x_BCTHW: np.ndarray, generate_B1THW: np.ndarray) -> np.ndarray:
    """The clips with `MASKED` in the frames to be generated."""
    return np.where(generate_B1THW < 0.5, x_BCTHW, np.float32(MASKED))


def add_noise(
    x_BCTHW: np.ndarray, generate_B1THW: np.ndarray, noise_BCTHW: np.ndarray, sigma_B: np.ndarray
) -> np.ndarray:
    """The clips with noise of standard deviation sigma on what is given."""
    sigma = np.asarray(sigma_B, np.float32).reshape(-1, 1, 1, 1, 1)
    return x_BCTHW + np.where(generate_B1THW < 0.5, sigma * noise_BCTHW, np.float32(0))


def compress_mask(generate_B1THW: np.ndarray, stride_thw: tuple[int, int, int]) -> np.ndarray:
    """The mask in the size of latents (B,M,T,H,W): the frames of a latent frame become its M channels.

    A latent cell takes bilinear values at its centre. With an odd number of frames the first stands for all
    channels of the first latent frame.
    """
    stride_t, stride_h, stride_w = stride_thw
    mask_BTHW = _centres(_centres(generate_B1THW[:, 0], stride_h, 2), stride_w, 3)
    if mask_BTHW.shape[1] % 2:
        mask_BTHW = np.concatenate([np.repeat(mask_BTHW[:, :1], stride_t, axis=1), mask_BTHW[:, 1:]], axis=1)
    B, T, H, W = mask_BTHW.shape
    return mask_BTHW.reshape(B, T // stride_t, stride_t, H, W).transpose(0, 2, 1, 3, 4)


def _centres(mask: np.ndarray, stride: int, axis: int) -> np.ndarray:
    """Half-pixel bilinear values at the centre of every `stride` pixels, an even number."""
    pixels = np.moveaxis(mask, axis, -1)
    after = stride // 2
    middle = (pixels[..., after - 1 :: stride] + pixels[..., after::stride]) * np.float32(0.5)
    return np.moveaxis(middle, -1, axis)


def pixels_of(cells_BTHW: np.ndarray, stride_thw: tuple[int, int, int]) -> np.ndarray:
    """Latent cells as pixels: the first latent frame is one frame, every other `stride_t`."""
    stride_t, stride_h, stride_w = stride_thw
    counts = [1, *[stride_t] * (cells_BTHW.shape[1] - 1)]
    frames = np.repeat(cells_BTHW, counts, axis=1)
    return frames.repeat(stride_h, axis=2).repeat(stride_w, axis=3)
