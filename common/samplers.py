"""Every sampler is a table of coefficients, one row per model evaluation; a step is a few multiply-adds.

    d = pred_sample * x + pred_output * model_output
    x_next = sample * x + anchor * x_anchor + sum_i past[i] * d_(-i) + noise * z

Shape legend: R rows (model evaluations), N sampling steps, H evaluations remembered, T training timesteps.
Diffusion keeps alpha x0 + sigma noise with alpha^2 + sigma^2 = 1; a "ratio" is sigma / alpha.
"""

import dataclasses
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common import schedules
from common.errors import InputError
from common.schedules import Float64, Prediction, ScheduleConfig, Spacing

State = tuple[Any, tuple[Any, ...]]  # x_anchor and the remembered d, newest first
RUNGE_KUTTA_ROWS = 12  # PNDM: three steps of four evaluations


@dataclass(frozen=True)
class SamplerTable:
    """A sampler for one schedule, prediction type and number of steps; its columns are read-only.

    x is the unscaled sample: it starts as `init_noise_sigma` * noise, and the model sees `input_scale` * x.
    d is the clean sample; for PNDM, whose multistep formula runs over the model's own words, the raw output.
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


def euler_ancestral(plan: Plan) -> SamplerTable:
    """Euler steps below the next noise level, fresh noise back up to it (k-diffusion, arXiv:2206.00364).

    Where the next ratio is r times the present one, the Euler step goes down to r^2 times.
    """
    ratio_N, next_N, shared = _ratio_columns(plan)
    r = next_N / ratio_N
    past_N = (1 - r) * (1 + r)
    return plan.table(past=past_N, sample=r**2, noise=next_N * np.sqrt(past_N), **shared)


def euler(plan: Plan) -> SamplerTable:
    """Euler's method on the probability-flow curve: arXiv:2206.00364, algorithm 1 without its correction."""
    ratio_N, next_N, shared = _ratio_columns(plan)
    return plan.table(past=1 - next_N / ratio_N, sample=next_N / ratio_N, **shared)


def ddim(plan: Plan) -> SamplerTable:
    """Deterministic DDIM: arXiv:2010.02502, equation 12 with eta 0.

    As in the reference, each step goes down by T // N. If N does not divide T, or with "linspace", that is
    not quite where the next row begins, and a trace of noise can stay in the end.
    """
    t_N, signal_T = plan.indices(), schedules.alphas_cumprod(plan.schedule)
    to_N = _signal(signal_T, t_N - plan.schedule.num_train_timesteps // plan.num_steps)
    sample_N, past_N = _move("sample", signal_T[t_N], to_N)
    return plan.table(t_N, _clean(plan, t_N, signal_T[t_N]), past_N, sample=sample_N)


def cogvideox(plan: Plan) -> SamplerTable:
    """DDIM on a schedule with shifted signal-to-noise ratios: arXiv:2010.02502 as in arXiv:2408.06072."""
    if plan.schedule.snr_shift_scale == 1:
        raise InputError(
            "got snr_shift_scale=1, expected the shift that makes it differ from DDIM; use DDIM, or the "
            "reference's snr_shift_scale 3, scaled_linear, beta_start 0.00085 and beta_end 0.012"
        )
    return ddim(plan)


def ddpm(plan: Plan) -> SamplerTable:
    """Ancestral sampling with the smaller posterior variance: arXiv:2006.11239, equations 6 and 7."""
    t_N, signal_T = plan.indices(), schedules.alphas_cumprod(plan.schedule)
    signal_N, next_N = signal_T[t_N], _signal(signal_T, np.append(t_N[1:], -1))
    beta_N = (next_N - signal_N) / next_N
    past_N = np.sqrt(next_N) * beta_N / (1 - signal_N)
    sample_N = np.sqrt(signal_N / next_N) * (1 - next_N) / (1 - signal_N)
    noise_N = np.sqrt(beta_N * (1 - next_N) / (1 - signal_N))
    return plan.table(t_N, _clean(plan, t_N, signal_N), past_N, sample=sample_N, noise=noise_N)


def dpm_solver(plan: Plan) -> SamplerTable:
    """DPM-Solver++(2M) in midpoint form, first order at both ends: arXiv:2211.01095, algorithm 2.

    As in the reference, "leading" and "linspace" place N + 1 timesteps and leave out the cleanest.
    """
    t_N = plan.indices() if plan.timestep_spacing == "trailing" else plan.indices(plan.num_steps + 1)[:-1]
    ratio_N = schedules.noise_ratios(plan.schedule, t_N)
    next_N = np.append(ratio_N[1:], 0.0)
    alpha_N, next_alpha_N = 1 / np.hypot(1, ratio_N), 1 / np.hypot(1, next_N)
    weight_N = next_alpha_N * (1 - next_N / ratio_N)
    fall_N = np.log(ratio_N[:-1] / next_N[:-1])
    extra_N = np.zeros_like(ratio_N)  # how far the line through the last two d is followed
    # Rows at the cap of 4096 are equally noisy, so no line goes through them.
    np.divide(fall_N[1:], 2 * fall_N[:-1], out=extra_N[1:-1], where=fall_N[:-1] > 0)
    past_NH = np.stack([weight_N * (1 + extra_N), -weight_N * extra_N], axis=1)
    sample_N = next_alpha_N * next_N / (alpha_N * ratio_N)
    return plan.table(t_N, _clean(plan, t_N, alpha_N**2), past_NH, sample=sample_N)


def pndm(plan: Plan) -> SamplerTable:
    """Three Runge-Kutta steps of four evaluations, then linear multistep: arXiv:2202.09778, algorithm 2.

    As in the reference, the last step ends at timestep 0, so a trace of noise stays; and outputs are averaged
    before the average is read as noise, which for v_prediction and sample is an approximation.
    """
    t_N, stride = plan.indices(), plan.schedule.num_train_timesteps // plan.num_steps
    half = stride // 2
    rows = []  # from, to, told: x moves between the first two timesteps, the model is told the third
    for a, b in pairwise(t_N[:4]):
        rows += [(a, a - half, a), (a, b + half, b + half), (a, b, b + half), (a, b, b)]
    rows += [(t, max(t - stride, 0), t) for t in t_N[3:]]
    from_R, to_R, told_R = np.array(rows).T
    signal_T = schedules.alphas_cumprod(plan.schedule)
    sample_R, output_R = _move(plan.prediction_type, signal_T[from_R], signal_T[to_R], from_R)

    prk_R = np.arange(len(rows)) < RUNGE_KUTTA_ROWS
    starts = list(range(0, RUNGE_KUTTA_ROWS, 4))
    mean_RH = np.zeros((len(rows), RUNGE_KUTTA_ROWS + 1))  # how outputs are averaged, newest first
    mean_RH[prk_R, 0] = 1
    mean_RH[3:RUNGE_KUTTA_ROWS:4, :4] = np.array([1, 2, 2, 1]) / 6
    for row in range(RUNGE_KUTTA_ROWS, len(rows)):
        used = [*starts, *range(RUNGE_KUTTA_ROWS, row + 1)][-4:]  # a Runge-Kutta step's first output counts
        mean_RH[row, [row - i for i in used]] = np.array([-9, 37, -59, 55]) / 24
    return plan.table(
        told_R,
        pred=(0, 1),
        past=mean_RH * output_R[:, None],
        sample=np.where(prk_R, 0, sample_R),
        anchor=np.where(prk_R, sample_R, 0),
        set_anchor=np.isin(np.arange(len(rows)), starts),
    )


def flow_euler(plan: Plan) -> SamplerTable:
    """Euler's method along the velocity noise - x0: arXiv:2210.02747, with the shift of arXiv:2403.03206."""
    sigma_N = schedules.flow_sigmas(plan.schedule, plan.num_steps, plan.timestep_spacing)
    r = np.append(sigma_N[1:], 0.0) / sigma_N
    pred = (1, -sigma_N) if plan.prediction_type == "flow" else (0, 1)
    return plan.table(sigma_N * plan.schedule.num_train_timesteps, pred, 1 - r, sample=r)


SAMPLERS: dict[str, Callable[[Plan], SamplerTable]] = {
    "EulerAncestralDiscrete": euler_ancestral,
    "EulerDiscrete": euler,
    "DDIM": ddim,
    "DDPM": ddpm,
    "DPMSolverMultistep": dpm_solver,
    "PNDM": pndm,
    "CogVideoX": cogvideox,
    "FlowMatchEuler": flow_euler,
}


def sampler_table(
    name: str,
    num_steps: int,
    schedule: ScheduleConfig,
    prediction_type: Prediction = "v_prediction",
    timestep_spacing: Spacing | None = None,
    steps_offset: int = 0,
) -> SamplerTable:
    """The table of a sampler, by a name in which case, "-", "_" and a final "Scheduler" do not matter.

    The spacing is by default "trailing" with zero terminal SNR, else "leading", as in the reference; for
    FlowMatchEuler "linspace".

    Raises:
        InputError: unknown names, steps or offsets out of range, and combinations that cannot work.
    """
    name = _known_name(name)
    flow, T = name == "FlowMatchEuler", schedule.num_train_timesteps
    usual = "linspace" if flow else "trailing" if schedule.rescale_betas_zero_snr else "leading"
    spacing = timestep_spacing or usual
    accepted = ("flow", "sample") if flow else ("v_prediction", "epsilon", "sample")
    fewest = 4 if name == "PNDM" else 1  # Runge-Kutta takes three, and multistep has to follow
    most = T - 1 if name == "DPMSolverMultistep" and spacing != "trailing" else T
    if prediction_type not in accepted:
        hint = (
            "FlowMatchEuler samples flow models" if prediction_type == "flow" else "check the model's config"
        )
        wanted = ", ".join(accepted)
        raise InputError(
            f"sampler {name}: got prediction_type {prediction_type!r}, expected {wanted}; {hint}"
        )
    if not isinstance(num_steps, int | np.integer) or not fewest <= num_steps <= most:
        raise InputError(
            f"sampler {name}: got num_steps={num_steps!r}, expected a whole number from {fewest} to {most} "
            f"with {T} training timesteps and {spacing!r} spacing"
        )
    if flow and steps_offset:
        raise InputError(f"sampler {name}: got steps_offset={steps_offset}, expected 0; use schedule.shift")
    try:
        return SAMPLERS[name](Plan(name, num_steps, schedule, prediction_type, spacing, steps_offset))
    except InputError as error:
        raise InputError(f"sampler {name}: {error}") from None


def _known_name(name: str) -> str:
    plain = {known.lower(): known for known in SAMPLERS}
    asked = name.lower().replace("-", "").replace("_", "").removesuffix("scheduler")
    if asked in plain:
        return plain[asked]
    close = difflib.get_close_matches(asked, plain, n=1)
    hint = f"did you mean {plain[close[0]]!r}? " if close else ""
    raise InputError(f"sampler {name!r} is unknown; {hint}known samplers: {', '.join(SAMPLERS)}")


def _signal(signal_T: Float64, t_R: NDArray[np.int64]) -> Float64:
    """alpha^2 at training timesteps, (R,); before the first there is only signal."""
    return np.where(t_R < 0, 1.0, signal_T[np.maximum(t_R, 0)])


def _ratio_columns(plan: Plan) -> tuple[Float64, Float64, dict[str, Any]]:
    """Present and next ratios, (N,), and the columns of the samplers whose x is x0 + ratio * noise."""
    t_N = plan.timesteps()
    ratio_N = schedules.noise_ratios(plan.schedule, t_N)
    alpha_N = 1 / np.hypot(1, ratio_N)
    pred_sample_N, pred_output_N = _clean(plan, t_N, alpha_N**2)
    start = 1 / alpha_N[0] if plan.timestep_spacing == "leading" else ratio_N[0]
    columns = {"timesteps_R": t_N, "pred": (alpha_N * pred_sample_N, pred_output_N), "input_scale": alpha_N}
    return ratio_N, np.append(ratio_N[1:], 0.0), columns | {"init_noise_sigma": start}


def _clean(plan: Plan, t_R: NDArray, signal_R: Float64) -> tuple[Float64, Float64]:
    """Factors, (R,), of alpha x0 + sigma noise and of the model's output that make the clean sample."""
    return _move(plan.prediction_type, signal_R, np.ones_like(signal_R), t_R)


def _move(
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
