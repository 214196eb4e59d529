"""Makes a release of a trained VAE: float16 weights; scale and shift of its latents go into config.json, so
that a diffusion model sees zero mean and unit variance in every channel. Without TARGET it only measures.

    python -m tools.release_vae outputs/vae_tiny_2/checkpoints/step-00010000/model CONFIG assets/vae_tiny
    python -m tools.release_vae assets/vae_tiny CONFIG

CONFIG is a `train_vae` config, whose validation clips are measured.
"""

import argparse
import sys

import numpy as np

from common import cli
from common.checkpoint import StoredWeights, save_weights
from common.config import load
from common.data.clips import ClipLoader
from common.errors import InputError
from common.images import to_uint8
from common.metrics import psnr_ssim_T
from common.models import VAEConfig, read_hub_config
from common.runs import ModelSource
from common.vae_training import VAETrainConfig
from tools.parity.tree import Tree
from tools.releasing import in_float16, refuse_overwriting


def latent_statistics(
    tree: Tree, model: str, config: VAETrainConfig, clips: int
) -> tuple[list[float], list[float]]:
    """(scale, shift) per latent channel: 1 / deviation, and mean, of the posterior's means."""
    assert config.validation is not None
    vae_config = read_hub_config(VAEConfig, model)
    vae = tree.loading.load_vae(ModelSource(path=model), vae_config, "float32", tree.device)
    loader, means = ClipLoader(config.validation.data, 1, config.seed), []
    for _, batch in loader.batches(0, clips):
        with tree.runtime.inference():
            moments_BCTHW = tree.numpy(vae.encode(tree.tensor(batch["x_BCTHW"])))
        means.append(moments_BCTHW[:, : vae_config.latent_dim].astype(np.float64))
    by_channel = np.concatenate(means).swapaxes(0, 1).reshape(vae_config.latent_dim, -1)
    std, shift = by_channel.std(1), by_channel.mean(1)
    if not std.all():
        raise InputError(f"{model}: latent channel {int(std.argmin())} never changes, so it has no scale")
    scale = 1 / std
    return [round(x, 6) for x in scale.tolist()], [round(x, 6) for x in shift.tolist()]


def scores(tree: Tree, model: str, config: VAETrainConfig, clips: int) -> dict[str, float]:
    """PSNR and SSIM of the validation clips through the posterior's mean, as 8-bit frames."""
    assert config.validation is not None
    vae = tree.loading.load_vae(
        ModelSource(path=model), read_hub_config(VAEConfig, model), "float32", tree.device
    )
    psnr, ssim = [], []
    for _, batch in ClipLoader(config.validation.data, 1, config.seed + 1).batches(0, clips):
        with tree.runtime.inference():
            moments = vae.encode(tree.tensor(batch["x_BCTHW"]))
            restored = tree.numpy(vae.decode(tree.posterior.split_moments(moments)[0]))
        psnr_T, ssim_T = psnr_ssim_T(to_uint8(batch["x_BCTHW"][0]), to_uint8(restored[0]))
        psnr.append(psnr_T.mean())
        ssim.append(ssim_T.mean())
    return {"psnr_db": round(float(np.mean(psnr)), 3), "ssim": round(float(np.mean(ssim)), 4)}


def release(tree: Tree, model: str, config: VAETrainConfig, target: str, clips: int) -> None:
    """Write the release into the folder `target`."""
    refuse_overwriting(model, target)
    cli.prepare_folder(target)  # before the work
    stored = StoredWeights(model)
    weights = {name: in_float16(stored, name, model) for name in stored}
    scale, shift = latent_statistics(tree, model, config, clips)
    described = read_hub_config(VAEConfig, model).replace(scale=scale, shift=shift)
    save_weights(target, weights, {"_class_name": "WFVAEModel", **described.model_dump()})
    print(
        f"{target}: {sum(x.size for x in weights.values()) / 1e6:.2f} M values\nscale {scale}\nshift {shift}"
    )


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("model")
    parser.add_argument("config")
    parser.add_argument("target", nargs="?")
    parser.add_argument("--tree", choices=("ms", "pt"), default="ms")
    parser.add_argument("--clips", type=int, default=200)
    given = parser.parse_args()
    try:
        if given.clips < 1:
            raise InputError(f"--clips: got {given.clips}, wanted 1 or more")
        config = load(VAETrainConfig, given.config)
        if config.validation is None:
            raise InputError(f"{given.config}: no validation section, so there are no clips to measure")
        tree = Tree(given.tree)
        if given.target:
            release(tree, given.model, config, given.target, given.clips)
        found = scores(tree, given.target or given.model, config, given.clips)
        print(f"{given.clips} held-out clips: PSNR {found['psnr_db']} dB, SSIM {found['ssim']}")
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
