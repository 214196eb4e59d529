"""Solvers of the probability-flow curve that integrate over the logarithm of the ratio.

Shape legend: N sampling steps, H evaluations remembered.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common import schedules
from common.schedules import Float64

from .table import Plan, SamplerTable, to_clean, to_noise


class Levels(NamedTuple):
    """Where a solver's steps begin and end, each (N,)."""

    t_N: NDArray[np.int64]
    ratio_N: Float64
    alpha_N: Float64
    next_N: Float64  # the ratio where the step ends
    next_alpha_N: Float64

    @property
    def kept_N(self) -> Float64:
        """How much of x is left after a step that leaves the clean sample alone."""
        return self.next_alpha_N * self.next_N / (self.alpha_N * self.ratio_N)

    @property
    def weight_N(self) -> Float64:
        """How much of the clean sample such a step adds."""
        return self.next_alpha_N * (1 - self.next_N / self.ratio_N)

    @property
    def fall_N(self) -> Float64:
        """How far the log-ratio falls in the steps before the last, (N - 1,)."""
        return np.log(self.ratio_N[:-1] / self.next_N[:-1])


def _levels(plan: Plan, last_ratio: float = 0.0) -> Levels:
    t_N = plan.solver_indices()
    ratio_N = schedules.noise_ratios(plan.schedule, t_N)
    next_N = np.append(ratio_N[1:], last_ratio)
    return Levels(t_N, ratio_N, 1 / np.hypot(1, ratio_N), next_N, 1 / np.hypot(1, next_N))


def _two_points(levels: Levels) -> Float64:
    """Weights of the present and the previous clean sample in a second-order step, (N, 2).

    The first and the last step are of first order: nothing is remembered, or the curve ends.
    """
    fall_N = levels.fall_N
    extra_N = np.zeros_like(levels.ratio_N)  # how far the line through the last two d is followed
    # Rows at the cap of 4096 are equally noisy, so no line goes through them.
    np.divide(fall_N[1:], 2 * fall_N[:-1], out=extra_N[1:-1], where=fall_N[:-1] > 0)
    return np.stack([levels.weight_N * (1 + extra_N), -levels.weight_N * extra_N], axis=1)


def dpm_solver(plan: Plan) -> SamplerTable:
    """DPM-Solver++(2M) in midpoint form, first order at both ends: arXiv:2211.01095, algorithm 2."""
    levels = _levels(plan)
    pred = to_clean(plan, levels.t_N, levels.alpha_N**2)
    return plan.table(levels.t_N, pred, _two_points(levels), sample=levels.kept_N)


def dpm_solver_singlestep(plan: Plan) -> SamplerTable:
    """DPM-Solver++(2S) in midpoint form: arXiv:2211.01095, algorithm 1.

    Steps go in pairs: one of first order, then from where it began one of second order over both. As in
    diffusers the last step is of first order, and with an even number the last two are.
    """
    levels, N = _levels(plan), plan.num_steps
    second_N = (np.arange(N) % 2 == 1) & (np.arange(N) < N - 1)
    past_NH = np.stack([levels.weight_N, np.zeros(N)], axis=1)
    sample_N, anchor_N = np.where(second_N, 0, levels.kept_N), np.zeros(N)
    for row in np.flatnonzero(second_N):
        start, middle, end = levels.ratio_N[row - 1], levels.ratio_N[row], levels.next_N[row]
        weight = levels.next_alpha_N[row] * (1 - end / start)
        reach = np.log(start / end) / (2 * np.log(start / middle))
        past_NH[row] = weight * reach, weight * (1 - reach)
        anchor_N[row] = levels.next_alpha_N[row] * end / (levels.alpha_N[row - 1] * start)
    pred = to_clean(plan, levels.t_N, levels.alpha_N**2)
    return plan.table(levels.t_N, pred, past_NH, sample=sample_N, anchor=anchor_N, set_anchor=~second_N)


def deis(plan: Plan) -> SamplerTable:
    """DEIS of second order, noise interpolated over the log-ratio: arXiv:2204.13902, section 3.

    As in diffusers, the last step ends at timestep 0, so a trace of noise stays; and with fewer than 15 steps
    it is of first order.
    """
    levels = _levels(plan, schedules.noise_ratios(plan.schedule, [0])[0])
    ratio_N, next_N = levels.ratio_N, levels.next_N
    past_NH = np.stack([next_N - ratio_N, np.zeros_like(ratio_N)], axis=1)  # of x / alpha
    second = slice(1, -1 if plan.num_steps < 15 else None)
    before, here, after = np.roll(ratio_N, 1)[second], ratio_N[second], next_N[second]
    past_NH[second, 0] = _integral_of_line(here, after, here, before)
    past_NH[second, 1] = _integral_of_line(here, after, before, here)
    past_NH *= levels.next_alpha_N[:, None]
    pred = to_noise(plan, levels.t_N, levels.alpha_N**2)
    return plan.table(levels.t_N, pred, past_NH, sample=levels.next_alpha_N / levels.alpha_N)


def _integral_of_line(start: Float64, end: Float64, one: Float64, zero: Float64) -> Float64:
    """The integral over ratios of the line in their logarithm that is 1 at `one` and 0 at `zero`."""
    end_area = end * (np.log(end / zero) - 1)
    return (end_area - start * (np.log(start / zero) - 1)) / np.log(one / zero)


def unipc(plan: Plan) -> SamplerTable:
    """UniPC of second order, B2, on clean samples: arXiv:2302.04867, section 3.

    A row corrects x with what the model says of it, then predicts from the corrected sample, so that the
    history is one of corrected samples. No column holds them: x was itself predicted from the corrected
    sample before, so a correction that starts there too is a sum over d, whose weights add up to 0, on top of
    x. As in diffusers the model is not asked again once x is corrected, and x_next is what was predicted.
    """
    levels = _levels(plan)
    past_NH = np.pad(_two_points(levels), ((0, 0), (0, 1)))
    past_NH[1:] += levels.kept_N[1:, None] * _corrections(levels)
    pred = to_clean(plan, levels.t_N, levels.alpha_N**2)
    return plan.table(levels.t_N, pred, past_NH, sample=levels.kept_N)


def _corrections(levels: Levels) -> Float64:
    """What a corrected x has more of the last three d, in the rows after the first, (N - 1, 3).

    A step's corrector follows its predictor's line by another weight, and a line to where the step arrived.
    """
    fall_N, weight_N = levels.fall_N, levels.weight_N[:-1]
    line_N, arrival_N = np.zeros_like(fall_N), np.full_like(fall_N, 0.5)
    place_N = np.zeros_like(fall_N)  # the evaluation before, in steps from the present one
    second_N = np.zeros(len(fall_N), bool)
    second_N[1:] = (fall_N[:-1] > 0) & (fall_N[1:] > 0)  # as `_two_points`
    np.divide(-fall_N[:-1], fall_N[1:], out=place_N[1:], where=second_N[1:])
    h, place = -fall_N[second_N], place_N[second_N]
    first = (np.expm1(h) / h - 1) / np.expm1(h)
    second = 2 * ((np.expm1(h) / h - 1) / h - 0.5) / np.expm1(h)
    line = (first - second) / (1 - place)
    arrival_N[second_N] = first - line
    line_N[second_N] = (line - 0.5) / place  # the predictor's weight is 0.5
    there_N, old_N = weight_N * arrival_N, weight_N * line_N
    return np.stack([there_N, -there_N - old_N, old_N], axis=1)
