"""A small transformer with Ascend's kernels, exported as a graph, and what it is given.

Shapes: S video tokens (padded), L text tokens, B batch, E width = N*D, N heads, D head width, K skip stride.
"""

import functools
import importlib
from typing import NamedTuple

import numpy as np
import pytest

from common.conditions import grid_inputs
from common.models import TransformerConfig
from common.noise import initial_weights, normal
from common.rope import timestep_features
from tools.ascend_emulator import evaluate
from tools.ascend_graph import Graph, export

mindspore = pytest.importorskip("mindspore", reason="mindspore, which exports the Ascend graph, is missing")
nn, ops, Tensor = mindspore.nn, mindspore.ops, mindspore.Tensor
kernels, runtime, transformer = (
    importlib.import_module(f"ms.{name}") for name in ("kernels", "runtime", "transformer")
)

N, K, L = 2, 4, 16
EVEN, PADDED = (2, 8, 16), (3, 6, 10)  # latents of 64 and of 45 tokens; 45 are padded to 48 = 3*K*K
FLASH = "FlashAttentionScore"


def on_cpu(array: np.ndarray) -> Tensor:
    """A tensor of the host, on which graphs are exported."""
    return runtime.to_tensor(array, "cpu")


class Case(NamedTuple):
    """What the denoiser is given, in NumPy."""

    x_BCTHW: np.ndarray
    features_BF: np.ndarray
    cos_S13P: np.ndarray
    sin_S13P: np.ndarray
    text_BLC: np.ndarray
    keep_text_B11L: np.ndarray | None
    keep_video: tuple
    condition_SBF: np.ndarray | None

    @property
    def masks(self) -> list[np.ndarray]:
        return ([] if self.keep_text_B11L is None else [self.keep_text_B11L]) + list(self.keep_video)

    @property
    def to_project(self) -> list[np.ndarray]:
        """The inputs of `Denoise` in its order, nothing projected yet."""
        shown = [] if self.condition_SBF is None else [self.condition_SBF]
        return [*self[:5], *shown, *self.masks]


class Denoise(nn.Cell):
    """A transformer of plain tensors, masks last: MindSpore would compile tensors in a tuple as constants.

    With `projected`, text and condition come as their projections return them, as in sampling; else they are
    projected here, as in training.
    """

    def __init__(self, model: nn.Cell, given: Case, projected: bool):
        super().__init__(auto_prefix=False)
        self.model = model
        self.text = None if projected else transformer.TextProjection(model)
        self.has_condition = given.condition_SBF is not None
        self.condition = None
        if self.has_condition and not projected:
            self.condition = transformer.ConditionProjection(model)
        self.num_text = 2 * len(model.plan) if projected else 1
        self.has_text_mask = given.keep_text_B11L is not None
        self.has_video_mask = bool(given.keep_video)

    def construct(self, x, features, cos, sin, *rest):
        text_kv = rest[: self.num_text] if self.text is None else self.text(rest[0])
        condition = rest[self.num_text] if self.has_condition else None
        if self.condition is not None:
            condition = self.condition(condition)
        masks = rest[self.num_text + self.has_condition :]
        keep_text = masks[0] if self.has_text_mask else None
        keep_video = masks[-3:] if self.has_video_mask else None
        return self.model(x, features, text_kv, keep_text, cos, sin, keep_video, condition)


class Gradient(nn.Cell):
    """Gradients of a cell's output, weighted by the last input, for the parameters."""

    def __init__(self, cell: nn.Cell, parameters: list):
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.parameters = mindspore.ParameterTuple(parameters)
        self.grad = ops.GradOperation(get_by_list=True, sens_param=True)

    def construct(self, *inputs):
        return self.grad(self.cell, self.parameters)(*inputs)


def sparse(head_dim: int = 48, num_layers: int = 6, mask_channels: int | None = None) -> TransformerConfig:
    width = N * head_dim
    return TransformerConfig(
        num_attention_heads=N,
        attention_head_dim=head_dim,
        cross_attention_dim=width,
        num_layers=num_layers,
        caption_channels=32,
        sparse_n=K,
        vae_scale_factor_t=mask_channels,
    )


SPARSE, WIDE_HEADS, IMAGE_TO_VIDEO = sparse(), sparse(head_dim=96), sparse(mask_channels=4)


def build(config: TransformerConfig, device: str, dtype: str) -> nn.Cell:
    """A transformer with a device's kernels; in any dtype its weights are the same float16 numbers."""
    with kernels.on(device):
        model = transformer.Transformer(config)
    shapes = {name: tuple(p.shape) for name, p in runtime.parameters(model).items()}
    weights = initial_weights(shapes, seed=0)
    runtime.load_weights(
        model, {k: w.astype(np.float16).astype(np.float32) for k, w in weights.items()}, "test"
    )
    return runtime.place(runtime.cast(model, dtype), device)


def given_case(
    config: TransformerConfig,
    latent_thw: tuple,
    batch: int,
    pad_text: bool,
    keep_BTHW: np.ndarray | None = None,
) -> Case:
    grid = grid_inputs(config, latent_thw, batch, keep_BTHW)
    keep_BL = np.arange(L) < np.array([[L - 7], [L - 2]])[:batch]
    condition_SBF = None
    if config.mask_channels:
        size = (8 + config.mask_channels) * config.patch_size**2
        condition_SBF = normal((len(grid.cos_S13P), batch, size), 0, 3).astype(np.float16)
    return Case(
        normal((batch, 8, *latent_thw), 0, 1).astype(np.float16),
        timestep_features(np.array([700, 20])[:batch]),
        grid.cos_S13P,
        grid.sin_S13P,
        normal((batch, L, config.caption_channels), 0, 2).astype(np.float16),
        keep_BL[:, None, None] if pad_text else None,
        tuple(grid.keep_video or ()),
        condition_SBF,
    )


@functools.cache
def forward(
    latent_thw: tuple,
    batch: int = 2,
    pad_text: bool = False,
    config: TransformerConfig = SPARSE,
    dtype: str = "float16",
) -> tuple[Graph, Case, list[Tensor]]:
    """The denoiser's graph for Ascend, the case and the graph's inputs; what projections return is drawn."""
    given = given_case(config, latent_thw, batch, pad_text)
    projected = [normal((L, batch, config.width), 0, 10 + i) for i in range(2 * config.num_layers)]
    if given.condition_SBF is not None:
        projected.append(normal((len(given.cos_S13P), batch, config.width), 0, 4))
    halves = [runtime.to_tensor(array, "cpu", dtype) for array in (given.x_BCTHW, *projected)]
    tables, masks = map(on_cpu, given[1:4]), map(on_cpu, given.masks)
    inputs = [halves[0], *tables, *halves[1:], *masks]
    return export(Denoise(build(config, "ascend", dtype), given, projected=True), *inputs), given, inputs


@functools.cache
def gradient(latent_thw: tuple, pad_text: bool, config: TransformerConfig = SPARSE) -> Graph:
    """The graph of a training step's gradients, projections included: every parameter takes part."""
    given = given_case(config, latent_thw, 2, pad_text)
    model = build(config, "ascend", "float16")
    step = Gradient(Denoise(model, given, projected=False), list(runtime.trainable(model).values()))
    arrays = [*given.to_project, given.x_BCTHW]  # the last one weights the output
    return export(step, *map(on_cpu, arrays))


def run_on_cpu(config: TransformerConfig, given: Case, inputs: list[Tensor], dtype: str) -> np.ndarray:
    """The same model on the CPU's kernels, inputs in half precision widened if need be."""
    cast = [x.astype(runtime.DTYPES[dtype]) if x.dtype == mindspore.float16 else x for x in inputs]
    return runtime.to_numpy(Denoise(build(config, "cpu", dtype), given, projected=True)(*cast))


def run_exported(graph: Graph, inputs: list[Tensor], rounded: bool) -> np.ndarray:
    return evaluate(graph, [x.asnumpy() for x in inputs], rounded)[graph.output]
