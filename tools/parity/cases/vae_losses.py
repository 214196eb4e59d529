"""Golden cases of VAE training: both phases, with gradients, running statistics and an update."""

from typing import Any

import numpy as np

from common.judges import DiscriminatorConfig, LPIPSConfig
from common.models import VAEConfig
from common.optim import OptimConfig, controls
from common.vae_training import VAELossConfig
from tools.parity.goldens import Case, UnsupportedError, build_recorded
from tools.parity.tree import Arrays, Tree

# the reference's names of our loss's terms
LOGGED = {
    "loss": "total_loss",
    "nll": "nll_loss",
    "kl": "kl_loss",
    "wavelet": "wl_loss",
    "adversarial": "g_loss",
    "adversarial_weight": "d_weight",
    "logvar": "logvar",
    "disc_loss": "disc_loss",
    "logits_real": "logits_real",
    "logits_fake": "logits_fake",
}


def loss_config(case: Case) -> VAELossConfig:
    given = dict(case.record["config"]["loss"])
    given["pixel"] = case.record["config"]["loss"]["loss_type"]
    del given["loss_type"]
    if case.record.get("wavelet_coeffs") is None:
        given["wavelet_weight"] = 0.0
    return build_recorded(VAELossConfig, given, case.name)


def discriminator_of(tree: Tree, case: Case) -> Any:
    recorded = case.record["config"]["discriminator"]
    if recorded["cls"] != "NLayerDiscriminator3D" or recorded["use_actnorm"]:
        raise UnsupportedError(
            f"{case.name}: got {recorded['cls']} with use_actnorm {recorded['use_actnorm']}, ours is "
            "NLayerDiscriminator3D with use_actnorm False"
        )
    given = {name: value for name, value in recorded.items() if name not in ("cls", "use_actnorm")}
    model = tree.discriminator.Discriminator(
        build_recorded(DiscriminatorConfig, given, case.name), tree.parallel.Mean(1)
    )
    weights = case.weights_of("discriminator")
    weights = {name: w for name, w in weights.items() if not name.endswith("num_batches_tracked")}
    return tree.load(model, weights, f"{case.name}.discriminator")


def run_vae_loss(tree: Tree, case: Case) -> dict[str, Any]:
    config, discriminator = loss_config(case), discriminator_of(tree, case)
    started = case.record["config"]["global_step"] >= config.disc_start
    disc_factor = np.float32(config.disc_factor * started)
    if "real" in case.inputs:
        return run_discriminator_phase(tree, case, config, discriminator, disc_factor)
    return run_generator_phase(tree, case, config, discriminator, disc_factor)


def run_generator_phase(
    tree: Tree, case: Case, config: VAELossConfig, discriminator: Any, disc_factor: np.float32
) -> dict[str, Any]:
    vae_config = build_recorded(VAEConfig, case.record["config"]["vae"], case.name)
    vae = tree.load(tree.vae.WFVAE(vae_config), case.weights_of("vae"), f"{case.name}.vae")
    lpips = None
    if case.record["config"]["lpips_widths"]:
        widths = build_recorded(LPIPSConfig, {"widths": case.record["config"]["lpips_widths"]}, case.name)
        lpips = tree.load(tree.lpips.LPIPS(widths), case.weights_of("lpips"), f"{case.name}.lpips")
    loss = tree.vae_losses.GeneratorLoss(
        config, vae, discriminator, lpips, tree.parallel.Mean(1), tree.dtype or "float32"
    )
    tree.ops.assign(loss.logvar, tree.tensor(np.float32(config.logvar_init)))
    x, noise = tree.tensor(case.inputs["x"]), tree.tensor(case.inputs["posterior_noise.0"])
    one = tree.tensor(np.float32(1))

    params = tree.runtime.trainable(vae)
    optimizer = OptimConfig(
        lr=case.record["config"]["optimizer_lr"] or 1e-3, weight_decay=1e-4, max_grad_norm=1e30
    )
    step = tree.optim.Step(loss, params, optimizer, tree.zero.Replicated(tree.parallel.Mean(1)), False)
    fake = tree.numpy(vae(x, noise))[0]
    results = {"recon": fake}
    values, grads = tree.runtime.compiled(step.gradients, loss)(x, noise, tree.tensor(disc_factor), one)
    results |= logged(tree, loss, values[1])
    results["loss"] = results["log.total_loss"]
    results["log.rec_loss"] = results["log.nll_loss"]  # the reference logs one value twice
    results["log.disc_factor"] = disc_factor
    results["log.g_loss"] = results["log.g_loss"] * (disc_factor > 0)  # the reference does not ask before
    results |= {f"grad.vae.{name}": tree.numpy(g) for name, g in zip(params, grads, strict=True)}

    adversarial = tree.vae_losses.AdversarialLoss(discriminator)
    of_discriminator = tree.runtime.trainable(discriminator)
    fakeness = tree.runtime.gradients(adversarial, of_discriminator.values())
    _, unused = tree.runtime.compiled(fakeness, adversarial)(tree.tensor(fake))
    weight = results["log.d_weight"]
    for name, grad in zip(of_discriminator, unused, strict=True):
        results[f"grad.discriminator.{name}"] = weight * tree.numpy(grad)

    update(tree, step, grads, optimizer, values[1])
    follow(tree, loss, values[2:])
    results |= after(tree, discriminator, "after.discriminator.")
    results |= after(tree, vae, "after_adamw.vae.")
    return {name: results[name] for name in case.outputs if name in results}


def run_discriminator_phase(
    tree: Tree, case: Case, config: VAELossConfig, discriminator: Any, disc_factor: np.float32
) -> dict[str, Any]:
    loss = tree.vae_losses.DiscriminatorLoss(config, discriminator)
    real, fake = tree.tensor(case.inputs["real"]), tree.tensor(case.inputs["fake"])
    one = tree.tensor(np.float32(1))
    results: dict[str, Any] = {}
    for mode, train in (("train", True), ("eval", False)):
        logits, _ = tree.call(discriminator, case.inputs["real"], train, models=(discriminator,))
        results[f"logits_real_{mode}_mode"] = logits

    params = tree.runtime.trainable(discriminator)
    optimizer = OptimConfig(lr=case.record["config"]["optimizer_lr"] or 1e-3, weight_decay=0.01)
    step = tree.optim.Step(loss, params, optimizer, tree.zero.Replicated(tree.parallel.Mean(1)), False)
    values, grads = tree.runtime.compiled(step.gradients, loss)(real, fake, tree.tensor(disc_factor), one)
    results |= logged(tree, loss, values[1])
    results["loss"] = results["log.disc_loss"]
    results |= {f"grad.discriminator.{name}": tree.numpy(g) for name, g in zip(params, grads, strict=True)}
    results["grad_norm_before_clip"] = tree.numpy(update(tree, step, grads, optimizer, values[1])[0])
    follow(tree, loss, values[2:])
    results |= after(tree, discriminator, "after.discriminator.")
    results |= after(tree, discriminator, "after_adamw.discriminator.")
    return {name: results[name] for name in case.outputs if name in results}


def update(tree: Tree, step: Any, grads: tuple, optimizer: OptimConfig, terms: Any) -> tuple:
    """The optimizer's first update, by gradients at hand: the norm, and whether all is finite."""
    numbers = tree.tensor(controls(optimizer, 1, optimizer.lr))
    return tree.runtime.compiled(step.update)(tree.runtime.varying(tuple(grads)), numbers, terms)


def follow(tree: Tree, loss: Any, statistics: tuple) -> None:
    """The running statistics' update."""
    finite = tree.tensor(np.array(True))
    tree.runtime.compiled(loss.after, loss)(tree.runtime.varying(tuple(statistics)), finite)


def logged(tree: Tree, loss: Any, terms: Any) -> Arrays:
    """A loss's terms under the reference's names; those it does not log are left out."""
    values = zip(loss.terms, tree.numpy(terms), strict=True)
    return {f"log.{LOGGED[name]}": np.asarray(value) for name, value in values if name in LOGGED}


def after(tree: Tree, model: Any, prefix: str) -> Arrays:
    return {f"{prefix}{name}": tree.numpy(p) for name, p in tree.runtime.parameters(model).items()}
