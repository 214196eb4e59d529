"""The Frechet distance equals its closed forms, with many clips and with fewer than features."""

import numpy as np
import pytest

from common.fvd import SIZE, frechet_distance, i3d_input


def samples(mean_F: np.ndarray, cov_FF: np.ndarray, num: int = 50, seed: int = 0) -> np.ndarray:
    """Features that have exactly these moments."""
    x_NF = np.random.default_rng(seed).standard_normal((num, len(mean_F)))
    x_NF -= x_NF.mean(axis=0)
    white_NF = x_NF @ np.linalg.inv(np.linalg.cholesky(np.cov(x_NF.T))).T
    return mean_F + white_NF @ np.linalg.cholesky(cov_FF).T


@pytest.mark.parametrize("num", [2, 5, 300])
def test_equal_sets_are_at_distance_zero(num):
    x_NF = 10 * np.random.default_rng(0).standard_normal((num, 40)).astype(np.float32)
    assert frechet_distance(x_NF, x_NF) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x_NF, x_NF[::-1]) == pytest.approx(0, abs=1e-9), "the order must not count"
    moved_NF = x_NF.astype(np.float64) + 2  # the covariance cancels
    assert frechet_distance(x_NF, moved_NF) == pytest.approx(4 * 40, rel=1e-10)


def test_gaussians_with_commuting_covariances():
    a, b = np.array([4.0, 9.0, 1.0]), np.array([1.0, 16.0, 1.0])  # variances
    mean = np.array([1.0, -2.0, 0.5])
    x_NF, y_NF = samples(0 * mean, np.diag(a)), samples(mean, np.diag(b), num=80, seed=1)
    expected = np.sum(mean**2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    assert frechet_distance(x_NF, y_NF) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(y_NF, x_NF) == pytest.approx(expected, rel=1e-12)


def test_gaussians_in_two_dimensions():
    """tr sqrt(AB) = sqrt(tr(AB) + 2 sqrt(det(AB))) for 2x2."""
    a, b = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[1.0, -0.5], [-0.5, 3.0]])
    cross = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = np.trace(a) + np.trace(b) - 2 * cross
    distance = frechet_distance(samples(np.zeros(2), a), samples(np.zeros(2), b, seed=2))
    assert distance == pytest.approx(expected, rel=1e-12)


def test_fewer_clips_than_features_equals_the_distance_in_the_space_they_span():
    """Features that only live in a plane of 400 dimensions, measured in the plane and outside."""
    rng = np.random.default_rng(3)
    basis = np.linalg.qr(rng.standard_normal((400, 2)))[0].T
    a_NF, b_NF = rng.standard_normal((12, 2)) * (3, 1), rng.standard_normal((9, 2)) + 1
    assert frechet_distance(a_NF @ basis, b_NF @ basis) == pytest.approx(
        frechet_distance(a_NF, b_NF), rel=1e-9
    )


def test_what_is_refused():
    x_NF = np.ones((5, 4))
    for other in (np.ones((5, 3)), np.ones((1, 4)), np.ones(4)):
        with pytest.raises(ValueError, match="at least 2 clips in each and equal features"):
            frechet_distance(x_NF, other)
    with pytest.raises(ValueError, match="NaN or infinity in the second set"):
        frechet_distance(x_NF, np.full((5, 4), np.nan))


def test_i3d_sees_224x224_from_minus_one_to_one():
    frames_THWC = np.zeros((9, 20, 30, 3), np.uint8)
    frames_THWC[:, :, 15:] = 255
    x_BCTHW = i3d_input(frames_THWC)
    assert x_BCTHW.shape == (1, 3, 9, SIZE, SIZE)
    assert x_BCTHW.dtype == np.float32
    assert (x_BCTHW[..., 0] == -1).all()
    assert (x_BCTHW[..., -1] == 1).all()
    middle = x_BCTHW[0, 0, 0, 0, SIZE // 2 - 4 : SIZE // 2 + 4]
    assert (np.diff(middle) > 0).all(), "bilinear, not rounded to 8 bits"
    assert middle + middle[::-1] == pytest.approx(0, abs=1e-5), "half-pixel centres: symmetric"
    with pytest.raises(ValueError, match="got 8 frames, wanted at least 9"):
        i3d_input(frames_THWC[:8])
