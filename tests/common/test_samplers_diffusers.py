"""Samplers against diffusers' schedulers: what they compute, and what they offer."""

import inspect
import itertools

import numpy as np
import pytest

from common.samplers import SAMPLERS, SamplerTable, sampler_table
from common.schedules import ScheduleConfig
from tests.common.test_samplers import DIFFUSION, PLAIN, SHAPE, V1_5, ZERO_SNR, schedule_for

OURS_ALONE = [("EulerAncestralDiscrete", "sample"), ("PNDM", "sample")]  # diffusers' classes raise


def diffusers_class(name: str) -> tuple[type, list[str]]:
    """The class of a sampler and the arguments it takes."""
    diffusers = pytest.importorskip("diffusers")
    found = getattr(
        diffusers, {"CogVideoX": "CogVideoXDDIM", "UniPC": "UniPCMultistep"}.get(name, name) + "Scheduler"
    )
    return found, list(inspect.signature(found.__init__).parameters)


def diffusers_scheduler(name: str, schedule: ScheduleConfig, **arguments):
    """As the reference builds it: its class with what it takes of these arguments, the rest as usual."""
    found, accepted = diffusers_class(name)
    wanted = schedule.model_dump() | arguments | {"clip_sample": False}
    return found(**{key: value for key, value in wanted.items() if key in accepted})


def samples_of_diffusers(scheduler, start, outputs):
    """Free-running samples of a diffusers scheduler with set timesteps; the noise of row r has seed r."""
    import torch

    x = torch.from_numpy(start).float() * getattr(scheduler, "init_noise_sigma", 1.0)
    takes_noise = "generator" in type(scheduler).step.__code__.co_varnames
    samples = []
    for row, t in enumerate(scheduler.timesteps):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        noise = {"generator": torch.Generator().manual_seed(row)} if takes_noise else {}
        x = scheduler.step(torch.from_numpy(outputs[row]).float(), t, x, **noise).prev_sample
        samples.append(x.double().numpy())
    return samples


def assert_follows(table: SamplerTable, scheduler) -> None:
    """Both run freely from the same start, on the same model outputs and noise."""
    import torch

    apart_R = np.abs(table.timesteps_R - scheduler.timesteps.double().numpy())
    limit_R = 1e-4 + 1e-6 * table.timesteps_R
    if table.name == "KDPM2AncestralDiscrete":
        limit_R[1::2] = 0.02  # diffusers finds these in the float32 logarithms of its ratios
    assert (apart_R <= limit_R).all(), apart_R.max()
    rng = np.random.default_rng(len(table))
    start, *outputs = rng.standard_normal((1 + len(table), *SHAPE), dtype=np.float32).astype(np.float64)
    x, state = table.init_noise_sigma * start, (None, ())
    # float32 at a scale of 4096 costs diffusers 1e-4, and factors of hundreds (Heun in two steps) more; its
    # float32 schedule costs the others less
    tolerance = 3e-4 if table.init_noise_sigma > 1000 else 1e-4
    tolerance = 1e-3 if np.abs(table.sample_R).max() > 100 else tolerance
    for row, want in enumerate(samples_of_diffusers(scheduler, start, outputs)):
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(row)).double().numpy()
        x, state = table.step_numpy(row, x, outputs[row], state, noise)
        limit = tolerance * max(1.0, np.abs(want).max())
        np.testing.assert_allclose(x, want, rtol=0, atol=limit, err_msg=f"{table.name}, row {row}")


def compared_with_diffusers():
    """All that is neither refused by us nor by diffusers, as pytest parameters."""
    for name in DIFFUSION:
        for spacing, prediction_type in itertools.product(
            SAMPLERS[name].spacings, SAMPLERS[name].prediction_types
        ):
            if (name, prediction_type) not in OURS_ALONE:
                yield name, prediction_type, spacing


@pytest.mark.parametrize(("name", "prediction_type", "spacing"), list(compared_with_diffusers()))
def test_matches_diffusers(name, prediction_type, spacing):
    cases = {V1_5: (1, 2, 3, 7, 14, 15, 20, 50, 100)}
    # epsilon says nothing of x0 at the last timestep: refused, or 4096 times the rounding of float32
    if SAMPLERS[name].zero_snr and (prediction_type != "epsilon" or spacing == "leading" or name == "UniPC"):
        cases[ZERO_SNR] = (1, 2, 50)
    for schedule, numbers in cases.items():
        schedule = schedule_for(name, schedule)
        arguments = {"prediction_type": prediction_type, "timestep_spacing": spacing}
        scheduler = diffusers_scheduler(name, schedule, **arguments)
        for num_steps in numbers:
            if num_steps >= SAMPLERS[name].fewest_steps:  # else refused
                scheduler.set_timesteps(num_steps)
                table = sampler_table(name, num_steps, schedule, prediction_type, spacing)
                assert_follows(table, scheduler)


@pytest.mark.parametrize("num_steps", [2, 9])
@pytest.mark.parametrize("name", [name for name in DIFFUSION if "leading" in SAMPLERS[name].spacings])
def test_steps_offset_matches_diffusers(name, num_steps):
    schedule = schedule_for(name, PLAIN)
    num_steps = max(num_steps, SAMPLERS[name].fewest_steps)
    scheduler = diffusers_scheduler(name, schedule, timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(num_steps)
    assert_follows(sampler_table(name, num_steps, schedule, "epsilon", steps_offset=1), scheduler)


@pytest.mark.parametrize("name", DIFFUSION)
def test_offers_what_diffusers_offers(name):
    accepted = diffusers_class(name)[1]
    assert SAMPLERS[name].zero_snr == ("rescale_betas_zero_snr" in accepted)
    assert (
        (len(SAMPLERS[name].spacings) == 3)
        == ("timestep_spacing" in accepted)
        == ("steps_offset" in accepted)
    )


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("num_steps", [1, 2, 20, 100])
def test_flow_matching_matches_diffusers(num_steps, shift):
    diffusers = pytest.importorskip("diffusers")
    schedule = PLAIN.replace(shift=shift)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(num_steps)
    assert_follows(sampler_table("FlowMatchEuler", num_steps, schedule, "flow"), scheduler)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / num_steps, num_steps))
    assert_follows(sampler_table("FlowMatchEuler", num_steps, schedule, "flow", "trailing"), scheduler)


@pytest.mark.parametrize(("class_name", "name"), [("UniPCMultistepScheduler", "UniPC"), ("uni_pc", "UniPC")])
def test_names_of_diffusers_classes(class_name, name):
    assert sampler_table(class_name, 5, PLAIN).name == name
    assert sampler_table("FlowMatchEulerDiscreteScheduler", 5, PLAIN, "flow").name == "FlowMatchEuler"
