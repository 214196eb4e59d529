"""Which sizes and lengths a transformer was trained on, and how far from them a wanted video is."""

import math
from collections.abc import Sequence

from .data.buckets import HW_STRIDE
from .models import TransformerConfig, VAEConfig

FAR_AREA, FAR_ASPECT = 2.0, 2.0  # times the trained area, or height to width; or as much below
SHORT = 0.25  # of the trained length


def trained_frames(transformer: TransformerConfig, vae: VAEConfig) -> int:
    """The longest clip, in frames."""
    return (transformer.sample_size_t - 1) * vae.stride_thw[0] + 1


def warnings_of(
    transformer: TransformerConfig,
    vae: VAEConfig,
    num_frames: int,
    height: int,
    width: int,
    sizes: Sequence[tuple[int, int, int]] = (),
) -> list[str]:
    """A sentence for the length and one for the size, if they are far from training, each with the nearest
    good one.

    Args:
        sizes: frames, height and width that its record says it was trained on; none: what config.json says.
    """
    found, frames = [], max((size[0] for size in sizes), default=trained_frames(transformer, vae))
    if num_frames > frames:
        advice = "" if transformer.mask_channels else "; an image-to-video model makes longer ones in windows"
        found.append(
            f"num_frames: got {num_frames}, the transformer was trained on up to {frames}; the nearest good "
            f"number is {frames}{advice}"
        )
    elif 1 < num_frames < SHORT * frames:
        stride = vae.stride_thw[0]
        near = math.ceil((SHORT * frames - 1) / stride) * stride + 1
        found.append(
            f"num_frames: got {num_frames}, the transformer was trained on up to {frames}; the nearest good "
            f"number is {near}, or 1 for an image"
        )
    _, stride_h, stride_w = vae.stride_thw
    trained = transformer.sample_size_h * stride_h, transformer.sample_size_w * stride_w
    if sizes:
        shapes = [size[1:] for size in sizes]
        trained = min(shapes, key=lambda shape: abs(math.log(shape[0] * shape[1] / (height * width))))
    if not is_near(height, width, trained):
        near_h, near_w = nearest(height, width, trained)
        found.append(
            f"size: got {height}x{width}, the transformer was trained on shapes of about "
            f"{trained[0]}x{trained[1]}; the nearest good size is {near_h}x{near_w}"
        )
    return found


def is_near(height: int, width: int, trained: tuple[int, int]) -> bool:
    """Whether area and aspect are about those of training."""
    area = height * width / (trained[0] * trained[1])
    aspect = height / width / (trained[0] / trained[1])
    return max(area, 1 / area) <= FAR_AREA and max(aspect, 1 / aspect) <= FAR_ASPECT


def nearest(height: int, width: int, trained: tuple[int, int]) -> tuple[int, int]:
    """The size in multiples of 32 that is near training, and least changed from what was wanted."""
    longest = math.ceil(math.sqrt(FAR_AREA * FAR_ASPECT) * max(trained) / HW_STRIDE + 1)
    sides = [HW_STRIDE * count for count in range(1, longest + 1)]
    good = [(h, w) for h in sides for w in sides if is_near(h, w, trained)] or [trained]
    return min(good, key=lambda size: math.hypot(math.log(size[0] / height), math.log(size[1] / width)))
