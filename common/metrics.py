"""How close a reconstruction is to its original: PSNR and SSIM per frame, in float64.

Shape legend: B batch, C channels, T frames, H height, W width. Pixels are floats in [0, 1].
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

from .errors import InputError
from .images import to_model

WINDOW = 11  # taps of the Gaussian of SSIM
WINDOW_SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2  # keep the ratios of SSIM finite where a picture is black or flat
SMALLEST_MSE = 1e-10  # at or above: logarithm; below: equal pictures, which count as LARGEST_PSNR
LARGEST_PSNR = 100.0  # dB


class Summary(NamedTuple):
    """A metric over a set of clips."""

    mean: float
    mean_T: np.ndarray  # over the batch, for each frame
    std_T: np.ndarray  # of the population


def psnr_BT(a_BCTHW: np.ndarray, b_BCTHW: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of every frame over all its channels; 100 for equal frames.

    Raises:
        InputError: different shapes, or pixels that are not floats.
    """
    _check(a_BCTHW, b_BCTHW)
    B, _, T, _, _ = a_BCTHW.shape
    result_BT = np.empty((B, T))
    for b, t in np.ndindex(B, T):
        mse = np.mean(np.square(np.subtract(a_BCTHW[b, :, t], b_BCTHW[b, :, t], dtype=np.float64)))
        result_BT[b, t] = LARGEST_PSNR if mse < SMALLEST_MSE else -10 * math.log10(mse)
    return result_BT


def ssim_BT(a_BCTHW: np.ndarray, b_BCTHW: np.ndarray) -> np.ndarray:
    """Structural similarity of every frame, the mean over its channels (Wang et al., IEEE TIP 13(4), 2004).

    Windows that reach over the border do not count.

    Raises:
        InputError: as psnr_BT, or a frame smaller than the 11x11 window.
    """
    _check(a_BCTHW, b_BCTHW)
    B, C, T, H, W = a_BCTHW.shape
    if min(H, W) < WINDOW:
        raise InputError(
            f"SSIM: got frames of {H}x{W}, wanted at least {WINDOW}x{WINDOW}; compare larger frames"
        )
    result_BT = np.empty((B, T))
    for b, t in np.ndindex(B, T):
        result_BT[b, t] = np.mean([_ssim(a_BCTHW[b, c, t], b_BCTHW[b, c, t]) for c in range(C)])
    return result_BT


def psnr_ssim_T(a_THWC: np.ndarray, b_THWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both measures of every frame of two uint8 clips."""
    a_BCTHW, b_BCTHW = _as_floats(a_THWC, b_THWC)
    return psnr_BT(a_BCTHW, b_BCTHW)[0], ssim_BT(a_BCTHW, b_BCTHW)[0]


def psnr_T(a_THWC: np.ndarray, b_THWC: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of every frame of two uint8 clips."""
    return psnr_BT(*_as_floats(a_THWC, b_THWC))[0]


def _as_floats(a_THWC: np.ndarray, b_THWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (to_model(a_THWC) + 1) / 2, (to_model(b_THWC) + 1) / 2


def summarize(values_BT: np.ndarray) -> Summary:
    """Mean over everything, and mean and population standard deviation over the batch for each frame."""
    return Summary(float(values_BT.mean()), values_BT.mean(axis=0), values_BT.std(axis=0))


def _ssim(a_HW: np.ndarray, b_HW: np.ndarray) -> float:
    a_HW, b_HW = a_HW.astype(np.float64), b_HW.astype(np.float64)
    mean_a, mean_b = _smooth(a_HW), _smooth(b_HW)
    mean_ab, mean_sum = mean_a * mean_b, mean_a * mean_a + mean_b * mean_b
    covariance = _smooth(a_HW * b_HW) - mean_ab
    variance_sum = _smooth(a_HW * a_HW + b_HW * b_HW) - mean_sum  # only the sum of both is needed
    numerator = (2 * mean_ab + C1) * (2 * covariance + C2)
    return float(np.mean(numerator / ((mean_sum + C1) * (variance_sum + C2))))


def _smooth(image_HW: np.ndarray) -> np.ndarray:
    """The Gaussian mean around every pixel whose window lies inside."""
    cut = WINDOW // 2
    return cv2.GaussianBlur(image_HW, (WINDOW, WINDOW), WINDOW_SIGMA)[cut:-cut, cut:-cut]


def _check(a_BCTHW: np.ndarray, b_BCTHW: np.ndarray) -> None:
    if a_BCTHW.shape != b_BCTHW.shape or a_BCTHW.ndim != 5 or 0 in a_BCTHW.shape:
        raise InputError(
            f"metrics: got shapes {a_BCTHW.shape} and {b_BCTHW.shape}, wanted one (B, C, T, H, W) for both; "
            "cut or resize one of them"
        )
    for name, x_BCTHW in (("first", a_BCTHW), ("second", b_BCTHW)):
        if not np.issubdtype(x_BCTHW.dtype, np.floating):
            raise InputError(
                f"metrics: got {x_BCTHW.dtype} as {name} clip, wanted floats in [0, 1]; divide by 255"
            )
