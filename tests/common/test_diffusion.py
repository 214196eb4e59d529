"""Training targets: a perfect prediction leads to the clean latent, and weights are what the papers say."""

import numpy as np
import pytest

from common.diffusion import DiffusionConfig, draw_timesteps, mixture, told
from common.optim import warmed_ema_decay
from common.schedules import ScheduleConfig, alphas_cumprod

PLAIN, ZERO_SNR = ScheduleConfig(), ScheduleConfig(rescale_betas_zero_snr=True)
T = np.array([0, 10, 500, 998])


@pytest.mark.parametrize("target", ["v_prediction", "epsilon", "sample", "flow"])
def test_noisy_and_target_together_give_the_clean_latent(target):
    m = mixture(DiffusionConfig(prediction_type=target, schedule=PLAIN), T)
    rng = np.random.default_rng(0)
    clean, noise = rng.standard_normal((2, 4))
    noisy = m.signal_B * clean + m.noise_B * noise
    wanted = m.target_signal_B * clean + m.target_noise_B * noise
    system = np.array([[m.signal_B, m.noise_B], [m.target_signal_B, m.target_noise_B]]).transpose(2, 0, 1)
    found = np.linalg.solve(system, np.stack([noisy, wanted], 1)[..., None])[:, 0, 0]
    np.testing.assert_allclose(found, clean, rtol=1e-4, atol=1e-4)


def test_variance_is_preserved_and_the_end_is_pure_noise():
    m = mixture(DiffusionConfig(schedule=ZERO_SNR), np.arange(1000))
    np.testing.assert_allclose(m.signal_B**2 + m.noise_B**2, 1, atol=1e-6)
    assert (m.signal_B[-1], m.noise_B[-1]) == (0, 1)


def test_min_snr_weights():
    """arXiv:2303.09556, section 3.4."""
    share = alphas_cumprod(PLAIN)[T]
    ratio = share / (1 - share)
    for target, expected in (
        ("v_prediction", np.minimum(ratio, 5) / (ratio + 1)),
        ("epsilon", np.minimum(ratio, 5) / ratio),
        ("sample", np.minimum(ratio, 5)),
    ):
        config = DiffusionConfig(prediction_type=target, schedule=PLAIN, snr_gamma=5)
        np.testing.assert_allclose(mixture(config, T).weight_B, expected, rtol=1e-6)
    assert mixture(DiffusionConfig(schedule=ZERO_SNR, snr_gamma=5), [999]).weight_B == 0


def test_a_weight_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="divides by an SNR of 0"):
        mixture(DiffusionConfig(prediction_type="epsilon", schedule=ZERO_SNR, snr_gamma=5), [999])
    with pytest.raises(ValueError, match="leave it out with flow"):
        mixture(DiffusionConfig(prediction_type="flow", snr_gamma=5), [1])


def test_a_flow_tells_the_model_its_noise_level():
    flow = DiffusionConfig(prediction_type="flow", schedule={"shift": 3.0})
    assert told(flow, [999, 499]).tolist() == [1000.0, pytest.approx(750.0)]
    assert told(DiffusionConfig(), [999, 0]).tolist() == [999.0, 0.0]


def test_ranks_cover_all_timesteps_between_them():
    config = DiffusionConfig()
    drawn = draw_timesteps(config, 3, 7, 4)
    assert (drawn // 250 == np.arange(4)).all()
    assert (draw_timesteps(config, 3, 7, 4) == drawn).all()
    assert (draw_timesteps(config, 3, 8, 4) != drawn).any()
    everything = draw_timesteps(config, 0, 0, 50_000)
    assert (everything.min(), everything.max()) == (0, 999)


def test_the_average_forgets_its_start():
    assert warmed_ema_decay(0.9999, 1) == 0
    assert warmed_ema_decay(0.9999, 2) == pytest.approx(2 / 11)
    assert warmed_ema_decay(0.9999, 10**7) == 0.9999
