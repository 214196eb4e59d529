"""Flow matching: x is (1 - sigma) x0 + sigma noise.

Shape legend: N sampling steps.
"""

import numpy as np

from common import schedules

from .table import Plan, SamplerTable


def flow_euler(plan: Plan) -> SamplerTable:
    """Euler's method along the velocity noise - x0: arXiv:2210.02747, with the shift of arXiv:2403.03206."""
    sigma_N = schedules.flow_sigmas(plan.schedule, plan.num_steps, plan.timestep_spacing)
    r = np.append(sigma_N[1:], 0.0) / sigma_N
    pred = (1, -sigma_N) if plan.prediction_type == "flow" else (0, 1)
    return plan.table(sigma_N * plan.schedule.num_train_timesteps, pred, 1 - r, sample=r)
