"""Golden cases of the denoiser's training: the reference's real loop for a few steps, and its average."""

from typing import Any

import numpy as np

from common.data.batch import pad
from common.data.buckets import Bucket
from common.diffusion import DiffusionConfig, Mixture, mixture, with_offset
from common.latents import draw_latents
from common.masks import Condition, add_noise, generate_mask, masked, pixels_of
from common.models import TransformerConfig, VAEConfig
from common.optim import OptimConfig, controls, warmed_ema_decay
from common.schedules import ScheduleConfig, alphas_cumprod, snr
from common.skiparse import from_patches
from common.t2v_training import Samples, step_inputs
from tools.parity.goldens import Case, build_recorded
from tools.parity.tree import Arrays, Tree

from .conditions import encode_condition

MIXTURE = 3  # its place among the arguments of DiffusionLoss


def run_training(tree: Tree, case: Case) -> dict[str, Any]:
    args, record = case.record["args"], case.record
    config = build_recorded(TransformerConfig, record["config"]["transformer"], case.name)
    model = tree.load(tree.transformer.Transformer(config), case.weights_of("transformer"), case.name)
    vae_config = build_recorded(VAEConfig, record["config"]["vae"], case.name)
    vae = tree.load(tree.vae.WFVAE(vae_config), case.weights_of("vae"), f"{case.name}.vae")
    recorded = {name: args[name] for name in ("prediction_type", "snr_gamma", "noise_offset")}
    diffusion = build_recorded(DiffusionConfig, recorded | {"schedule": schedule_of(args)}, case.name)
    optimizer = build_recorded(OptimConfig, optimizer_of(args), case.name)
    loss = tree.diffusion_loss.DiffusionLoss(model)
    params = tree.runtime.trainable(model)
    step = tree.optim.Step(loss, params, optimizer, tree.zero.Replicated(tree.parallel.Mean(1)), True)
    gradients_of = tree.runtime.compiled(step.gradients, loss)
    update = tree.runtime.compiled(step.update)
    noises = iter(case.numbered("noise"))
    results: dict[str, Any] = {"alphas_cumprod": alphas_cumprod(diffusion.schedule)}
    for index in range(record["steps"]):
        log_sigma, pixel_noise = (next(noises), next(noises)) if config.mask_channels else (None, None)
        latent, keep = encode(tree, case, vae, index, noises)
        condition = None
        if config.mask_channels:
            condition = encode_shown(tree, case, vae, index, (log_sigma, pixel_noise, next(noises)))
        noise = next(noises)
        if diffusion.noise_offset:
            noise = with_offset(diffusion, noise, next(noises))
        inputs = denoiser_inputs(case, config, index, latent, noise, keep, diffusion, condition)
        tensors = [to_tree(tree, x) for x in inputs]
        values, grads = gradients_of(*tensors, tree.tensor(np.float32(1)))
        results |= mixed(diffusion, index, case, latent, noise, keep, condition)
        output = f"model_pred_step{index}"
        # cells without video attend among padding in the reference; no loss and no gradient sees them
        patches, (_, _, T, H, W) = tree.numpy(values[2]), latent.shape
        prediction = from_patches(patches, (T, H, W), config.patch_size, config.skip_stride)
        results[output] = np.where(keep[:, None], prediction, case.outputs[output])
        results[f"loss_step{index}"] = tree.numpy(values[0])
        for name, grad in zip(params, grads, strict=True):
            results[f"grad_step{index}.{name}"] = tree.numpy(grad)
        decay = warmed_ema_decay(args["ema_decay"], index + 1)
        numbers = tree.tensor(controls(optimizer, index + 1, optimizer.lr, decay))
        gradients = tree.runtime.varying(tuple(grads))
        norm, _ = update(gradients, numbers, values[1])
        results[f"grad_norm_before_clip_step{index}"] = tree.numpy(norm)
    results |= {f"final_param.{name}": tree.numpy(p) for name, p in params.items()}
    results |= {f"final_ema.{name}": x for name, x in averages(tree, step, params).items()}
    return {name: results[name] for name in case.outputs if name in results}


def judged_mixture(diffusion: DiffusionConfig, timesteps: np.ndarray) -> Mixture:
    """Ours, but for a defect of the reference: it trains "sample" on the clean latent plus the noise, which
    no sampler undoes.
    """
    ours = mixture(diffusion, timesteps)
    if diffusion.prediction_type == "sample":
        return ours._replace(target_noise_B=np.ones_like(ours.target_noise_B))
    return ours


def optimizer_of(args: dict[str, Any]) -> dict[str, Any]:
    """The reference's arguments under our names."""
    return {
        "lr": args["learning_rate"],
        "betas": (args["adam_beta1"], args["adam_beta2"]),
        "eps": args["adam_epsilon"],
        "weight_decay": args["adam_weight_decay"],
        "max_grad_norm": args["max_grad_norm"],
    }


def schedule_of(args: dict[str, Any]) -> ScheduleConfig:
    """v1.5 has betas linear in their square root."""
    old = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    given = {"rescale_betas_zero_snr": args["rescale_betas_zero_snr"]}
    return build_recorded(ScheduleConfig, given | (old if args["v1_5_scheduler"] else {}), "args")


def padded(case: Case, kind: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """A step's clips of a kind in one size, and which cells hold video."""
    args, clips = case.record["args"], []
    while f"{kind}_step{index}_sample{len(clips)}" in case.inputs:
        clips.append(case.inputs[f"{kind}_step{index}_sample{len(clips)}"])
    return pad(clips, Bucket(args["num_frames"], args["max_height"], args["max_width"]))


def encode_shown(tree: Tree, case: Case, vae: Any, index: int, noises: tuple) -> Condition:
    """What an image-to-video model is shown of a step's clips: ours of them, with the recorded noise."""
    log_sigma_B, pixel_noise, posterior_noise = noises
    x_BCTHW, keep_BTHW = padded(case, "pixels", index)
    given_BT = np.zeros((len(x_BCTHW), x_BCTHW.shape[2]), bool)
    for given_T, frames in zip(given_BT, case.record["kept_frames"][index], strict=True):
        given_T[frames] = True
    inside = pixels_of(keep_BTHW, vae.config.stride_thw)
    generate_B1THW = generate_mask(given_BT, inside, *x_BCTHW.shape[3:])
    shown = add_noise(masked(x_BCTHW, generate_B1THW), generate_B1THW, pixel_noise, np.exp(log_sigma_B))
    return encode_condition(tree, vae, shown, generate_B1THW, posterior_noise)


def encode(tree: Tree, case: Case, vae: Any, index: int, noises: Any) -> tuple[np.ndarray, np.ndarray]:
    """Scaled latents of a step's clips, padded to one size, and which cells hold video."""
    x_BCTHW, keep_BTHW = padded(case, "pixels", index)
    with tree.runtime.inference():
        moments = tree.numpy(vae.encode(tree.tensor(x_BCTHW)))
    return draw_latents(moments, next(noises), vae.config), keep_BTHW


def denoiser_inputs(
    case: Case,
    config: TransformerConfig,
    index: int,
    latent: np.ndarray,
    noise: np.ndarray,
    keep_BTHW: np.ndarray,
    diffusion: DiffusionConfig,
    condition: Condition | None,
) -> tuple:
    """The arguments of DiffusionLoss, as NumPy."""
    timesteps = case.inputs[f"timesteps_step{index}"]
    keep_text = case.inputs[f"text_mask_step{index}"][:, 0].astype(bool)
    keep = None if keep_BTHW.all() else keep_BTHW
    samples = Samples(latent, keep, case.inputs[f"text_embeds_step{index}"], keep_text)
    given = list(step_inputs(diffusion, config, latent, samples, timesteps, noise, condition))
    given[MIXTURE] = judged_mixture(diffusion, timesteps).rows()
    return tuple(given)


def to_tree(tree: Tree, value: Any) -> Any:
    if isinstance(value, tuple):
        return tree.runtime.varying(tuple(map(tree.tensor, value)))
    return tree.tensor(value)


def mixed(
    diffusion: DiffusionConfig,
    index: int,
    case: Case,
    latent: np.ndarray,
    noise: np.ndarray,
    keep: np.ndarray,
    condition: Condition | None,
) -> Arrays:
    """What the reference calls model_input and target, and the SNR of each sample."""
    timesteps = case.inputs[f"timesteps_step{index}"]
    signal, share, target_signal, target_noise, _ = (
        row.reshape(-1, 1, 1, 1, 1) for row in judged_mixture(diffusion, timesteps)
    )
    noisy = signal * latent + share * noise
    return {
        f"latents_step{index}": latent,
        f"attention_mask_step{index}": keep.astype(np.float32),
        f"model_input_step{index}": np.concatenate([noisy, *(condition or ())], axis=1),
        f"target_step{index}": target_signal * latent + target_noise * noise,
        f"snr_step{index}": snr(alphas_cumprod(diffusion.schedule)[timesteps]),
    }


def averages(tree: Tree, step: Any, params: dict) -> Arrays:
    """The moving averages under their parameters' names."""
    joined = np.concatenate([tree.numpy(vector) for vector in step.update.averages])
    found, start = {}, 0
    for name, param in params.items():
        shape = tuple(param.shape)
        found[name] = joined[start : start + int(np.prod(shape))].reshape(shape)
        start += int(np.prod(shape))
    return found


def run_ema(tree: Tree, case: Case) -> Arrays:
    """The averages of a parameter that takes the recorded values."""
    average, results = case.inputs["param_0"], {}
    for step in range(1, len(case.inputs)):
        decay = np.float32(warmed_ema_decay(case.record["config"]["decay"], step))
        average = average + (1 - decay) * (case.inputs[f"param_{step}"] - average)
        results[f"ema_after_step_{step}"] = average
    return results
