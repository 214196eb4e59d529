"""PSNR and SSIM equal the reference's numbers and their own definitions."""

import math

import numpy as np
import pytest

from common import metrics
from tests.recorded import recorded


def clips(channels: int = 3, side: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a_BCTHW = rng.random((2, channels, 3, side, side + 3), dtype=np.float32)
    return a_BCTHW, np.clip(a_BCTHW + 0.1 * rng.standard_normal(a_BCTHW.shape), 0, 1).astype(np.float32)


# The reference keeps PSNR in float32: 22 dB are exact to 1e-6. The rest are the tolerances of the goldens.
@pytest.mark.parametrize(
    ("name", "metric", "atol", "std_atol"),
    [("psnr", metrics.psnr_BT, 2e-4, 1e-6), ("ssim", metrics.ssim_BT, 2e-6, 1e-7)],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_metrics_equal_the_reference(name, metric, atol, std_atol, channels):
    case = recorded("metrics_psnr_ssim")
    a_BCTHW, b_BCTHW = (case.inputs[f"video_{which}_c{channels}"].swapaxes(1, 2) for which in "ab")
    values_BT = metric(a_BCTHW, b_BCTHW)
    summary = metrics.summarize(values_BT)
    np.testing.assert_allclose(values_BT, case.outputs[f"{name}_each_c{channels}"], rtol=0, atol=atol)
    np.testing.assert_allclose(
        summary.mean_T, case.outputs[f"{name}_mean_per_frame_c{channels}"], rtol=0, atol=atol
    )
    np.testing.assert_allclose(
        summary.std_T, case.outputs[f"{name}_std_per_frame_c{channels}"], rtol=0, atol=std_atol
    )
    assert math.isclose(
        summary.mean, case.outputs[f"{name}_each_c{channels}"].mean(dtype=np.float64), rel_tol=1e-6
    )


def test_equal_clips_score_highest():
    a_BCTHW, _ = clips()
    assert (metrics.psnr_BT(a_BCTHW, a_BCTHW) == 100).all()
    np.testing.assert_allclose(metrics.ssim_BT(a_BCTHW, a_BCTHW), 1, rtol=0, atol=1e-12)


def test_psnr_of_a_constant_error_is_its_logarithm():
    a_BCTHW = np.zeros((1, 3, 2, 4, 4))
    a_BCTHW[:, :, 1] = 0.5
    b_BCTHW = a_BCTHW + np.array([0.1, 0.01]).reshape(1, 1, 2, 1, 1)
    np.testing.assert_allclose(metrics.psnr_BT(a_BCTHW, b_BCTHW), [[20, 40]])


def test_ssim_is_its_definition_window_by_window():
    a_BCTHW, b_BCTHW = clips(channels=1, side=13)
    offsets = np.arange(11) - 5
    taps = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2
    a_HW, b_HW = a_BCTHW[1, 0, 2].astype(np.float64), b_BCTHW[1, 0, 2].astype(np.float64)
    local = []
    for top in range(a_HW.shape[0] - 10):
        for left in range(a_HW.shape[1] - 10):
            a, b = (x[top : top + 11, left : left + 11] for x in (a_HW, b_HW))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
            local.append(luminance * (2 * covariance + 9e-4) / (var_a + var_b + 9e-4))
    assert math.isclose(metrics.ssim_BT(a_BCTHW, b_BCTHW)[1, 2], np.mean(local), rel_tol=1e-10)


@pytest.mark.parametrize("metric", [metrics.psnr_BT, metrics.ssim_BT])
def test_what_cannot_be_compared_is_refused(metric):
    a_BCTHW, b_BCTHW = clips()
    with pytest.raises(ValueError, match=r"got shapes .+, wanted one \(B, C, T, H, W\)"):
        metric(a_BCTHW, b_BCTHW[:, :, :2])
    with pytest.raises(ValueError, match=r"got uint8 as second clip, wanted floats .+ divide by 255"):
        metric(a_BCTHW, (b_BCTHW * 255).astype(np.uint8))


def test_a_frame_below_the_window_is_refused():
    a_BCTHW, b_BCTHW = clips(side=10)
    with pytest.raises(ValueError, match=r"10x13, wanted at least 11x11"):
        metrics.ssim_BT(a_BCTHW, b_BCTHW)
