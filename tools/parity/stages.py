"""The stages of a dump. Each is written once against a `Tree` and runs in both.

Outputs and gradients come from the tree's normal way to run (graphs in ms); activations from hooks (PyNative
in ms).
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from common.conditions import grid_inputs, text_inputs, trim_text
from common.errors import InputError
from common.images import to_uint8
from common.masks import Condition
from common.models import TransformerConfig
from common.optim import controls
from common.rope import timestep_features
from common.samplers import SamplerTable
from common.skiparse import FULL, GROUP, SINGLE
from common.text import tokenize

from .plan import DumpConfig
from .recording import Recorder, fingerprint
from .tree import Tree


class Lab:
    """A tree with a config: builds models, casts inputs, runs functions with gradients."""

    def __init__(self, tree: Tree, config: DumpConfig, tamper: Callable[[Any], None] | None = None) -> None:
        self.tree = tree
        self.config = config
        self.tamper = tamper  # `selftest` plants a fault in the transformer with it

    def tensor(self, array: np.ndarray | None) -> Any:
        """NumPy to the device; floats in the config's precision."""
        if array is None:
            return None
        is_float = np.issubdtype(array.dtype, np.floating)
        return self.tree.runtime.to_tensor(array, self.tree.device, self.config.dtype if is_float else None)

    def transformer(self) -> Any:
        load, config = self.tree.loading.load_transformer, self.config.transformer_config()
        model = load(self.config.transformer, config, self.config.dtype, self.tree.device)
        if self.tamper is not None:
            self.tamper(model)
        return model

    def vae(self) -> Any:
        load = self.tree.loading.load_vae
        return load(self.config.vae, self.config.vae_config(), self.config.dtype, self.tree.device)

    def randomize(self, model: Any) -> Any:
        """Weights drawn by name for a module that is no whole model."""
        self.tree.loading.initialize(model, self.config.seed)
        return self.tree.runtime.place(self.tree.runtime.cast(model, self.config.dtype), self.tree.device)

    def gradients(self, record: Recorder, model: Any, function: Callable, *inputs: Any) -> None:
        """Record the loss mean(function(...) * probe) and its gradient by every parameter, if wanted."""
        if not self.config.gradients:
            return
        with self.tree.runtime.inference():
            shape = tuple(function(*inputs).shape)
        probe = self.tensor(record.draw("probe", shape))

        def loss(*arguments):
            return (function(*arguments[:-1]) * arguments[-1]).mean()

        value, grads = self.tree.runtime.value_and_grad(loss, model)(*inputs, probe)
        record.put("out.loss", self.tree.numpy(value))
        for name, grad in grads.items():
            record.put(f"grad.{name}", self.tree.numpy(grad))

    def fingerprints(self, record: Recorder, model: Any) -> None:
        for name, parameter in self.tree.runtime.parameters(model).items():
            record.put(f"weights.{name}", fingerprint(self.tree.numpy(parameter)))

    @contextlib.contextmanager
    def activations(self, record: Recorder, model: Any) -> Iterator[None]:
        """Record the result of every module called inside."""

        def sink(name: str, arguments: tuple, result: Any) -> None:
            results = result if isinstance(result, tuple) else (result,)
            for i, tensor in enumerate(results[:2]):
                if hasattr(tensor, "shape"):
                    record.put(
                        f"act.{name}" + (f".{i}" if isinstance(result, tuple) else ""),
                        self.tree.numpy(tensor),
                    )

        with self.tree.runtime.inference(), self.tree.runtime.recording(model, sink):
            yield


def run_op(lab: Lab, record: Recorder) -> None:
    """Single operators: functions of ops.py, kernels, and layers with their parameters' gradients."""
    tree, ops = lab.tree, lab.tree.ops
    x = record.draw("x", (2, 6, 5, 8, 6))
    for name in ("silu", "sigmoid", "softmax", "pad_right_bottom", "linear_2x", "to_float32"):
        record.put(f"out.{name}", _forward(lab, getattr(ops, name), x))
    record.put("out.exp", _forward(lab, ops.exp, record.draw("exponent", (4, 50))))
    record.put("out.nearest_2x", _forward(lab, ops.nearest_2x, x[:, :, 0]))
    record.put("out.gelu", _forward(lab, tree.kernels.kernel("gelu"), record.draw("gelu", (4, 50), 3.0)))
    q, k, v = (record.draw(name, (12, 2, 4 * 16)) for name in "qkv")  # 4 heads
    keep = np.arange(12)[None, None, None] < np.array([12, 7])[:, None, None, None]
    for layout in ("SBH", "BSH"):
        arrays = (q, k, v) if layout == "SBH" else tuple(a.transpose(1, 0, 2).copy() for a in (q, k, v))
        for label, mask in (("", None), ("_masked", keep)):
            attend = tree.kernels.kernel("attention")
            record.put(f"out.attention_{layout}{label}", _forward(lab, attend, *arrays, mask, 4, layout))
    layers = {
        "linear": (tree.layers.Linear(6, 9), x[:, :, 0, 0].transpose(0, 2, 1)),
        "conv2d": (tree.layers.Conv2d(6, 4, 3, 1, 1), x[:, :, 0]),
        "conv3d": (tree.layers.Conv3d(6, 4, (3, 3, 3), (2, 1, 1), (0, 1, 1)), x),
        "layer_norm": (tree.layers.LayerNorm(6), x[0]),
        "channel_norm": (tree.layers.ChannelNorm(6), x),
        "group_norm": (tree.layers.GroupNorm(32), record.draw("x32", (2, 32, 3, 4, 4))),
    }
    for name, (layer, given) in layers.items():
        lab.randomize(layer)
        scope = Recorder(f"op/{name}", lab.config.seed)
        tensor = lab.tensor(np.asarray(given, order="C"))
        with tree.runtime.inference():
            scope.put("out.y", tree.numpy(layer(tensor)))
        lab.gradients(scope, layer, layer, tensor)
        record.tensors |= scope.tensors


def _forward(lab: Lab, function: Callable, *arguments: Any) -> np.ndarray:
    tensors = [lab.tensor(a) if isinstance(a, np.ndarray) or a is None else a for a in arguments]
    with lab.tree.runtime.inference():
        return lab.tree.numpy(lab.tree.runtime.compiled(function)(*tensors))


def run_block(lab: Lab, record: Recorder) -> None:
    """One transformer block of each arrangement, and the VAE's residual block and upsampler."""
    tree, config = lab.tree, lab.config.transformer_config()
    K, width = max(2, config.skip_stride), config.width
    S, L, B = 2 * K * K, lab.config.text_length, lab.config.batch
    x, text = record.draw("x", (S, B, width)), record.draw("text", (L, B, width))
    modulation, angles = (
        record.draw("modulation", (6, B, width), 0.3),
        record.draw("angles", (S, 1, 3, config.attention_head_dim // 6)),
    )
    for arrangement in (FULL, SINGLE, GROUP):
        sizes = (
            config.num_attention_heads,
            config.attention_head_dim,
            arrangement,
            tree.sequence.Sequence(K),
            config.norm_eps,
        )
        block = lab.randomize(tree.transformer.Block(*sizes))
        scope = Recorder(f"block/{arrangement}", lab.config.seed)
        inputs = [
            lab.tensor(a)
            for a in (x, modulation, text, 0.5 * text, None, np.cos(angles), np.sin(angles), None)
        ]
        with tree.runtime.inference():
            scope.put("out.x", tree.numpy(block(*inputs)))
        with lab.activations(scope, block):
            block(*inputs)
        lab.gradients(scope, block, block, *inputs)
        record.tensors |= scope.tensors
    pixels = record.draw("pixels", (1, 8, 5, 6, 4))
    blocks = tree.vae_blocks
    for name, module in {
        "resnet": blocks.ResnetBlock3D(8, 8, "layernorm"),
        "upsample": tree.resample.Spatial2xTime2x3DUpsample(8, 8, lab.config.vae_config().t_interpolation),
        "downsample": tree.resample.Spatial2xTime2x3DDownsample(8, 8),
    }.items():
        lab.randomize(module)
        with tree.runtime.inference():
            record.put(f"out.{name}", tree.numpy(module(lab.tensor(pixels), (), True, True)[0]))


def clip_and_latent(lab: Lab, record: Recorder) -> tuple:
    """A clip in [-1, 1] and a latent of its size, as tensors, drawn and recorded."""
    (_, *latent), config = lab.config.latent_shape(), lab.config
    x = record.draw("x", (1, 3, config.num_frames, config.height, config.width))
    return lab.tensor(np.tanh(x)), lab.tensor(record.draw("z", (1, *latent)))


def run_vae(lab: Lab, record: Recorder) -> None:
    """Encode and decode a clip, whole and in chunks, with every module's activation."""
    tree, vae = lab.tree, lab.vae()
    lab.fingerprints(record, vae)
    x, z = clip_and_latent(lab, record)
    with tree.runtime.inference():
        record.put("out.moments", tree.numpy(vae.encode(x)))
        record.put("out.pixels", tree.numpy(vae.decode(z)))
        if lab.config.vae_config().norm_type == "layernorm":
            stride_t = lab.config.vae_config().stride_thw[0]
            record.put("out.moments_in_chunks", tree.numpy(vae.encode(x, stride_t)))
            record.put("out.pixels_in_chunks", tree.numpy(vae.decode(z, 1)))
    with lab.activations(record, vae):
        vae.encode(x)
        vae.decode(z)


def denoiser_inputs(lab: Lab, record: Recorder, model: Any) -> tuple:
    """(x, features, text, keep_text, cos, sin, keep_video, condition) as tensors, drawn and recorded."""
    config, shape = model.config, lab.config.latent_shape()
    B, L = shape[0], lab.config.text_length
    x, text = record.draw("x", shape), record.draw("text", (B, L, config.caption_channels))
    keep = np.arange(L)[None] < np.maximum(1, L - np.arange(B))[:, None]
    states, keep_text = text_inputs(text, keep, multiple=1)
    grid = grid_inputs(config, shape[2:], B, None, lab.config.dtype)
    features = timestep_features(np.linspace(999.0, 20.0, B))
    for name, array in (("features", features), ("cos", grid.cos_S13P), ("sin", grid.sin_S13P)):
        record.put(f"in.{name}", array)
    for name, mask in grid.keep_video._asdict().items() if grid.keep_video else ():
        record.put(f"in.keep_{name}", mask)
    keep_video = grid.keep_video and lab.tree.runtime.varying(tuple(map(lab.tensor, grid.keep_video)))
    arrays = (x, features, states, keep_text, grid.cos_S13P, grid.sin_S13P)
    condition = draw_condition(config, shape, record)
    patches = None if condition is None else condition.patches(config)
    return (*map(lab.tensor, arrays), keep_video, lab.tensor(patches))


def draw_condition(config: TransformerConfig, shape: tuple, record: Recorder) -> Condition | None:
    """What an image-to-video model is shown: random latents, and the first frame given."""
    if not config.mask_channels:
        return None
    B, _, T, H, W = shape
    mask_BMTHW = np.ones((B, config.mask_channels, T, H, W), np.float32)
    mask_BMTHW[:, :, 0] = 0
    return Condition(record.draw("shown", shape), mask_BMTHW)


def run_dit(lab: Lab, record: Recorder) -> None:
    """The transformer: output, every module's activation, every parameter's gradient."""
    tree, model = lab.tree, lab.transformer()
    lab.fingerprints(record, model)
    inputs = denoiser_inputs(lab, record, model)
    with tree.runtime.inference():
        record.put("out.prediction", tree.numpy(tree.predict(model, *inputs)))
    with lab.activations(record, model):
        tree.predict(model, *inputs)
    lab.gradients(record, model, tree.forward(model), *inputs)


def run_text(lab: Lab, record: Recorder) -> None:
    """Tokens and states of the text encoder."""
    config = _text_config(lab, "text")
    ids, keep, _ = tokenize(config, lab.config.prompts)
    record.put("in.ids", ids)
    encoder = lab.tree.text.TextEncoder(config, lab.tree.device)
    with lab.tree.runtime.inference():
        states = lab.tree.numpy(encoder(ids, keep))
    record.put("out.states", states * keep[:, :, None])  # what stands at padding is never attended to


def _text_config(lab: Lab, stage: str) -> Any:
    if lab.config.text is None:
        raise InputError(
            f"dump: stage {stage} needs the key text in the config; add it or leave the stage out"
        )
    return lab.config.text


def sampler_rows(config: DumpConfig) -> SamplerTable:
    """The sampler as a table."""
    return config.sampler.table()


def run_sampler(lab: Lab, record: Recorder) -> None:
    """The sampler's table, and latents after every step with the transformer at random text."""
    table = sampler_rows(lab.config)
    for field in dataclasses.fields(table)[1:]:  # all but its name
        record.put(f"in.{field.name}", np.asarray(getattr(table, field.name)))
    model, shape = lab.transformer(), lab.config.latent_shape()
    sample_latents(
        lab,
        record,
        model,
        table,
        record.draw("text", (2 * shape[0], lab.config.text_length, model.config.caption_channels)),
    )


def sample_latents(
    lab: Lab, record: Recorder, model: Any, table: Any, text: np.ndarray, keep: np.ndarray | None = None
) -> Any:
    """Denoise, recording each step; text rows: unconditional first."""
    settings, shape = lab.config.sampler, lab.config.latent_shape()
    keep = np.ones(text.shape[:2], bool) if keep is None else keep
    guidance = settings.guidance()
    rows = slice(None) if guidance.on else slice(shape[0], None)

    def on_step(step: Any) -> None:
        record.put(f"act.step_{step.index}.output", lab.tree.numpy(step.output_GCTHW))
        record.put(f"act.step_{step.index}.latent", lab.tree.numpy(step.latent_BCTHW))

    noise = lab.tree.pipeline.seeded_noise(shape, [lab.config.seed + b for b in range(shape[0])])
    sampler = lab.tree.pipeline.LatentSampler(model, table, guidance, lab.config.dtype)
    condition = draw_condition(model.config, shape, record)
    latents = sampler(*trim_text(text[rows], keep[rows]), shape, noise, on_step, condition)
    record.put("out.latent", lab.tree.numpy(latents))
    return latents


def run_train_step(lab: Lab, record: Recorder) -> None:
    """A few AdamW updates of the transformer on a fixed batch: losses, and every parameter afterwards."""
    tree, model = lab.tree, lab.transformer()
    inputs = denoiser_inputs(lab, record, model)
    target = lab.tensor(record.draw("target", lab.config.latent_shape()))
    forward = tree.forward(model)

    def loss(x, features, text, keep_text, cos, sin, keep_video, condition, target):
        error = forward(x, features, text, keep_text, cos, sin, keep_video, condition) - target
        return (error * error).mean()

    step = tree.runtime.value_and_grad(loss, model)
    params = tree.runtime.trainable(model)
    moments = {name: (p * 0.0, p * 0.0) for name, p in params.items()}
    start = {name: tree.numpy(p).copy() for name, p in params.items()}
    optimizer = lab.config.optimizer
    for count in range(1, lab.config.num_train_steps + 1):
        value, grads = step(*inputs, target)
        numbers = lab.tensor(controls(optimizer, count, optimizer.lr))
        record.put(f"out.loss_{count}", tree.numpy(value))
        for name, parameter in params.items():
            new, mean, var = tree.optim.adamw(optimizer, numbers, parameter, grads[name], *moments[name])
            moments[name] = (mean, var)
            tree.ops.assign(parameter, new)
    for name, parameter in params.items():
        record.put(f"param.{name}", tree.numpy(parameter) - start[name])  # how far it moved


def run_pipeline(lab: Lab, record: Recorder) -> None:
    """Prompts to frames: text encoder, sampler, VAE."""
    tree, config = lab.tree, _text_config(lab, "pipeline")
    prompts = [(lab.config.prompts * lab.config.batch)[b] for b in range(lab.config.batch)]
    ids, keep, _ = tokenize(config, [""] * len(prompts) + prompts)
    encoder = tree.text.TextEncoder(config, tree.device)
    with tree.runtime.inference():
        states = tree.numpy(encoder(ids, keep))
    latents = sample_latents(lab, record, lab.transformer(), sampler_rows(lab.config), states, keep)
    pixels = tree.pipeline.decode(lab.vae(), latents)
    record.put("out.pixels", pixels)
    record.put("out.frames", np.stack([to_uint8(video) for video in pixels]))


STAGE_FUNCTIONS: dict[str, Callable[[Lab, Recorder], None]] = {
    "op": run_op,
    "block": run_block,
    "vae": run_vae,
    "dit": run_dit,
    "text": run_text,
    "sampler": run_sampler,
    "train-step": run_train_step,
    "pipeline": run_pipeline,
}
