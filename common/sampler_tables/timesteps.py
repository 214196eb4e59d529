"""Samplers that step between the training timesteps themselves: DDIM, DDPM, PNDM.

Shape legend: R rows (model evaluations), H evaluations remembered, N sampling steps, T training timesteps.
"""

from itertools import pairwise

import numpy as np

from common import schedules
from common.errors import InputError

from .table import Plan, SamplerTable, move, signal_at, to_clean

RUNGE_KUTTA_ROWS = 12  # PNDM: three steps of four evaluations


def ddim(plan: Plan) -> SamplerTable:
    """Deterministic DDIM: arXiv:2010.02502, equation 12 with eta 0.

    As in the reference, each step goes down by T // N. If N does not divide T, or with "linspace", that is
    not quite where the next row begins, and a trace of noise can stay in the end.
    """
    t_N, signal_T = plan.indices(), schedules.alphas_cumprod(plan.schedule)
    to_N = signal_at(signal_T, t_N - plan.schedule.num_train_timesteps // plan.num_steps)
    sample_N, past_N = move("sample", signal_T[t_N], to_N)
    return plan.table(t_N, to_clean(plan, t_N, signal_T[t_N]), past_N, sample=sample_N)


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
    signal_N, next_N = signal_T[t_N], signal_at(signal_T, np.append(t_N[1:], -1))
    beta_N = (next_N - signal_N) / next_N
    past_N = np.sqrt(next_N) * beta_N / (1 - signal_N)
    sample_N = np.sqrt(signal_N / next_N) * (1 - next_N) / (1 - signal_N)
    noise_N = np.sqrt(beta_N * (1 - next_N) / (1 - signal_N))
    return plan.table(t_N, to_clean(plan, t_N, signal_N), past_N, sample=sample_N, noise=noise_N)


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
    sample_R, output_R = move(plan.prediction_type, signal_T[from_R], signal_T[to_R], from_R)

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
