"""Promises of the sampler tables: the reference's numbers, diffusers' numbers, exactness for a perfect model.

Shape legend: R rows (model evaluations), N sampling steps.
"""

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from common import schedules
from common.samplers import SAMPLERS, SamplerTable, sampler_table
from common.schedules import ScheduleConfig
from tests.recorded import recorded
from tools.parity.goldens import Case

PLAIN = ScheduleConfig()
ZERO_SNR = ScheduleConfig(rescale_betas_zero_snr=True)
V1_5 = ScheduleConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
ARGUMENT_SETS = {  # of the reference's sample.py
    "zsnr_v": (ZERO_SNR, "v_prediction"),
    "plain_eps": (PLAIN, "epsilon"),
    "v15_v": (V1_5.replace(rescale_betas_zero_snr=True), "v_prediction"),
}
DIFFUSION = [name for name in SAMPLERS if name != "FlowMatchEuler"]
RATIO_SAMPLERS = ("EulerAncestralDiscrete", "EulerDiscrete")  # their x is x0 + ratio * noise
SHAPE = (2, 3, 4)


def reference_choice(name: str, schedule: ScheduleConfig) -> tuple[ScheduleConfig, str]:
    """The schedule and spacing that the reference really uses: two of its schedulers ignore arguments."""
    spacing = "trailing" if schedule.rescale_betas_zero_snr else "leading"
    if name == "PNDM":
        schedule = schedule.replace(rescale_betas_zero_snr=False)
    if name == "CogVideoX":
        zero_snr = schedule.rescale_betas_zero_snr
        schedule = V1_5.replace(snr_shift_scale=3.0, rescale_betas_zero_snr=zero_snr)
    return schedule, spacing


def schedule_for(name: str, schedule: ScheduleConfig) -> ScheduleConfig:
    return schedule.replace(snr_shift_scale=3.0) if name == "CogVideoX" else schedule


@functools.cache
def golden(name: str) -> Case:
    """A recorded case, its numbers in float64."""
    case = recorded(name)
    inputs, outputs = (
        {key: values.astype(np.float64) for key, values in tensors.items()}
        for tensors in (case.inputs, case.outputs)
    )
    return dataclasses.replace(case, inputs=inputs, outputs=outputs)


@pytest.mark.parametrize("arguments", ARGUMENT_SETS)
@pytest.mark.parametrize("name", DIFFUSION)
def test_matches_the_reference(name, arguments):
    case = golden("schedulers")
    schedule, prediction_type = ARGUMENT_SETS[arguments]
    schedule, spacing = reference_choice(name, schedule)
    table = sampler_table(name, 5, schedule, prediction_type, spacing)

    ours = {"timesteps": table.timesteps_R}
    signal_T = schedules.alphas_cumprod(schedule)
    ours |= {"alphas_cumprod_every_37": signal_T[::37], "alphas_cumprod_last": signal_T[-1:]}
    if name in (*RATIO_SAMPLERS, "DPMSolverMultistep"):
        ours["sigmas"] = np.append(schedules.noise_ratios(schedule, table.timesteps_R), 0)
    x, state = table.init_noise_sigma * case.inputs["initial_noise"], (None, ())
    ours["scaled_model_input_0"] = table.input_scale_R[0] * x
    for row in range(min(len(table), 12)):  # the case holds no more model outputs
        noise = case.inputs.get(f"noise.{name}.{arguments}.{row}")
        x, state = table.step_numpy(row, x, case.inputs[f"model_output_{row}"], state, noise)
        ours[f"sample_after_{row}"] = x

    key = f"{name}.{arguments}"
    info = case.record["info"][key]
    assert len(table) == info["calls"]
    assert table.init_noise_sigma == pytest.approx(info["init_noise_sigma"], rel=1e-6)
    assert {k.removeprefix(f"{key}.") for k in case.outputs if k.startswith(f"{key}.")} == set(ours)
    for output, value in ours.items():
        recorded_as = f"{key}.{output}"
        atol = case.tolerance(recorded_as)
        np.testing.assert_allclose(value, case.outputs[recorded_as], rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("case_name", "name"),
    [
        ("sample_t2v_euler_ancestral", "EulerAncestralDiscrete"),
        ("sample_t2v_ddim", "DDIM"),
        ("sample_t2v_dpmsolver_multistep", "DPMSolverMultistep"),
        ("sample_t2v_pndm_epsilon", "PNDM"),
    ],
)
def test_follows_a_recorded_pipeline(case_name, name):
    case = golden(case_name)
    record, outputs = case.record, case.outputs
    known = {k: v for k, v in record["scheduler_config"].items() if k in ScheduleConfig.model_fields}
    prediction_type = record["scheduler_config"]["prediction_type"]
    steps = record["call"]["num_inference_steps"]
    table = sampler_table(record["scheduler_class"], steps, ScheduleConfig(**known), prediction_type)
    assert table.name == name
    np.testing.assert_array_equal(table.timesteps_R, outputs["timesteps"])

    x, state = table.init_noise_sigma * case.inputs["noise.0"], (None, ())
    for row in range(len(table)):
        negative, positive = np.split(outputs[f"model_output_{row}"], 2)
        guided = negative + record["call"]["guidance_scale"] * (positive - negative)
        x, state = table.step_numpy(row, x, guided, state, case.inputs.get(f"noise.{row + 1}"))
        step = f"latents_after_step_{row}"
        np.testing.assert_allclose(x, outputs[step], rtol=0, atol=case.tolerance(step))


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

    np.testing.assert_allclose(table.timesteps_R, scheduler.timesteps.double().numpy(), rtol=1e-6, atol=1e-4)
    rng = np.random.default_rng(len(table))
    start, *outputs = rng.standard_normal((1 + len(table), *SHAPE), dtype=np.float32).astype(np.float64)
    x, state = table.init_noise_sigma * start, (None, ())
    # float32 at a scale of 4096 costs diffusers 1e-4; its float32 schedule costs the others less
    tolerance = 3e-4 if table.init_noise_sigma > 1000 else 1e-4
    for row, want in enumerate(samples_of_diffusers(scheduler, start, outputs)):
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(row)).double().numpy()
        x, state = table.step_numpy(row, x, outputs[row], state, noise)
        limit = tolerance * max(1.0, np.abs(want).max())
        np.testing.assert_allclose(x, want, rtol=0, atol=limit, err_msg=f"{table.name}, row {row}")


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(
    ("name", "prediction_type"),
    [
        (name, prediction_type)
        for name, prediction_type in itertools.product(DIFFUSION, ("v_prediction", "epsilon", "sample"))
        if prediction_type != "sample"
        or name not in ("EulerAncestralDiscrete", "PNDM")  # unknown to these two
    ],
)
def test_matches_diffusers(name, prediction_type, spacing):
    diffusers = pytest.importorskip("diffusers")
    scheduler_class = getattr(diffusers, {"CogVideoX": "CogVideoXDDIM"}.get(name, name) + "Scheduler")
    accepted = scheduler_class.__init__.__wrapped__.__code__.co_varnames
    for num_steps, schedule in [(n, V1_5) for n in (1, 2, 7, 20, 100)] + [(n, ZERO_SNR) for n in (1, 2, 50)]:
        if name == "PNDM" and (num_steps < 4 or schedule == ZERO_SNR):  # refused; not read by diffusers
            continue
        if (schedule, prediction_type) == (ZERO_SNR, "epsilon") and spacing != "leading":
            continue
        schedule = schedule_for(name, schedule)
        table = sampler_table(name, num_steps, schedule, prediction_type, spacing)
        wanted = schedule.model_dump() | {"prediction_type": prediction_type, "timestep_spacing": spacing}
        wanted |= {"clip_sample": False}
        scheduler = scheduler_class(**{k: v for k, v in wanted.items() if k in accepted})
        scheduler.set_timesteps(num_steps)
        assert_follows(table, scheduler)


@pytest.mark.parametrize("name", DIFFUSION)
def test_steps_offset_matches_diffusers(name):
    diffusers = pytest.importorskip("diffusers")
    scheduler_class = getattr(diffusers, {"CogVideoX": "CogVideoXDDIM"}.get(name, name) + "Scheduler")
    schedule = schedule_for(name, PLAIN)
    wanted = schedule.model_dump() | {"timestep_spacing": "leading", "steps_offset": 1, "clip_sample": False}
    accepted = scheduler_class.__init__.__wrapped__.__code__.co_varnames
    scheduler = scheduler_class(**{k: v for k, v in wanted.items() if k in accepted})
    scheduler.set_timesteps(9)
    assert_follows(sampler_table(name, 9, schedule, "epsilon", steps_offset=1), scheduler)


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


def levels(table: SamplerTable, schedule: ScheduleConfig) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, sigma) that the model's input should have in each row, (R,), from the schedule alone."""
    if table.name == "FlowMatchEuler":
        sigma_R = table.timesteps_R / schedule.num_train_timesteps
        return 1 - sigma_R, sigma_R
    if table.name in (*RATIO_SAMPLERS, "DPMSolverMultistep"):
        ratio_R = schedules.noise_ratios(schedule, table.timesteps_R)
        return 1 / np.sqrt(1 + ratio_R**2), ratio_R / np.sqrt(1 + ratio_R**2)
    signal_R = schedules.alphas_cumprod(schedule)[table.timesteps_R.astype(int)]
    return np.sqrt(signal_R), np.sqrt(1 - signal_R)


def perfect_output(prediction_type, x, x0, alpha, sigma):
    """What a model says that knows the only clean sample there is."""
    noise = (x - alpha * x0) / sigma
    said = {"sample": x0, "epsilon": noise, "v_prediction": alpha * noise - sigma * x0, "flow": noise - x0}
    return said[prediction_type]


def perfect_cases():
    """All that is neither refused nor only approximate, as pytest parameters with readable names."""
    for name, schedule in itertools.product(SAMPLERS, (PLAIN, ZERO_SNR)):
        predictions = {"v_prediction", "epsilon", "sample"}
        if name == "FlowMatchEuler":
            predictions = {"flow", "sample"}
        if name == "PNDM":
            predictions -= {"v_prediction"}  # see test_pndm_converges_on_velocities
        if schedule == ZERO_SNR and name in ("DDIM", "DDPM", "CogVideoX", "PNDM"):
            predictions -= {"epsilon"}  # see test_errors_say_what_was_wanted
        label = "zero_snr" if schedule == ZERO_SNR else "plain"
        for prediction in sorted(predictions):
            yield pytest.param(name, prediction, schedule, id=f"{name}-{prediction}-{label}")


@pytest.mark.parametrize(("name", "prediction_type", "schedule"), list(perfect_cases()))
def test_perfect_model_leads_to_its_sample(name, prediction_type, schedule):
    """Deterministic samplers stay on the line between sample and noise; all of them end at the sample."""
    schedule = schedule_for(name, schedule)
    table = sampler_table(name, 10, schedule, prediction_type)
    alpha_R, sigma_R = levels(table, schedule)
    rng = np.random.default_rng(0)
    x0, start, *draws = rng.standard_normal((2 + len(table), *SHAPE))
    x, state = table.init_noise_sigma * start, (None, ())
    line = (table.input_scale_R[0] * x - alpha_R[0] * x0) / sigma_R[0]
    for row in range(len(table)):
        model_input = table.input_scale_R[row] * x
        if not table.draws_noise_R.any():
            on_line = alpha_R[row] * x0 + sigma_R[row] * line
            np.testing.assert_allclose(model_input, on_line, rtol=0, atol=1e-9, err_msg=f"row {row}")
        output = perfect_output(prediction_type, model_input, x0, alpha_R[row], sigma_R[row])
        x, state = table.step_numpy(row, x, output, state, draws[row])
    signal = schedules.alphas_cumprod(schedule)[0] if name == "PNDM" else 1.0  # PNDM ends at timestep 0
    end = np.sqrt(signal) * x0 + np.sqrt(1 - signal) * line
    np.testing.assert_allclose(x, end, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "spacing"),
    [
        (name, spacing)
        for name, spacing in itertools.product(SAMPLERS, ("leading", "trailing", "linspace"))
        if name != "PNDM"
        and (name, spacing) != ("FlowMatchEuler", "leading")  # refused
        and (name, spacing) not in (("DDIM", "linspace"), ("CogVideoX", "linspace"))  # they step by T // N
    ],
)
@pytest.mark.parametrize("schedule", [PLAIN, ZERO_SNR], ids=["plain", "zero_snr"])
def test_every_row_leaves_the_right_amounts_of_signal_and_noise(name, schedule, spacing):
    schedule = schedule_for(name, schedule)
    table = sampler_table(name, 20, schedule, "sample", spacing)
    alpha_R, sigma_R = (level / table.input_scale_R for level in levels(table, schedule))
    signal_R = table.sample_R * alpha_R + table.past_RH.sum(axis=1)
    noise_R = np.hypot(table.sample_R * sigma_R, table.noise_R)
    np.testing.assert_allclose(signal_R, np.append(alpha_R[1:], 1), atol=1e-12)
    np.testing.assert_allclose(noise_R, np.append(sigma_R[1:], 0), atol=1e-9)


def test_pndm_converges_on_velocities():
    """It averages velocities as they are, so that even a perfect model is followed only in the limit."""
    errors = []
    for num_steps in (10, 20, 40):
        table = sampler_table("PNDM", num_steps, PLAIN, "v_prediction")
        alpha_R, sigma_R = levels(table, PLAIN)
        x0, x, state = 0.7, 1.0, (None, ())
        line = (x - alpha_R[0] * x0) / sigma_R[0]
        for row in range(len(table)):
            output = perfect_output("v_prediction", x, x0, alpha_R[row], sigma_R[row])
            x, state = table.step_numpy(row, x, output, state)
        errors.append(abs(x - alpha_R[-1] * x0 - sigma_R[-1] * line))
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0, errors


@pytest.mark.parametrize("name", SAMPLERS)
def test_any_number_of_steps_gives_a_finite_table(name):
    prediction_type = "flow" if name == "FlowMatchEuler" else "v_prediction"
    for schedule, num_steps in itertools.product((PLAIN, ZERO_SNR), (4, 5, 285, 286, 500, 999, 1000)):
        if name == "DPMSolverMultistep" and (schedule, num_steps) == (PLAIN, 1000):
            continue  # refused: leading spacing places one timestep more
        table = sampler_table(name, num_steps, schedule_for(name, schedule), prediction_type)
        assert len(table) == num_steps + (9 if name == "PNDM" else 0)
        assert np.abs(table.past_RH).max() < 10
        assert (table.noise_R >= 0).all()


def test_tables_cannot_be_changed():
    table = sampler_table("DDIM", 5, PLAIN)
    with pytest.raises(ValueError, match="read-only"):
        table.sample_R[0] = 0
    with pytest.raises(AttributeError):
        table.sample_R = np.zeros(5)


def test_only_ancestral_samplers_draw_noise_and_never_in_their_last_step():
    for name in DIFFUSION:
        draws = sampler_table(name, 10, schedule_for(name, PLAIN)).draws_noise_R
        assert draws[:-1].all() if name in ("EulerAncestralDiscrete", "DDPM") else not draws.any()
        assert not draws[-1]


@pytest.mark.parametrize(
    "spelling", ["EulerAncestralDiscrete", "euler_ancestral_discrete", "EULER-ANCESTRAL-DISCRETE-SCHEDULER"]
)
def test_spellings_of_a_name(spelling):
    assert sampler_table(spelling, 5, PLAIN).name == "EulerAncestralDiscrete"


@pytest.mark.parametrize(
    ("name", "num_steps", "schedule", "arguments", "message"),
    [
        ("EulerAncestral", 5, PLAIN, {}, "did you mean 'EulerAncestralDiscrete'.*known samplers: .*PNDM"),
        ("HeunDiscrete", 5, PLAIN, {}, "'HeunDiscrete' is unknown"),
        ("DDIM", 0, PLAIN, {}, "DDIM: got num_steps=0, expected a whole number from 1 to 1000"),
        ("DDIM", 1001, PLAIN, {}, "num_steps=1001, expected a whole number from 1 to 1000"),
        ("DDIM", 5.0, PLAIN, {}, "num_steps=5.0, expected a whole number"),
        ("PNDM", 3, PLAIN, {}, "PNDM: got num_steps=3, expected a whole number from 4 to 1000"),
        ("DPMSolverMultistep", 1000, PLAIN, {}, "num_steps=1000, .* to 999 .*'leading'"),
        ("DDIM", 5, PLAIN, {"prediction_type": "flow"}, "'flow', expected v_prediction.*FlowMatchEuler"),
        ("DDIM", 5, PLAIN, {"prediction_type": "noise"}, "'noise', expected v_prediction, epsilon, sample"),
        ("FlowMatchEuler", 5, PLAIN, {}, "'v_prediction', expected flow, sample"),
        ("DDIM", 5, ZERO_SNR, {"prediction_type": "epsilon"}, "DDIM: .*timestep 999 is pure noise"),
        ("DDPM", 5, ZERO_SNR, {"prediction_type": "epsilon"}, "DDPM: .*timestep 999 is pure noise"),
        ("PNDM", 5, ZERO_SNR, {"prediction_type": "epsilon"}, "PNDM: .*timestep 999 is pure noise"),
        ("CogVideoX", 5, PLAIN, {}, "CogVideoX: got snr_shift_scale=1"),
        (
            "DDIM",
            5,
            PLAIN,
            {"timestep_spacing": "even"},
            "DDIM: got timestep_spacing 'even', expected one of",
        ),
        ("DDIM", 5, ZERO_SNR, {"steps_offset": 1}, "DDIM: got steps_offset=1 with 5 'trailing' steps"),
        ("FlowMatchEuler", 5, PLAIN, {"prediction_type": "flow", "timestep_spacing": "leading"}, "'leading'"),
        ("FlowMatchEuler", 5, PLAIN, {"prediction_type": "flow", "steps_offset": 1}, "steps_offset=1"),
    ],
)
def test_errors_say_what_was_wanted(name, num_steps, schedule, arguments, message):
    with pytest.raises(ValueError, match=message):
        sampler_table(name, num_steps, schedule, **arguments)
