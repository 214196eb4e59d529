"""Noise schedules in float64: how noisy each training timestep is, and which timesteps a sampler visits.

Diffusion keeps alpha x0 + sigma noise with alpha^2 + sigma^2 = 1; flow matching (1 - sigma) x0 + sigma noise.
Shape legend: T training timesteps, N visited timesteps, noisiest first.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import model_validator

from common.config import Config, key
from common.errors import InputError

Float64 = NDArray[np.float64]
Prediction = Literal["v_prediction", "epsilon", "sample", "flow"]  # what a transformer is trained to tell
Spacing = Literal["leading", "trailing", "linspace"]

ZERO_SNR_FLOOR = (
    2.0**-24
)  # stands in for alpha^2 = 0 where sigma / alpha must be finite; the reference's value


class ScheduleConfig(Config):
    """The noise schedule of a model. The released models have the defaults, but zero terminal SNR."""

    num_train_timesteps: int = key(1000, ge=2)
    beta_start: float = key(1e-4, gt=0, lt=1)
    beta_end: float = key(0.02, gt=0, lt=1)
    beta_schedule: Literal["linear", "scaled_linear"] = key("linear")  # scaled_linear: linear in sqrt(beta)
    rescale_betas_zero_snr: bool = key(False)
    snr_shift_scale: float = key(1.0, gt=0)  # divides every signal-to-noise ratio; CogVideoX has 3
    shift: float = key(1.0, gt=0)  # flow matching only, see `shifted`

    @model_validator(mode="after")
    def _betas_grow(self) -> "ScheduleConfig":
        if self.beta_start > self.beta_end:
            raise InputError(f"beta_start={self.beta_start} exceeds beta_end={self.beta_end}; swap them")
        return self


def alphas_cumprod(config: ScheduleConfig) -> Float64:
    """The share of signal power, alpha^2, at each training timestep, (T,): arXiv:2006.11239, section 2.

    First the signal-to-noise ratio is divided by `snr_shift_scale`; then `rescale_betas_zero_snr` stretches
    alpha so that the last timestep is pure noise, exactly 0 (arXiv:2305.08891, algorithm 1).
    """
    power = 2 if config.beta_schedule == "scaled_linear" else 1
    start, end = config.beta_start ** (1 / power), config.beta_end ** (1 / power)
    signal_T = np.cumprod(1 - np.linspace(start, end, config.num_train_timesteps) ** power)
    signal_T = signal_T / (signal_T + config.snr_shift_scale * (1 - signal_T))
    if config.rescale_betas_zero_snr:
        alpha_T = np.sqrt(signal_T)
        signal_T = ((alpha_T - alpha_T[-1]) * alpha_T[0] / (alpha_T[0] - alpha_T[-1])) ** 2
    return signal_T


def betas(config: ScheduleConfig) -> Float64:
    """The share of noise power that each training timestep adds, (T,): 1 - alpha_t^2 / alpha_(t-1)^2."""
    signal_T = alphas_cumprod(config)
    return 1 - signal_T / np.concatenate([[1.0], signal_T[:-1]])


def snr(alphas_cumprod: ArrayLike) -> Float64:
    """Signal power over noise power for alpha^2 below 1, any shape; 0 where no signal is left."""
    signal = np.asarray(alphas_cumprod, np.float64)
    return signal / (1 - signal)


def noise_ratios(config: ScheduleConfig, timesteps_N: ArrayLike) -> Float64:
    """sigma / alpha at timesteps that may be fractional, (N,); what arXiv:2206.00364 calls sigma.

    With zero terminal SNR no value exceeds 4096. The reference replaces only the last timestep's, so that its
    neighbours can be noisier and its EulerAncestral gives NaN from 286 steps on; ours are level there.
    """
    floor = ZERO_SNR_FLOOR if config.rescale_betas_zero_snr else 0.0
    ratio_T = np.sqrt(1 / snr(np.maximum(alphas_cumprod(config), floor)))
    return np.interp(np.asarray(timesteps_N, np.float64), np.arange(len(ratio_T)), ratio_T)


def spaced_timesteps(
    spacing: Spacing, num_steps: int, num_train_timesteps: int = 1000, steps_offset: int = 0
) -> Float64:
    """`num_steps` timesteps from noisy to clean, (N,) (arXiv:2305.08891, table 2).

    trailing: from the last timestep, where zero terminal SNR has to start, down to one stride.
    leading: from up to one stride below the last timestep down to `steps_offset`.
    linspace: both ends, maybe fractional between them; a single step is timestep 0.

    Raises:
        InputError: unknown spacing, steps outside 1..T, an offset past the end or without "leading".
    """
    N, T = num_steps, num_train_timesteps
    _check_steps(N, T)
    if spacing not in get_args(Spacing):
        raise InputError(f"got timestep_spacing {spacing!r}, expected one of {', '.join(get_args(Spacing))}")
    highest = T - 1 - (N - 1) * (T // N) if spacing == "leading" else 0
    if not 0 <= steps_offset <= highest:
        raise InputError(
            f"got steps_offset={steps_offset} with {N} {spacing!r} steps, expected 0 to {highest}; "
            "only 'leading' spacing leaves room above its first timestep"
        )
    if spacing == "leading":
        return np.arange(N, dtype=np.float64)[::-1] * (T // N) + steps_offset
    if spacing == "trailing":
        return np.arange(T, 0, -T / N)[:N].round() - 1  # cut: rounding can make arange one value longer
    return np.linspace(0, T - 1, N)[::-1]


def shifted(sigma: ArrayLike, shift: float) -> Float64:
    """Flow-matching noise levels, the odds sigma / (1 - sigma) times `shift`: arXiv:2403.03206, eq. 23."""
    sigma = np.asarray(sigma, np.float64)
    return shift * sigma / (1 + (shift - 1) * sigma)


def flow_sigmas(config: ScheduleConfig, num_steps: int, spacing: Spacing = "linspace") -> Float64:
    """Noise levels that a flow-matching sampler visits, 1 first, final 0 left out, (N,): arXiv:2210.02747.

    trailing: 1, 1 - 1/N, ... 1/N, shifted.
    linspace: evenly from 1 to training's lowest level, itself shifted, then all shifted: diffusers' default.

    Raises:
        InputError: another spacing, or steps outside 1..T.
    """
    N, T = num_steps, config.num_train_timesteps
    _check_steps(N, T)
    if spacing not in ("trailing", "linspace"):
        raise InputError(f"got timestep_spacing {spacing!r}, expected trailing or linspace for flow matching")
    even_N = (
        np.arange(N, 0, -1) / N if spacing == "trailing" else np.linspace(1, shifted(1 / T, config.shift), N)
    )
    return shifted(even_N, config.shift)


def _check_steps(num_steps: int, num_train_timesteps: int) -> None:
    if not 1 <= num_steps <= num_train_timesteps:
        raise InputError(
            f"got num_steps={num_steps}, expected 1 to the {num_train_timesteps} timesteps of training"
        )
