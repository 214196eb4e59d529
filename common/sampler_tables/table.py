"""Every sampler is a table of coefficients, one row per model evaluation; a step is a few multiply-adds.

    d = pred_sample * x + pred_output * model_output
    x_next = sample * x + anchor * x_anchor + sum_i past[i] * d_(-i) + noise * z

Shape legend: R rows (model evaluations), N sampling steps, H evaluations remembered, T training timesteps.
Diffusion keeps alpha x0 + sigma noise with alpha^2 + sigma^2 = 1; a "ratio" is sigma / alpha.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common import schedules
from common.errors import InputError
from common.schedules import Float64, Prediction, ScheduleConfig, Spacing

State = tuple[Any, tuple[Any, ...]]  # x_anchor and the remembered d, newest first


@dataclass(frozen=True)
class SamplerTable:
    """A sampler for one schedule, prediction type and number of steps; its columns are read-only.

    x is the unscaled sample: it starts as `init_noise_sigma` * noise, and the model sees `input_scale` * x.
    d is the clean sample; for DEISMultistep the noise; for PNDM, whose multistep formula runs over the
    model's own words, the raw output. For UniPC x is not corrected yet: its row does that and predicts.
    """

    name: str
    init_noise_sigma: float
    timesteps_R: Float64  # what the model is told; fractional with "linspace" and for flow matching
    input_scale_R: Float64
    pred_sample_R: Float64
    pred_output_R: Float64
    sample_R: Float64
    anchor_R: Float64
    past_RH: Float64  # past[:, 0] multiplies the present d, past[:, 1] the previous evaluation's, ...
    noise_R: Float64
    set_anchor_R: NDArray[np.bool_]  # this row's x becomes x_anchor before the update

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self)[2:]:
            column = getattr(self, field.name)
            assert len(column) == len(self), (
                f"{self.name}: {field.name} has {len(column)} rows, not {len(self)}"
            )
            assert np.isfinite(column).all(), f"{self.name}: {field.name} is not finite"
            column.setflags(write=False)

    def __len__(self) -> int:
        """The number of model evaluations, R."""
        return len(self.timesteps_R)

    @property
    def draws_noise_R(self) -> NDArray[np.bool_]:
        """Rows that add fresh noise; row r always takes draw r, whatever the rows before it did."""
        return self.noise_R != 0

    def step_numpy(
        self, row: int, x: Any, model_output: Any, state: State = (None, ()), noise: Any = None
    ) -> tuple[Any, State]:
        """(x_next, next state), any shape; the first row takes the default state."""
        anchor, past = state
        anchor = x if self.set_anchor_R[row] else anchor
        d = self.pred_sample_R[row] * x + self.pred_output_R[row] * model_output
        past = (d, *past)[: self.past_RH.shape[1]]
        assert not self.past_RH[row, len(past) :].any(), f"{self.name}: row {row} lacks history"
        x_next = self.sample_R[row] * x + sum(weight * d for weight, d in zip(self.past_RH[row], past))
        if self.anchor_R[row]:
            x_next = x_next + self.anchor_R[row] * anchor
        if self.noise_R[row]:
            x_next = x_next + self.noise_R[row] * noise
        return x_next, (anchor, past)


@dataclass(frozen=True)
class Plan:
    """What a builder turns into a table: the arguments of `sampler_table` with nothing left open."""

    name: str
    num_steps: int
    schedule: ScheduleConfig
    prediction_type: Prediction
    timestep_spacing: Spacing
    steps_offset: int

    def timesteps(self, num_steps: int | None = None) -> Float64:
        """Visited timesteps, (N,)."""
        N, T = num_steps or self.num_steps, self.schedule.num_train_timesteps
        return schedules.spaced_timesteps(self.timestep_spacing, N, T, self.steps_offset)

    def indices(self, num_steps: int | None = None) -> NDArray[np.int64]:
        """Visited timesteps rounded to training timesteps, (N,)."""
        return self.timesteps(num_steps).round().astype(np.int64)

    def solver_indices(self) -> NDArray[np.int64]:
        """As `indices` for solvers in the log-ratio, (N,).

        As in the reference, "leading" and "linspace" place N + 1 timesteps and leave out the cleanest.
        """
        return (
            self.indices() if self.timestep_spacing == "trailing" else self.indices(self.num_steps + 1)[:-1]
        )

    def table(
        self, timesteps_R: NDArray[Any], pred: tuple[ArrayLike, ArrayLike], past: Float64, **columns: Any
    ) -> SamplerTable:
        """A table from its columns; scalars are repeated, and a column left out does nothing."""
        start, R = float(columns.pop("init_noise_sigma", 1)), len(timesteps_R)
        columns = {"input_scale": 1, "sample": 0, "anchor": 0, "noise": 0, "set_anchor": False} | columns
        columns |= {"pred_sample": pred[0], "pred_output": pred[1]}
        for key in list(columns):
            dtype = bool if key == "set_anchor" else np.float64
            columns[f"{key}_R"] = np.broadcast_to(np.asarray(columns.pop(key), dtype), R).copy()
        told_R, past_RH = np.asarray(timesteps_R, np.float64), past.reshape(R, -1)
        return SamplerTable(self.name, start, told_R, past_RH=past_RH, **columns)


def signal_at(signal_T: Float64, t_R: NDArray[np.int64]) -> Float64:
    """alpha^2 at training timesteps, (R,); before the first there is only signal."""
    return np.where(t_R < 0, 1.0, signal_T[np.maximum(t_R, 0)])


def to_noise(plan: Plan, t_R: NDArray, signal_R: Float64) -> tuple[Float64, Float64]:
    """Factors, (R,), of alpha x0 + sigma noise and of the model's output that make the noise."""
    return move(plan.prediction_type, signal_R, np.zeros_like(signal_R), t_R)


def to_clean(plan: Plan, t_R: NDArray, signal_R: Float64) -> tuple[Float64, Float64]:
    """Factors, (R,), of alpha x0 + sigma noise and of the model's output that make the clean sample."""
    return move(plan.prediction_type, signal_R, np.ones_like(signal_R), t_R)


def move(
    prediction: Prediction, from_R: Float64, to_R: Float64, t_R: ArrayLike = 0
) -> tuple[Float64, Float64]:
    """Factors, (R,), of the sample and an exact prediction that change alpha^2 but neither x0 nor noise."""
    alpha_R: Float64 = np.sqrt(from_R)
    sigma_R: Float64 = np.sqrt(1 - from_R)
    to_alpha_R: Float64 = np.sqrt(to_R)
    to_sigma_R: Float64 = np.sqrt(1 - to_R)
    turn_R: Float64 = to_alpha_R * sigma_R - alpha_R * to_sigma_R
    if prediction == "v_prediction":
        return alpha_R * to_alpha_R + sigma_R * to_sigma_R, -turn_R
    if prediction == "sample":
        return to_sigma_R / sigma_R, turn_R / sigma_R
    if (alpha_R == 0).any():
        raise InputError(
            "got prediction_type 'epsilon', expected v_prediction or sample: timestep "
            f"{np.max(t_R):g} is pure noise and says nothing of x0; or set rescale_betas_zero_snr: false"
        )
    return to_alpha_R / alpha_R, -turn_R / alpha_R
