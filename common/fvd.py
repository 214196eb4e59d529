"""Frechet video distance (arXiv:1812.01717): how far apart two sets of clips lie in the eyes of I3D.

Convention: 8-bit frames, resized to 224x224 bilinearly (half-pixel centres, no smoothing, aspect not kept),
scaled to [-1, 1]; the features are I3D's 400 logits; covariances have the divisor n - 1.

Shape legend: N clips, F features; T frames, H height, W width, C channels.
"""

import cv2
import numpy as np

from .errors import InputError
from .images import check_frames

SIZE = 224  # pixels that I3D was trained on
MIN_FRAMES = 9  # fewer do not fill I3D's last window in time
FEW_CLIPS = 256  # below, the distance is mostly bias: compare only with numbers from as many clips


def i3d_input(frames_THWC: np.ndarray) -> np.ndarray:
    """uint8 frames as I3D takes them: float32 in [-1, 1], "t h w c -> 1 c t h w" at 224x224.

    Raises:
        InputError: other pixels, or too few frames.
    """
    check_frames(frames_THWC, "I3D input")
    if len(frames_THWC) < MIN_FRAMES:
        raise InputError(
            f"I3D input: got {len(frames_THWC)} frames, wanted at least {MIN_FRAMES}; use longer clips"
        )
    resized_THWC = np.stack(
        [cv2.resize(f.astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR) for f in frames_THWC]
    )
    return np.ascontiguousarray((resized_THWC / 127.5 - 1).transpose(3, 0, 1, 2)[None])


def frechet_distance(a_NF: np.ndarray, b_NF: np.ndarray) -> float:
    """The squared 2-Wasserstein distance of the Gaussians with the moments of two sets of features:
    |mean a - mean b|^2 + tr(A + B - 2 sqrt(A B)), in float64.

    With centred features A = Xa^T Xa and B = Xb^T Xb the last trace is the sum of the singular values of
    Xa Xb^T: no square root of a matrix, which with fewer clips than features has no full rank.

    Raises:
        InputError: fewer than two clips in a set, other features in one than in the other, or NaN.
    """
    for name, x_NF in (("first", a_NF), ("second", b_NF)):
        if x_NF.ndim != 2 or len(x_NF) < 2 or x_NF.shape[1] != a_NF.shape[1]:
            raise InputError(
                f"Frechet distance: got shapes {a_NF.shape} and {b_NF.shape}, wanted (clips, features), "
                "at least 2 clips in each and equal features; measure more clips"
            )
        if not np.isfinite(x_NF).all():
            raise InputError(f"Frechet distance: got NaN or infinity in the {name} set, wanted numbers")
    (mean_a, root_a), (mean_b, root_b) = _moments(a_NF), _moments(b_NF)
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    distance = (
        np.square(mean_a - mean_b).sum() + np.square(root_a).sum() + np.square(root_b).sum() - 2 * cross
    )
    return max(float(distance), 0.0)  # equal sets may differ by rounding


def _moments(x_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean, and R with R^T R = covariance, of min(N, F) rows."""
    x_NF = x_NF.astype(np.float64)
    mean_F = x_NF.mean(axis=0)
    return mean_F, np.asarray(np.linalg.qr((x_NF - mean_F) / np.sqrt(len(x_NF) - 1), mode="r"))
