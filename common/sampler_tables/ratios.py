"""Samplers whose x is x0 + ratio * noise, as in arXiv:2206.00364, where a ratio is called sigma.

Shape legend: N sampling steps, T training timesteps.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import schedules
from common.schedules import Float64

from .table import Plan, SamplerTable, to_clean


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


def heun(plan: Plan) -> SamplerTable:
    """Heun's method on the probability-flow curve: arXiv:2206.00364, algorithm 1.

    Two evaluations a step: Euler's step, then its correction from where it began. The last step is Euler's.
    """
    ratio_N, next_N, shared = _ratio_columns(plan)
    half = (next_N - ratio_N)[:-1] / 2  # of the way, for the slope at either end
    corrected = half / next_N[:-1], half / ratio_N[:-1]
    present_R = _alternate(1 - next_N / ratio_N, -corrected[0])
    before_R = _alternate(np.zeros_like(ratio_N), -corrected[1])
    return plan.table(
        past=np.stack([present_R, before_R], axis=1),
        sample=_alternate(next_N / ratio_N, corrected[0]),
        anchor=_alternate(np.zeros_like(ratio_N), 1 + corrected[1]),
        set_anchor=_first_of_two(plan),
        **_at_both_ends(shared),
    )


def kdpm2_ancestral(plan: Plan) -> SamplerTable:
    """DPM-Solver-2 (arXiv:2206.00927) below the next noise level, fresh noise back up to it (k-diffusion).

    Where the next ratio is r times the present one, the step goes down to r^2 times, and its second
    evaluation is at the geometric mean of both ends: the next ratio itself. As in diffusers the model is then
    told the timestep that has this ratio by its logarithm, with "linspace" not quite where the next step is.
    In two "linspace" steps diffusers can give NaN, the root of a rounded difference; here it is a product.
    """
    ratio_N, next_N, shared = _ratio_columns(plan)
    r = next_N[:-1] / ratio_N[:-1]
    down = ratio_N[:-1] * (r + 1) * (r - 1)  # from the present ratio
    zero_N = np.zeros_like(ratio_N)
    columns = _at_both_ends(shared)
    columns["timesteps_R"] = _alternate(shared["timesteps_R"], _timesteps_of(plan, next_N[:-1]))
    return plan.table(
        past=_alternate(1 - next_N / ratio_N, -down / next_N[:-1]),
        sample=_alternate(next_N / ratio_N, down / next_N[:-1]),
        anchor=_alternate(zero_N, np.ones_like(r)),
        noise=_alternate(zero_N, next_N[:-1] * np.sqrt((1 - r) * (1 + r))),
        set_anchor=_first_of_two(plan),
        **columns,
    )


def _alternate(first_N: Float64, second_N: Float64) -> Float64:
    """A column of a sampler with two evaluations in every step but the last, (2N - 1,)."""
    column_R = np.empty(len(first_N) + len(second_N))
    column_R[::2], column_R[1::2] = first_N, second_N
    return column_R


def _first_of_two(plan: Plan) -> NDArray[np.bool_]:
    return np.arange(2 * plan.num_steps - 1) % 2 == 0


def _at_both_ends(shared: dict[str, Any]) -> dict[str, Any]:
    """The columns of one evaluation a step, (N,), for two: where it begins and where it ends, (2N - 1,)."""

    def both(column_N: Float64) -> Float64:
        return _alternate(column_N, column_N[1:])

    columns = {name: both(shared[name]) for name in ("timesteps_R", "input_scale")}
    return shared | columns | {"pred": tuple(both(column_N) for column_N in shared["pred"])}


def _timesteps_of(plan: Plan, ratio_N: Float64) -> Float64:
    """Timesteps, maybe fractional, that have these ratios by linear interpolation of their logarithms."""
    T = plan.schedule.num_train_timesteps
    log_ratio_T = np.log(schedules.noise_ratios(plan.schedule, np.arange(T)))
    return np.interp(np.log(ratio_N), log_ratio_T, np.arange(T))


def _ratio_columns(plan: Plan) -> tuple[Float64, Float64, dict[str, Any]]:
    """Present and next ratios, (N,), and the columns of the samplers whose x is x0 + ratio * noise."""
    t_N = plan.timesteps()
    ratio_N = schedules.noise_ratios(plan.schedule, t_N)
    alpha_N = 1 / np.hypot(1, ratio_N)
    pred_sample_N, pred_output_N = to_clean(plan, t_N, alpha_N**2)
    start = 1 / alpha_N[0] if plan.timestep_spacing == "leading" else ratio_N[0]
    columns = {"timesteps_R": t_N, "pred": (alpha_N * pred_sample_N, pred_output_N), "input_scale": alpha_N}
    return ratio_N, np.append(ratio_N[1:], 0.0), columns | {"init_noise_sigma": start}
