"""Golden cases of sampling: whole pipelines step by step, and every sampler alone."""

from typing import Any

import numpy as np

from common.conditions import trim_text
from common.images import to_uint8
from common.models import TransformerConfig
from common.samplers import sampler_table
from common.schedules import ScheduleConfig, alphas_cumprod, noise_ratios
from tools.parity.goldens import Case, UnsupportedError, build_recorded, supported
from tools.parity.tree import Arrays, Tree

from .conditions import guidance_of, show_given
from .defect import Unsupported
from .transformer import build_transformer
from .vae import build_vae


def run_sampling(tree: Tree, case: Case) -> dict[str, Any]:
    """A whole pipeline with the recorded noise: text in, uint8 frames out."""
    record, given = case.record, case.inputs
    vae = build_vae(tree, record["config"]["vae"], case.weights_of("vae"), case.name)
    config = build_recorded(TransformerConfig, record["config"]["transformer"], case.name)
    model = build_transformer(tree, config, case.weights_of("transformer"), case.name)
    call, settings = record["call"], record["scheduler_config"]
    with supported():
        table = sampler_table(
            record["sampler_args"]["sample_method"],
            call["num_inference_steps"],
            schedule_of(settings),
            settings["prediction_type"],
            settings["timestep_spacing"],
        )
    copies, guidance = call.get("num_samples_per_prompt", 1), guidance_of(call)
    text = np.repeat(given["prompt_embeds"], copies, axis=0)
    keep = np.repeat(given["prompt_attention_mask"] > 0, copies, axis=0)
    if guidance.on:
        text = np.concatenate([np.repeat(given["negative_prompt_embeds"], copies, axis=0), text])
        keep = np.concatenate([np.repeat(given["negative_prompt_attention_mask"] > 0, copies, axis=0), keep])
    draws, condition = case.numbered("noise"), None
    results: dict[str, Any] = {}
    if config.mask_channels:
        results, condition, draws = show_given(tree, case, vae)
    latent_shape = draws[0].shape
    outputs = []

    def record_step(step):
        results[f"latents_after_step_{step.index}"] = tree.numpy(step.latent_BCTHW)
        outputs.append(tree.numpy(step.output_GCTHW))

    sampler = tree.pipeline.LatentSampler(model, table, guidance)
    latents = sampler(*trim_text(text, keep), latent_shape, draws.__getitem__, record_step, condition)
    results |= {f"model_output_{i}": output for i, output in enumerate(outputs)}
    doubled = np.concatenate([draws[0], draws[0]]) if guidance.on else draws[0]
    first = (table.input_scale_R[0] * table.init_noise_sigma * doubled).astype(np.float32)
    shown = [] if condition is None else [results["masked_latents"], results["mask_channels"]]
    results["first_model_input"] = np.concatenate([first, *shown], axis=1)
    results["timesteps"] = table.timesteps_R
    results["model_timesteps"] = np.repeat(table.timesteps_R[:, None], len(text), axis=1)
    if "sigmas" in case.outputs:
        results["sigmas"] = np.append(noise_ratios(schedule_of(settings), table.timesteps_R), 0.0)
    decoded = tree.pipeline.decode(vae, latents)
    results["decoded_float"] = decoded.transpose(0, 2, 1, 3, 4)
    results["video_uint8"] = np.stack([to_uint8(video) for video in decoded])
    return {name: results[name] for name in case.outputs if name in results}


def schedule_of(settings: dict[str, Any]) -> ScheduleConfig:
    """Our schedule from a recorded scheduler config."""
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "rescale_betas_zero_snr")
    given = {name: settings[name] for name in names if name in settings}
    return build_recorded(ScheduleConfig, given, "scheduler_config")


def run_schedulers(tree: Tree, case: Case) -> dict[str, Any]:
    """Every sampler's table, stepped in NumPy through the recorded model outputs; one that ours does not know
    leaves the others to be judged.
    """
    results: dict[str, Any] = {}
    for key, info in case.record["info"].items():
        if info["raises"]:
            continue  # the reference cannot build it, so there is nothing recorded
        try:
            ours = run_scheduler(case, key)
        except UnsupportedError as error:
            recorded = [name for name in case.outputs if name.startswith(f"{key}.")]
            results |= dict.fromkeys(recorded, Unsupported(str(error)))
        else:
            results |= {f"{key}.{name}": array for name, array in ours.items()}
    return {name: results[name] for name in case.outputs if name in results}


def run_scheduler(case: Case, key: str) -> Arrays:
    """One sampler with one schedule, `method.schedule`."""
    zero_snr = ScheduleConfig(rescale_betas_zero_snr=True)
    v15 = ScheduleConfig(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    )
    sets: dict[str, tuple[ScheduleConfig, Any, Any]] = {
        "zsnr_v": (zero_snr, "v_prediction", "trailing"),
        "plain_eps": (ScheduleConfig(), "epsilon", "leading"),
        "v15_v": (v15, "v_prediction", "trailing"),
    }
    method, _, flags = key.partition(".")
    if flags not in sets:
        raise UnsupportedError(f"{case.name} {key}: got schedule {flags!r}, wanted one of {', '.join(sets)}")
    schedule, prediction, spacing = sets[flags]
    if method == "CogVideoX":  # ignores the schedule it is given
        schedule = v15.replace(snr_shift_scale=3.0, rescale_betas_zero_snr=schedule.rescale_betas_zero_snr)
    if method == "PNDM":  # knows no zero terminal SNR
        schedule = schedule.replace(rescale_betas_zero_snr=False)
    with supported():
        steps = case.record["config"]["num_inference_steps"]
        table = sampler_table(method, steps, schedule, prediction, spacing)
    return step_through(case, key, table, schedule)


def step_through(case: Case, key: str, table: Any, schedule: ScheduleConfig) -> Arrays:
    signal = alphas_cumprod(schedule)
    x = table.init_noise_sigma * case.inputs["initial_noise"].astype(np.float64)
    results = {
        "timesteps": table.timesteps_R,
        "alphas_cumprod_every_37": signal[::37],
        "alphas_cumprod_last": signal[-1:],
        "scaled_model_input_0": table.input_scale_R[0] * x,
    }
    if f"{key}.sigmas" in case.outputs:
        results["sigmas"] = np.append(noise_ratios(schedule, table.timesteps_R), 0.0)
    draws = case.numbered(f"noise.{key}")
    state = (None, ())
    for row in range(case.num_outputs(f"{key}.sample_after_")):
        noise = draws[row] if table.draws_noise_R[row] else None
        x, state = table.step_numpy(row, x, case.inputs[f"model_output_{row}"], state, noise)
        results[f"sample_after_{row}"] = x
    return results
