"""What a denoiser is trained on: which timesteps, how clean and noise are mixed, what it must predict, and
how much an error counts; computed in float64, one column of coefficients per sample.

Shape legend: B batch, T training timesteps.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .config import Config, key
from .errors import InputError
from .noise import generator, index_of
from .schedules import Prediction, ScheduleConfig, alphas_cumprod, shifted, snr


class DiffusionConfig(Config):
    """The training objective. Defaults are those of the released models."""

    prediction_type: Prediction = key("v_prediction")  # flow: rectified flow (arXiv:2209.03003)
    schedule: ScheduleConfig = key(ScheduleConfig(rescale_betas_zero_snr=True))
    snr_gamma: float | None = key(None, gt=0)  # min-SNR weighting (arXiv:2303.09556); 5 is usual
    noise_offset: float = key(0.0, ge=0)  # of a constant per channel that is added to the noise


class Mixture(NamedTuple):
    """Of x0 and e, per sample: noisy = signal x0 + noise e, target = target_signal x0 + target_noise e.

    All are float32 (B,).
    """

    signal_B: np.ndarray
    noise_B: np.ndarray
    target_signal_B: np.ndarray
    target_noise_B: np.ndarray
    weight_B: np.ndarray  # of the squared error

    def rows(self) -> np.ndarray:
        """As one array (5, B), which is one input of a compiled step."""
        return np.stack(self)


def mixture(config: DiffusionConfig, timesteps_B: ArrayLike) -> Mixture:
    """How samples at these timesteps are made and judged.

    The weight is min(snr, gamma) over snr + 1 for velocities and over snr for noise (arXiv:2303.09556,
    section 3.4), min(snr, gamma) itself for the clean sample, and 1 without gamma. At zero terminal SNR that
    of a velocity is 0.

    Raises:
        InputError: gamma with flow, or with noise at a timestep that has no signal.
    """
    timesteps = np.asarray(timesteps_B, np.int64)
    if config.prediction_type == "flow":
        if config.snr_gamma is not None:
            raise InputError("diffusion: snr_gamma weighs by a diffusion's SNR; leave it out with flow")
        sigma = _flow_sigma(config, timesteps)
        ones = np.ones_like(sigma)
        return _float32(1 - sigma, sigma, -ones, ones, ones)
    signal_share = alphas_cumprod(config.schedule)[timesteps]
    alpha, sigma = np.sqrt(signal_share), np.sqrt(1 - signal_share)
    zero, one = np.zeros_like(alpha), np.ones_like(alpha)
    targets = {"v_prediction": (-sigma, alpha), "epsilon": (zero, one), "sample": (one, zero)}
    return _float32(alpha, sigma, *targets[config.prediction_type], _weight(config, snr(signal_share)))


def with_offset(config: DiffusionConfig, noise_BCTHW: np.ndarray, offset_BC111: np.ndarray) -> np.ndarray:
    """Noise with a share of a draw per channel added: whole pictures learn to be dark or bright."""
    return noise_BCTHW + np.float32(config.noise_offset) * offset_BC111


def told(config: DiffusionConfig, timesteps_B: ArrayLike) -> np.ndarray:
    """What the model is told of these timesteps, as samplers do: with flow 1000 times the noise level."""
    timesteps = np.asarray(timesteps_B, np.float64)
    if config.prediction_type == "flow":
        return _flow_sigma(config, timesteps) * config.schedule.num_train_timesteps
    return timesteps


def _flow_sigma(config: DiffusionConfig, timesteps: np.ndarray) -> np.ndarray:
    return shifted((timesteps + 1) / config.schedule.num_train_timesteps, config.schedule.shift)


def _weight(config: DiffusionConfig, snr_B: np.ndarray) -> np.ndarray:
    if config.snr_gamma is None:
        return np.ones_like(snr_B)
    clipped = np.minimum(snr_B, config.snr_gamma)
    if config.prediction_type == "v_prediction":
        return clipped / (snr_B + 1)
    if config.prediction_type == "sample":
        return clipped
    if (snr_B == 0).any():
        raise InputError(
            "diffusion: snr_gamma divides by an SNR of 0 where the schedule ends in pure noise; with epsilon "
            "set schedule.rescale_betas_zero_snr=false"
        )
    return clipped / snr_B


def _float32(*columns: np.ndarray) -> Mixture:
    return Mixture(*(column.astype(np.float32) for column in columns))


def draw_timesteps(config: DiffusionConfig, seed: int, step: int, batch: int) -> np.ndarray:
    """Training timesteps of all ranks' samples together, (batch,): each is drawn from a stretch of 0..T-1 of
    its own, so that every step covers all noise levels, however many ranks there are.
    """
    T = config.schedule.num_train_timesteps
    unit = generator(seed, index_of(f"timesteps {step}")).random(batch)
    return np.minimum(np.floor(T * (np.arange(batch) + unit) / batch).astype(np.int64), T - 1)
