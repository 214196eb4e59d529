"""The samplers by name: what each of them offers, and its table for a schedule and a number of steps."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from common.errors import InputError
from common.sampler_tables import flow, ratios, solvers, timesteps
from common.sampler_tables.table import Plan, SamplerTable
from common.schedules import Prediction, ScheduleConfig, Spacing


@dataclass(frozen=True)
class Sampler:
    """What builds a sampler's tables, and what it offers; anything else is refused."""

    build: Callable[[Plan], SamplerTable]
    prediction_types: tuple[Prediction, ...] = ("v_prediction", "epsilon", "sample")
    spacings: tuple[Spacing, ...] = ("leading", "trailing", "linspace")  # the usual one first
    zero_snr: bool = True  # takes schedules whose last timestep is pure noise
    fewest_steps: int = 1
    leaves_out_cleanest: bool = False  # except with "trailing", N steps are the first of N + 1

    @property
    def is_flow(self) -> bool:
        """Whether it samples flow-matching models, whose schedule has `shift` in the place of betas."""
        return "flow" in self.prediction_types

    def usual_spacing(self, schedule: ScheduleConfig) -> Spacing:
        """With zero terminal SNR sampling has to start at the last timestep."""
        zero_snr = schedule.rescale_betas_zero_snr and not self.is_flow
        return "trailing" if zero_snr else self.spacings[0]

    def most_steps(self, schedule: ScheduleConfig, spacing: Spacing) -> int:
        """How many steps the training timesteps suffice for."""
        return schedule.num_train_timesteps - (self.leaves_out_cleanest and spacing != "trailing")


_SOLVER = Sampler(solvers.dpm_solver, leaves_out_cleanest=True)

SAMPLERS: dict[str, Sampler] = {
    "EulerAncestralDiscrete": Sampler(ratios.euler_ancestral),
    "EulerDiscrete": Sampler(ratios.euler),
    "HeunDiscrete": Sampler(ratios.heun, zero_snr=False),
    "KDPM2AncestralDiscrete": Sampler(
        ratios.kdpm2_ancestral, prediction_types=("v_prediction", "epsilon"), zero_snr=False
    ),
    "DDIM": Sampler(timesteps.ddim),
    "DDPM": Sampler(timesteps.ddpm),
    "PNDM": Sampler(timesteps.pndm, zero_snr=False, fewest_steps=4),  # multistep after Runge-Kutta's three
    "CogVideoX": Sampler(timesteps.cogvideox),
    "DPMSolverMultistep": _SOLVER,
    "DPMSolverSinglestep": replace(
        _SOLVER, build=solvers.dpm_solver_singlestep, spacings=("linspace",), zero_snr=False
    ),
    "DEISMultistep": replace(_SOLVER, build=solvers.deis, zero_snr=False),
    "UniPC": replace(_SOLVER, build=solvers.unipc),
    "FlowMatchEuler": Sampler(flow.flow_euler, ("flow", "sample"), ("linspace", "trailing")),
}

LONGER_NAMES = {
    "unipcmultistep": "UniPC",
    "cogvideoxddim": "CogVideoX",
    "flowmatcheulerdiscrete": "FlowMatchEuler",
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
    DPMSolverSinglestep and FlowMatchEuler "linspace".

    Raises:
        InputError: unknown names, what a sampler does not offer, steps or offsets out of range, and
            combinations that cannot work.
    """
    name = _known_name(name)
    sampler = SAMPLERS[name]
    spacing = timestep_spacing or sampler.usual_spacing(schedule)
    try:
        _check_schedule(sampler, schedule)
        _check_prediction(sampler, prediction_type)
        _check_timesteps(sampler, schedule, num_steps, spacing, steps_offset)
        return sampler.build(Plan(name, num_steps, schedule, prediction_type, spacing, steps_offset))
    except InputError as error:
        raise InputError(f"sampler {name}: {error}") from None


def _known_name(name: str) -> str:
    plain = {known.lower(): known for known in SAMPLERS} | LONGER_NAMES
    asked = name.lower().replace("-", "").replace("_", "").removesuffix("scheduler")
    if asked in plain:
        return plain[asked]
    close = difflib.get_close_matches(asked, plain, n=1)
    hint = f"did you mean {plain[close[0]]!r}? " if close else ""
    raise InputError(f"sampler {name!r} is unknown; {hint}known samplers: {', '.join(SAMPLERS)}")


def _check_schedule(sampler: Sampler, schedule: ScheduleConfig) -> None:
    if schedule.rescale_betas_zero_snr and not sampler.zero_snr:
        others = ", ".join(name for name, s in SAMPLERS.items() if s.zero_snr and not s.is_flow)
        raise InputError(
            "got schedule.rescale_betas_zero_snr=true, expected false: it knows no zero terminal SNR; for a "
            f"model trained with it take one of {others}. The reference drops the flag with PNDM: set "
            "schedule.rescale_betas_zero_snr=false timestep_spacing=trailing for what it makes then"
        )
    unread = "snr_shift_scale" if sampler.is_flow else "shift"
    if (value := getattr(schedule, unread)) != 1:
        kind, other = ("flow", "diffusion") if sampler.is_flow else ("diffusion", "flow")
        raise InputError(
            f"got schedule.{unread}={value:g}, which belongs to {other} models, expected 1; "
            f"remove it, or take a sampler that is not for {kind} models"
        )


def _check_prediction(sampler: Sampler, prediction_type: Prediction) -> None:
    if prediction_type in sampler.prediction_types:
        return
    others = ", ".join(name for name, s in SAMPLERS.items() if prediction_type in s.prediction_types)
    hint = f"it is taken by {others}" if others else "check the model's config"
    wanted = ", ".join(sampler.prediction_types)
    raise InputError(f"got prediction_type {prediction_type!r}, expected {wanted}; {hint}")


def _check_timesteps(
    sampler: Sampler, schedule: ScheduleConfig, num_steps: int, spacing: Spacing, steps_offset: int
) -> None:
    if spacing not in sampler.spacings:
        wanted = "expected one of " if len(sampler.spacings) > 1 else "expected "
        raise InputError(
            f"got timestep_spacing {spacing!r}, {wanted}{', '.join(sampler.spacings)}; "
            "left out, it is the usual one"
        )
    fewest, most = sampler.fewest_steps, sampler.most_steps(schedule, spacing)
    if not isinstance(num_steps, int | np.integer) or not fewest <= num_steps <= most:
        raise InputError(
            f"got num_steps={num_steps!r}, expected a whole number from {fewest} to {most} "
            f"with {schedule.num_train_timesteps} training timesteps and {spacing!r} spacing"
        )
    if sampler.is_flow and steps_offset:
        raise InputError(f"got steps_offset={steps_offset}, expected 0; use schedule.shift")
