"""Which sizes and lengths a transformer was trained on, and how far from them a wanted video is."""

import math

from .models import TransformerConfig, VAEConfig

FAR = 1.5  # times the area, or as much below
FAR_ASPECT = 2.0  # times the trained height to width
STRIDE = 32


def trained_frames(transformer: TransformerConfig, vae: VAEConfig) -> int:
    """The longest clip, in frames."""
    return (transformer.sample_size_t - 1) * vae.stride_thw[0] + 1


def warnings_of(
    transformer: TransformerConfig, vae: VAEConfig, num_frames: int, height: int, width: int
) -> list[str]:
    """A sentence for each of length, area and aspect that is far from training, with the nearest good one."""
    _, stride_h, stride_w = vae.stride_thw
    trained_h, trained_w = transformer.sample_size_h * stride_h, transformer.sample_size_w * stride_w
    frames, found = trained_frames(transformer, vae), []
    if num_frames > frames:
        advice = "" if transformer.mask_channels else "; an image-to-video model makes longer ones in windows"
        found.append(
            f"num_frames: got {num_frames}, the transformer was trained on up to {frames}; the nearest good "
            f"number is {frames}{advice}"
        )
    area, trained_area = height * width, trained_h * trained_w
    if not trained_area / FAR <= area <= trained_area * FAR:
        near = _size(trained_area, height / width)
        found.append(
            f"size: got {height}x{width}, the transformer was trained on about {trained_h}x{trained_w}; the "
            f"nearest good size of this shape is {near[0]}x{near[1]}"
        )
    aspect, trained_aspect = height / width, trained_h / trained_w
    if not trained_aspect / FAR_ASPECT <= aspect <= trained_aspect * FAR_ASPECT:
        limit = trained_aspect * (FAR_ASPECT if aspect > trained_aspect else 1 / FAR_ASPECT)
        near = _size(trained_area, limit)
        found.append(
            f"shape: got {height}x{width}, more than {FAR_ASPECT:g} times as long one way as the trained "
            f"{trained_h}x{trained_w}; the nearest good size is {near[0]}x{near[1]}"
        )
    return found


def _size(area: float, aspect: float) -> tuple[int, int]:
    """Height and width of about this area and height / width, in multiples of the stride."""
    height, width = math.sqrt(area * aspect), math.sqrt(area / aspect)
    return max(STRIDE, round(height / STRIDE) * STRIDE), max(STRIDE, round(width / STRIDE) * STRIDE)
