"""Every graph that an Ascend is handed, exported from small models: what tests hold against
tools/ascend_kernels.yaml.

Shapes: B batch, C channels, T frames, H height, W width, L text tokens.
"""

import functools
import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common.guidance import Guidance
from common.judges import DiscriminatorConfig, I3DConfig, LPIPSConfig
from common.models import CausalVAEConfig, TransformerConfig
from common.noise import initial_weights, normal
from common.optim import OptimConfig, controls
from common.skiparse import to_patches
from common.text import TextConfig
from common.vae_training import VAELossConfig
from tests.parity.ascend_cases import (
    IMAGE_TO_VIDEO,
    PADDED,
    SPARSE,
    Case,
    L,
    build,
    given_case,
    kernels,
    mindspore,
    nn,
    runtime,
    transformer,
)
from tests.parity.test_text import tiny_mt5
from tests.tiny import tiny_vae_config
from tools.ascend_graph import Graph, export

(
    causal_vae,
    diffusion_loss,
    discriminator,
    i3d,
    lpips,
    optim,
    parallel,
    pipeline,
    text,
    vae,
    vae_losses,
    zero,
) = (
    importlib.import_module(f"ms.{name}")
    for name in (
        "causal_vae",
        "diffusion_loss",
        "discriminator",
        "i3d",
        "lpips",
        "optim",
        "parallel",
        "pipeline",
        "text",
        "vae",
        "vae_losses",
        "zero",
    )
)

GROUPED = {
    "base_channels": 32,
    "encoder_energy_flow_hidden_size": 32,
    "decoder_energy_flow_hidden_size": 32,
    "norm_type": "groupnorm",
    "t_interpolation": "nearest",
}
OD_VAE = CausalVAEConfig(hidden_size=32, hidden_size_mult=(1, 1, 1, 1), num_res_blocks=1)
CLIP = (1, 3, 9, 32, 32)


class SamplingStep(nn.Cell):
    """A sampler's step under rescaled guidance, of plain tensors; the masks come last."""

    def __init__(self, model: nn.Cell, given: Case):
        super().__init__(auto_prefix=False)
        self.denoiser = pipeline.Denoiser(model, Guidance(7.5, 0.7), 2)
        self.num_text = 2 * len(model.plan)
        self.has_condition = given.condition_SBF is not None

    def construct(self, x, anchor, past, noise, row, features, cos, sin, *rest):
        condition = rest[self.num_text] if self.has_condition else None
        text_kv, keep_text, keep_video = rest[: self.num_text], rest[-4], rest[-3:]
        return self.denoiser(
            x, anchor, (past,), noise, row, features, text_kv, keep_text, cos, sin, keep_video, condition
        )


class TrainingStep(nn.Cell):
    """A step of the optimizer on plain tensors; the masks of video and what is given come last."""

    def __init__(self, step: nn.Cell, has_condition: bool):
        super().__init__(auto_prefix=False)
        self.step = step
        self.has_condition = has_condition

    def construct(self, numbers, latent, noise, share, mixture, features, text, keep, cos, sin, *rest):
        condition = rest[3] if self.has_condition else None
        return self.step(
            numbers, latent, noise, share, mixture, features, text, keep, cos, sin, rest[:3], condition
        )


class Chunks(nn.Cell):
    """First, middle and last chunk of a clip through an encoder or a decoder."""

    def __init__(self, coder: nn.Cell):
        super().__init__(auto_prefix=False)
        self.coder = coder

    def construct(self, first, middle, last):
        y, past = self.coder(first, (), True, False)
        z, past = self.coder(middle, past, False, False)
        return y, z, self.coder(last, past, False, True)[0]


class Whole(nn.Cell):
    """A clip through an encoder or a decoder."""

    def __init__(self, coder: nn.Cell):
        super().__init__(auto_prefix=False)
        self.coder = coder

    def construct(self, x):
        return self.coder(x, (), True, True)[0]


class Quantized(nn.Cell):
    """OD-VAE's encoder, or decoder, with the convolution beside it."""

    def __init__(self, model: nn.Cell, part: str):
        super().__init__(auto_prefix=False)
        self.encodes = part == "encoder"
        self.coder = Whole(getattr(model, part))
        self.beside = model.quant_conv if self.encodes else model.post_quant_conv

    def construct(self, x):
        return self.beside(self.coder(x)) if self.encodes else self.coder(self.beside(x))


class States(nn.Cell):
    """A text encoder's last hidden state."""

    def __init__(self, model: nn.Cell):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, ids, keep):
        return self.model(input_ids=ids, attention_mask=keep, return_dict=False)[0]


def sampling_step(config: TransformerConfig, dtype: str) -> Graph:
    """With padded text and a grid that needs masks."""
    given = given_case(config, PADDED, 2, True)
    latent = normal((1, *given.x_BCTHW.shape[1:]), 0, 1)
    row = np.ones(pipeline.NUM_SCALARS + 2, np.float32)
    projected = [normal((L, 2, config.width), 0, 10 + i) for i in range(2 * config.num_layers)]
    if given.condition_SBF is not None:
        projected.append(normal((len(given.cos_S13P), 2, config.width), 0, 4))
    inputs = [tensor(x) for x in (latent, latent, latent, latent, row, *given[1:4])]
    inputs += [tensor(x, dtype) for x in projected]
    inputs += map(tensor, given.masks)
    return on_ascend(lambda: SamplingStep(build(config, "ascend", dtype), given), inputs)


def projections(dtype: str) -> Graph:
    """What is computed once before the steps of sampling: of the text."""
    given = given_case(SPARSE, PADDED, 2, True)
    text_BLC = tensor(given.text_BLC.astype(np.float32), dtype)
    return on_ascend(lambda: transformer.TextProjection(build(SPARSE, "ascend", dtype)), [text_BLC])


def training_inputs(given: Case, config: TransformerConfig) -> list[np.ndarray]:
    x_SBF = to_patches(given.x_BCTHW.astype(np.float32), config.patch_size, config.skip_stride)
    mixture = np.ones((5, 2), np.float32)
    shown = [] if given.condition_SBF is None else [given.condition_SBF.astype(np.float32)]
    return [
        *(controls(OptimConfig(), 1, 1e-5, 0.99), x_SBF, x_SBF, np.ones((1, 1, 1), np.float32), mixture),
        *(given.features_BF, given.text_BLC.astype(np.float32), given.keep_text_B11L),
        *(given.cos_S13P, given.sin_S13P, *given.keep_video, *shown),
    ]


def training_step(config: TransformerConfig, dtype: str, accumulate: bool = False) -> Graph:
    """Loss, gradients, AdamW and the moving average; or the loss and gradients of a part of a batch."""
    given = given_case(config, PADDED, 2, True)

    def step() -> nn.Cell:
        model = build(config, "ascend", "float32").set_train()
        one = update_of(diffusion_loss.DiffusionLoss(model, dtype), runtime.trainable(model))
        return TrainingStep(optim.Accumulate(one, 2) if accumulate else one, given.condition_SBF is not None)

    return on_ascend(step, [tensor(x) for x in training_inputs(given, config)])


def accumulated_update() -> Graph:
    """The update that follows the parts of a batch."""

    def step() -> nn.Cell:
        model = build(SPARSE, "ascend", "float32")
        one = update_of(diffusion_loss.DiffusionLoss(model, "bfloat16"), runtime.trainable(model))
        return optim.Apply(optim.Accumulate(one, 2))

    numbers = controls(OptimConfig(), 1, 1e-5, 0.99)
    return on_ascend(step, [tensor(numbers), tensor(np.ones(1, np.float32))])


def update_of(loss: nn.Cell, params: dict) -> nn.Cell:
    return optim.Step(loss, params, OptimConfig(), zero.Replicated(parallel.Mean(1)), True)


def wf_vae(part: str, dtype: str, **changes: Any) -> Graph:
    """Chunks of a clip, or all of it where norms span time."""
    config = tiny_vae_config(**changes)
    whole = config.norm_type == "groupnorm"
    arrays = [normal(CLIP, 0, 1)] if whole else [normal((1, 3, T, 32, 32), 0, T) for T in (9, 8, 8)]
    if part == "decoder":
        frames = (3,) if whole else (3, 2, 2)
        arrays = [normal((1, config.latent_dim, T, 4, 4), 0, T) for T in frames]
    tensors = [tensor(x, dtype) for x in arrays]

    def coder() -> nn.Cell:
        model = runtime.cast(weighted(vae.WFVAE(config)), dtype)
        return (Whole if whole else Chunks)(getattr(model, part))

    return on_ascend(coder, tensors)


def od_vae(part: str, dtype: str) -> Graph:
    x = normal(CLIP if part == "encoder" else (1, 4, 3, 4, 4), 0, 1)

    def coder() -> nn.Cell:
        return Quantized(runtime.cast(weighted(causal_vae.CausalVAE(OD_VAE)), dtype), part)

    return on_ascend(coder, [tensor(x, dtype)])


def vae_step(phase: str, dtype: str) -> Graph:
    """An update of the VAE, with LPIPS and the adversarial term, or of the discriminator."""
    config, loss_config, mean = tiny_vae_config(), VAELossConfig(), parallel.Mean(1)
    z = normal((1, config.latent_dim, 3, 4, 4), 0, 2)
    arrays = [controls(OptimConfig(), 1, 1e-5, 0.99), normal(CLIP, 0, 1), z, np.float32(1)]

    def step() -> nn.Cell:
        model = weighted(vae.WFVAE(config))
        judge = weighted(discriminator.Discriminator(DiscriminatorConfig(ndf=4, n_layers=2), mean))
        perceptual = weighted(lpips.LPIPS(LPIPSConfig(widths=(4, 4, 6, 6, 8))))
        loss = vae_losses.GeneratorLoss(loss_config, model, judge, perceptual, mean, dtype)
        if phase == "generator":
            return update_of(loss, runtime.trainable(model))
        phase_loss = vae_losses.DiscriminatorPhase(loss, vae_losses.DiscriminatorLoss(loss_config, judge))
        return update_of(phase_loss, runtime.trainable(judge))

    return on_ascend(step, [tensor(x) for x in arrays])


def fvd_network() -> Graph:
    x = tensor(normal((1, 3, 9, 224, 224), 0, 1))
    return on_ascend(lambda: weighted(i3d.I3D(I3DConfig(width_divisor=8, num_classes=7))), [x])


def mt5(dtype: str) -> Graph:
    """As ms/text.py loads it for an Ascend; it runs operator by operator there, and these are they."""
    with tempfile.TemporaryDirectory() as folder:
        tiny_mt5(Path(folder), np.random.default_rng(0))
        config = TextConfig.model_validate({"kind": "mt5", "path": folder, "max_length": 8, "dtype": dtype})
        encoder = text.TextEncoder(config, "ascend")
    ids = mindspore.Tensor(np.arange(16).reshape(2, 8) % 90)
    return export(States(encoder.model), ids, mindspore.Tensor(np.ones((2, 8), np.int64)))


def tensor(array: np.ndarray, dtype: str | None = None) -> Any:
    """An input of a graph, floats cast to `dtype`."""
    made = mindspore.Tensor(np.asarray(array, order="C"))
    return made if dtype is None else made.astype(runtime.DTYPES[dtype])


def weighted(model: nn.Cell) -> nn.Cell:
    """With random weights: an export folds zeros away."""
    shapes = {name: tuple(p.shape) for name, p in runtime.trainable(model).items()}
    for name, x in initial_weights(shapes, 0).items():
        runtime.parameters(model)[name].set_data(mindspore.Tensor(x))
    return model


def on_ascend(make: Callable[[], nn.Cell], inputs: list) -> Graph:
    with kernels.on("ascend"):
        return export(make(), *inputs)


GRAPHS: dict[str, Callable[[], Graph]] = {
    "sampling t2v bfloat16": functools.partial(sampling_step, SPARSE, "bfloat16"),
    "sampling i2v bfloat16": functools.partial(sampling_step, IMAGE_TO_VIDEO, "bfloat16"),
    "text projection bfloat16": functools.partial(projections, "bfloat16"),
    "training t2v bfloat16": functools.partial(training_step, SPARSE, "bfloat16"),
    "training i2v bfloat16": functools.partial(training_step, IMAGE_TO_VIDEO, "bfloat16"),
    "training part bfloat16": functools.partial(training_step, SPARSE, "bfloat16", accumulate=True),
    "training update float32": accumulated_update,
    "WF-VAE encoder float32": functools.partial(wf_vae, "encoder", "float32"),
    "WF-VAE decoder float32": functools.partial(wf_vae, "decoder", "float32"),
    "WF-VAE encoder bfloat16": functools.partial(wf_vae, "encoder", "bfloat16"),
    "WF-VAE decoder bfloat16": functools.partial(wf_vae, "decoder", "bfloat16"),
    "WF-VAE encoder float32 groupnorm": functools.partial(wf_vae, "encoder", "float32", **GROUPED),
    "WF-VAE decoder float32 groupnorm": functools.partial(wf_vae, "decoder", "float32", **GROUPED),
    "OD-VAE encoder float32": functools.partial(od_vae, "encoder", "float32"),
    "OD-VAE decoder float32": functools.partial(od_vae, "decoder", "float32"),
    "OD-VAE encoder bfloat16": functools.partial(od_vae, "encoder", "bfloat16"),
    "OD-VAE decoder bfloat16": functools.partial(od_vae, "decoder", "bfloat16"),
    "VAE training generator bfloat16": functools.partial(vae_step, "generator", "bfloat16"),
    "VAE training discriminator bfloat16": functools.partial(vae_step, "discriminator", "bfloat16"),
    "VAE training generator float32": functools.partial(vae_step, "generator", "float32"),
    "VAE training discriminator float32": functools.partial(vae_step, "discriminator", "float32"),
    "I3D float32": fvd_network,
    "mT5 bfloat16": functools.partial(mt5, "bfloat16"),
}


def family(name: str) -> str:
    """The graphs that docs/ascend.md names together."""
    kinds = {"text": "sampling", "VAE": "VAE training"}
    first = name.split()[0]
    return kinds.get(first, first)
