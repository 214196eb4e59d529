"""Promises of the noise schedules; their numbers are compared with the reference's in test_samplers.py."""

import numpy as np
import pytest

from common import config, schedules
from common.schedules import ScheduleConfig

PLAIN = ScheduleConfig()
ZERO_SNR = ScheduleConfig(rescale_betas_zero_snr=True)
V1_5 = ScheduleConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@pytest.mark.parametrize("schedule", [PLAIN, ZERO_SNR, V1_5, V1_5.replace(snr_shift_scale=3.0)])
def test_signal_falls_and_betas_multiply_back_to_it(schedule):
    signal_T = schedules.alphas_cumprod(schedule)
    assert signal_T.dtype == np.float64
    assert signal_T.shape == (1000,)
    assert (np.diff(signal_T) < 0).all()
    np.testing.assert_allclose(np.cumprod(1 - schedules.betas(schedule)), signal_T, rtol=1e-12)


def test_betas_without_changes_are_the_configured_ones():
    np.testing.assert_allclose(schedules.betas(PLAIN), np.linspace(1e-4, 0.02, 1000), rtol=1e-9)
    roots_T = np.sqrt(schedules.betas(V1_5))
    np.testing.assert_allclose(roots_T, np.linspace(0.00085**0.5, 0.012**0.5, 1000), rtol=1e-9)


def test_zero_terminal_snr_ends_at_exactly_zero_and_begins_as_before():
    signal_T, plain_T = schedules.alphas_cumprod(ZERO_SNR), schedules.alphas_cumprod(PLAIN)
    assert signal_T[-1] == 0
    assert schedules.snr(signal_T)[-1] == 0
    assert signal_T[0] == pytest.approx(plain_T[0], rel=1e-14)
    assert (signal_T[1:] < plain_T[1:]).all()


def test_snr_shift_divides_the_snr():
    shifted_T = schedules.alphas_cumprod(V1_5.replace(snr_shift_scale=3.0))
    snr_T = schedules.snr(schedules.alphas_cumprod(V1_5))
    np.testing.assert_allclose(schedules.snr(shifted_T), snr_T / 3, rtol=1e-10)


def test_noise_ratios_are_interpolated_and_capped():
    snr_T = schedules.snr(schedules.alphas_cumprod(PLAIN))
    ratios = schedules.noise_ratios(PLAIN, [999, 10.25, 0])
    between = 0.75 * snr_T[10] ** -0.5 + 0.25 * snr_T[11] ** -0.5
    np.testing.assert_allclose(ratios, [snr_T[999] ** -0.5, between, snr_T[0] ** -0.5], rtol=1e-12)
    near_end = schedules.noise_ratios(ZERO_SNR, np.arange(990, 1000))
    assert near_end[-1] == pytest.approx(4096, rel=1e-7)
    assert (np.diff(near_end) >= 0).all()


@pytest.mark.parametrize("num_steps", [1, 3, 7, 48, 250, 999, 1000])
def test_spacings_visit_distinct_timesteps_in_range(num_steps):
    for spacing in ("leading", "trailing", "linspace"):
        t_N = schedules.spaced_timesteps(spacing, num_steps)
        assert t_N.shape == (num_steps,)
        assert (np.diff(t_N) < 0).all()
        assert t_N[0] <= 999
        assert t_N[-1] >= 0
    assert schedules.spaced_timesteps("trailing", num_steps)[0] == 999
    assert schedules.spaced_timesteps("leading", num_steps)[-1] == 0


def test_spacings_of_five_steps():
    spaced = schedules.spaced_timesteps
    assert spaced("trailing", 5).tolist() == [999, 799, 599, 399, 199]
    assert spaced("leading", 5).tolist() == [800, 600, 400, 200, 0]
    assert spaced("leading", 5, steps_offset=1).tolist() == [801, 601, 401, 201, 1]
    assert spaced("linspace", 5).tolist() == [999, 749.25, 499.5, 249.75, 0]
    assert spaced("trailing", 2, num_train_timesteps=10).tolist() == [9, 4]


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_flow_sigmas_start_at_noise_and_shift_keeps_the_ends(spacing):
    even_N = schedules.flow_sigmas(PLAIN, 20, spacing)
    moved_N = schedules.flow_sigmas(PLAIN.replace(shift=3.0), 20, spacing)
    assert even_N[0] == moved_N[0] == 1
    assert (np.diff(moved_N) < 0).all()
    assert (moved_N[1:] > even_N[1:]).all()
    assert even_N[-1] == pytest.approx(1 / 20 if spacing == "trailing" else 1 / 1000)


def test_shift_multiplies_the_odds():
    sigma = np.linspace(0.01, 0.99, 7)
    moved = schedules.shifted(sigma, 2.5)
    np.testing.assert_allclose(moved / (1 - moved), 2.5 * sigma / (1 - sigma), rtol=1e-12)
    np.testing.assert_allclose(schedules.shifted(moved, 1 / 2.5), sigma, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.spaced_timesteps("cosine", 5), "'cosine', expected one of leading, trailing"),
        (lambda: schedules.spaced_timesteps("leading", 0), "num_steps=0, expected 1 to the 1000"),
        (lambda: schedules.spaced_timesteps("trailing", 1001), "num_steps=1001, expected 1 to the 1000"),
        (lambda: schedules.spaced_timesteps("leading", 5, steps_offset=200), "steps_offset=200 .* 0 to 199"),
        (lambda: schedules.spaced_timesteps("trailing", 5, steps_offset=1), "steps_offset=1 .* 0 to 0"),
        (lambda: schedules.flow_sigmas(PLAIN, 5, "leading"), "'leading', expected trailing or linspace"),
        (lambda: schedules.flow_sigmas(PLAIN, 0), "num_steps=0, expected 1 to the 1000"),
        (lambda: ScheduleConfig(beta_start=0.02, beta_end=0.01), "beta_start=0.02 exceeds beta_end=0.01"),
        (lambda: config.build(ScheduleConfig, {"beta_sart": 0.1}, "x.yaml"), "did you mean 'beta_start'"),
        (lambda: config.build(ScheduleConfig, {"shift": 0}, "x.yaml"), "x.yaml: shift: .* greater than 0"),
    ],
)
def test_errors_say_what_was_wanted(call, message):
    with pytest.raises(ValueError, match=message):
        call()
