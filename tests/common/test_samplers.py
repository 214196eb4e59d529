"""Promises of the sampler tables: the reference's numbers, diffusers' numbers, exactness for a perfect model.

Shape legend: R rows (model evaluations), N sampling steps.
"""

import dataclasses
import functools
import itertools
from pathlib import Path

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
DIFFUSION = [name for name, sampler in SAMPLERS.items() if not sampler.is_flow]
RECORDED = [
    "EulerAncestralDiscrete",
    "EulerDiscrete",
    "DDIM",
    "DDPM",
    "DPMSolverMultistep",
    "PNDM",
    "CogVideoX",
]
ANCESTRAL = ("EulerAncestralDiscrete", "KDPM2AncestralDiscrete", "DDPM")
TWO_EVALUATIONS = ("HeunDiscrete", "KDPM2AncestralDiscrete")
BY_ALPHAS_CUMPROD = ("DDIM", "DDPM", "PNDM", "CogVideoX")  # where the last timestep is exactly pure noise
RATIO_SAMPLERS = ("EulerAncestralDiscrete", "EulerDiscrete")  # their x is x0 + ratio * noise
ENDS_AT_TIMESTEP_0 = ("PNDM", "DEISMultistep")  # so that a trace of noise stays
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


def schedules_for(name: str) -> list[ScheduleConfig]:
    """Those that a sampler offers, without and with zero terminal SNR."""
    offered = [PLAIN, ZERO_SNR] if SAMPLERS[name].zero_snr else [PLAIN]
    return [schedule_for(name, schedule) for schedule in offered]


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
@pytest.mark.parametrize("name", RECORDED)
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


def test_documentation_lists_what_is_offered():
    text = (Path(__file__).parents[2] / "docs" / "inference.md").read_text(encoding="utf-8")
    table = text.split("## Samplers")[1].split("## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line
    ]
    listed = {name: cells for name, *cells in rows[2:]}
    assert list(listed) == list(SAMPLERS)
    for name, sampler in SAMPLERS.items():
        zero_snr = "always" if sampler.is_flow else "yes" if sampler.zero_snr else "no"
        offered = [zero_snr, ", ".join(sampler.prediction_types), ", ".join(sampler.spacings)]
        assert listed[name][:3] == offered, name


def levels(table: SamplerTable, schedule: ScheduleConfig) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, sigma) that the model's input should have in each row, (R,), from the schedule alone."""
    if table.name == "FlowMatchEuler":
        sigma_R = table.timesteps_R / schedule.num_train_timesteps
        return 1 - sigma_R, sigma_R
    if table.name not in BY_ALPHAS_CUMPROD:
        ratio_R = schedules.noise_ratios(schedule, table.timesteps_R)
        if table.name == "KDPM2AncestralDiscrete":
            every = np.arange(schedule.num_train_timesteps)
            log_ratio_T = np.log(schedules.noise_ratios(schedule, every))
            ratio_R[1::2] = np.exp(np.interp(table.timesteps_R[1::2], every, log_ratio_T))
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
    for name in SAMPLERS:
        for schedule, prediction in itertools.product(schedules_for(name), SAMPLERS[name].prediction_types):
            if (name, prediction) == ("PNDM", "v_prediction"):
                continue  # see test_pndm_converges_on_velocities
            if schedule.rescale_betas_zero_snr and prediction == "epsilon" and name in BY_ALPHAS_CUMPROD:
                continue  # see test_errors_say_what_was_wanted
            label = "zero_snr" if schedule.rescale_betas_zero_snr else "plain"
            yield pytest.param(name, prediction, schedule, id=f"{name}-{prediction}-{label}")


@pytest.mark.parametrize(("name", "prediction_type", "schedule"), list(perfect_cases()))
def test_perfect_model_leads_to_its_sample(name, prediction_type, schedule):
    """Deterministic samplers stay on the line between sample and noise; all of them end at the sample."""
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
    signal = schedules.alphas_cumprod(schedule)[0] if name in ENDS_AT_TIMESTEP_0 else 1.0
    end = np.sqrt(signal) * x0 + np.sqrt(1 - signal) * line
    np.testing.assert_allclose(x, end, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "spacing"),
    [
        (name, spacing)
        for name, sampler in SAMPLERS.items()
        for spacing in sampler.spacings
        if name != "PNDM"
        and (name, spacing) not in (("DDIM", "linspace"), ("CogVideoX", "linspace"))  # they step by T // N
    ],
)
def test_every_row_leaves_the_right_amounts_of_signal_and_noise(name, spacing):
    for schedule in schedules_for(name):
        table = sampler_table(name, 20, schedule, SAMPLERS[name].prediction_types[0], spacing)
        alpha_R, sigma_R = (level / table.input_scale_R for level in levels(table, schedule))
        anchors_R = np.maximum.accumulate(np.where(table.set_anchor_R, np.arange(len(table)), 0))
        signal_R = table.sample_R * alpha_R + table.anchor_R * alpha_R[anchors_R]
        noise_R = table.sample_R * sigma_R + table.anchor_R * sigma_R[anchors_R]
        if name == "DEISMultistep":  # its d is the noise
            noise_R += table.past_RH.sum(axis=1)
        else:
            signal_R += table.past_RH.sum(axis=1)
        end = schedules.alphas_cumprod(schedule)[0] if name in ENDS_AT_TIMESTEP_0 else 1.0
        np.testing.assert_allclose(signal_R, np.append(alpha_R[1:], np.sqrt(end)), atol=1e-12)
        noise_R = np.hypot(noise_R, table.noise_R)
        np.testing.assert_allclose(noise_R, np.append(sigma_R[1:], np.sqrt(1 - end)), atol=1e-9)


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
    sampler = SAMPLERS[name]
    for schedule, num_steps in itertools.product(schedules_for(name), (4, 5, 285, 286, 500, 999, 1000)):
        if num_steps > sampler.most_steps(schedule, sampler.usual_spacing(schedule)):
            continue  # refused
        table = sampler_table(name, num_steps, schedule, sampler.prediction_types[0])
        rows = 2 * num_steps - 1 if name in TWO_EVALUATIONS else num_steps + (9 if name == "PNDM" else 0)
        assert len(table) == rows
        # a slope at the end of a long step weighs as much as the step is longer than the ratio there
        assert np.abs(table.past_RH).max() < (100 if name in TWO_EVALUATIONS else 10)
        assert (table.noise_R >= 0).all()


def test_unipc_is_dpm_solver_with_corrections():
    """Its predictor is DPM-Solver++(2M)'s step; a correction is one unless the model says what it said."""
    table, predictor = (sampler_table(name, 12, PLAIN) for name in ("UniPC", "DPMSolverMultistep"))
    np.testing.assert_array_equal(table.sample_R, predictor.sample_R)
    corrections_RH = table.past_RH - np.pad(predictor.past_RH, ((0, 0), (0, 1)))
    np.testing.assert_allclose(corrections_RH.sum(axis=1), 0, atol=1e-15)
    present_R = corrections_RH[:, 0]
    assert (present_R[1:-1] > 1e-3).all(), "what the model says of x corrects it"
    assert present_R[0] == present_R[-1] == 0, "the first x is given, and of the last nothing is left"


def test_tables_cannot_be_changed():
    table = sampler_table("DDIM", 5, PLAIN)
    with pytest.raises(ValueError, match="read-only"):
        table.sample_R[0] = 0
    with pytest.raises(AttributeError):
        table.sample_R = np.zeros(5)


def test_only_ancestral_samplers_draw_noise_and_never_in_their_last_step():
    for name in DIFFUSION:
        draws = sampler_table(name, 10, schedule_for(name, PLAIN)).draws_noise_R
        if name in TWO_EVALUATIONS:
            assert not draws[::2].any()
            draws = np.append(draws[1::2], draws[-1])
        assert draws[:-1].all() if name in ANCESTRAL else not draws.any()
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
        ("SASolver", 5, PLAIN, {}, "'SASolver' is unknown"),
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
        (
            "PNDM",
            5,
            ZERO_SNR,
            {},
            "PNDM: got schedule.rescale_betas_zero_snr=true.*take one of EulerAnc.*UniPC",
        ),
        ("HeunDiscrete", 5, ZERO_SNR, {}, "HeunDiscrete: got schedule.rescale_betas_zero_snr=true"),
        ("DEISMultistep", 5, ZERO_SNR, {}, "DEISMultistep: got schedule.rescale_betas_zero_snr=true"),
        ("KDPM2AncestralDiscrete", 5, ZERO_SNR, {}, "KDPM2AncestralDiscrete: got schedule.rescale_betas"),
        ("DPMSolverSinglestep", 5, ZERO_SNR, {}, "DPMSolverSinglestep: got schedule.rescale_betas_zero_snr"),
        (
            "KDPM2AncestralDiscrete",
            5,
            PLAIN,
            {"prediction_type": "sample"},
            "'sample', expected v_prediction, epsilon; it is taken by EulerAncestralDiscrete, .*Heun",
        ),
        ("DPMSolverSinglestep", 5, PLAIN, {"timestep_spacing": "leading"}, "'leading', expected linspace"),
        ("DPMSolverSinglestep", 5, PLAIN, {"steps_offset": 1}, "steps_offset=1 with 6 'linspace' steps"),
        ("DPMSolverSinglestep", 1000, PLAIN, {}, "num_steps=1000, .* to 999 .*'linspace'"),
        ("UniPC", 1000, PLAIN, {}, "num_steps=1000, .* to 999 .*'leading'"),
        ("DDIM", 5, PLAIN.replace(shift=3.0), {}, "DDIM: got schedule.shift=3, .*flow models"),
        (
            "FlowMatchEuler",
            5,
            PLAIN.replace(snr_shift_scale=3.0),
            {"prediction_type": "flow"},
            "FlowMatchEuler: got schedule.snr_shift_scale=3, .*diffusion models",
        ),
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
