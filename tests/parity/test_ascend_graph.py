"""The Ascend proof without an Ascend: the exported graph has the promised operators and computes the same.

`pytest tests/parity/test_ascend_graph.py -s` prints the operator counts that docs/ascend.md quotes.

Shapes: S video tokens (padded), L text tokens, B batch, E width = N*D, N heads, D head width, K skip stride.
"""

import functools
import importlib
import re
from typing import NamedTuple

import numpy as np
import pytest

from common.conditions import grid_inputs
from common.models import TransformerConfig
from common.noise import initial_weights, normal
from common.rope import timestep_features
from common.skiparse import GROUP
from tools.ascend_emulator import FLASH_INPUTS, LAYOUTS, check_flash, evaluate, flash_attributes
from tools.ascend_graph import BOOKKEEPING, Graph, Walk, export

mindspore = pytest.importorskip("mindspore", reason="mindspore, which exports the Ascend graph, is missing")
nn, ops, Tensor = mindspore.nn, mindspore.ops, mindspore.Tensor
kernels, runtime, transformer = (
    importlib.import_module(f"ms.{name}") for name in ("kernels", "runtime", "transformer")
)

pytestmark = pytest.mark.ms

N, K, L = 2, 4, 16
EVEN, PADDED = (2, 8, 16), (3, 6, 10)  # latents of 64 and of 45 tokens; 45 are padded to 48 = 3*K*K
FLASH, FLASH_GRAD = "FlashAttentionScore", "FlashAttentionScoreGrad"
QUERY, KEY, VALUE, MASK = (FLASH_INPUTS.index(name) for name in ("query", "key", "value", "attn_mask"))
PROJECTIONS = {"Dense", "MatMul", "BatchMatMul", "BiasAdd"}
VIEWS = {"Reshape", *BOOKKEEPING}
ROPE = {*VIEWS, "Mul", "Add", "Sub", "Neg", "Unstack", "Stack", "Cast"}
ROPE_GRAD = {*ROPE, "StridedSliceGrad", "Unstack", "AddN"}
BIAS_GRAD = {"SumExt"}

# Without rounding, exported graph and CPU differ by the order of float32 sums: 4e-6 where outputs reach 4.
EXACT = 2e-5


@pytest.fixture(autouse=True)
def _graph_mode():
    before = mindspore.get_context("mode")
    runtime.setup("cpu")
    yield
    mindspore.set_context(mode=before)


class Case(NamedTuple):
    """What the denoiser is given, in NumPy."""

    x_BCTHW: np.ndarray
    features_BF: np.ndarray
    cos_S13P: np.ndarray
    sin_S13P: np.ndarray
    text_BLC: np.ndarray
    keep_text_B11L: np.ndarray | None
    keep_video: tuple

    @property
    def masks(self) -> list[np.ndarray]:
        return ([] if self.keep_text_B11L is None else [self.keep_text_B11L]) + list(self.keep_video)


class Denoise(nn.Cell):
    """A transformer of plain tensors, masks last: MindSpore would compile tensors in a tuple as constants."""

    def __init__(self, model: nn.Cell, given: Case, text: nn.Cell | None = None):
        super().__init__(auto_prefix=False)
        self.model = model
        self.text = text
        self.num_text = 2 * len(model.plan) if text is None else 1
        self.has_text_mask = given.keep_text_B11L is not None
        self.has_video_mask = bool(given.keep_video)

    def construct(self, x, features, cos, sin, *rest):
        text_kv = rest[: self.num_text] if self.text is None else self.text(rest[0])
        masks = rest[self.num_text :]
        keep_text = masks[0] if self.has_text_mask else None
        keep_video = masks[-3:] if self.has_video_mask else None
        return self.model(x, features, text_kv, keep_text, cos, sin, keep_video, None)


class Gradient(nn.Cell):
    """Gradients of a cell's output, weighted by the last input, for the parameters."""

    def __init__(self, cell: nn.Cell, parameters: list):
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.parameters = mindspore.ParameterTuple(parameters)
        self.grad = ops.GradOperation(get_by_list=True, sens_param=True)

    def construct(self, *inputs):
        return self.grad(self.cell, self.parameters)(*inputs)


def sparse(head_dim: int = 48, num_layers: int = 6) -> TransformerConfig:
    width = N * head_dim
    return TransformerConfig(
        num_attention_heads=N,
        attention_head_dim=head_dim,
        cross_attention_dim=width,
        num_layers=num_layers,
        caption_channels=32,
        sparse_n=K,
    )


SPARSE, WIDE_HEADS = sparse(), sparse(head_dim=96)


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
    return Case(
        normal((batch, 8, *latent_thw), 0, 1).astype(np.float16),
        timestep_features(np.array([700, 20])[:batch]),
        grid.cos_S13P,
        grid.sin_S13P,
        normal((batch, L, config.caption_channels), 0, 2).astype(np.float16),
        keep_BL[:, None, None] if pad_text else None,
        tuple(grid.keep_video or ()),
    )


@functools.cache
def forward(
    latent_thw: tuple,
    batch: int = 2,
    pad_text: bool = False,
    config: TransformerConfig = SPARSE,
    dtype: str = "float16",
) -> tuple[Graph, Case, list[Tensor]]:
    """The denoiser's graph for Ascend, the case and the graph's inputs; keys and values of text are drawn."""
    given = given_case(config, latent_thw, batch, pad_text)
    text_kv = [normal((L, batch, config.width), 0, 10 + i) for i in range(2 * config.num_layers)]
    halves = [runtime.to_tensor(array, dtype) for array in (given.x_BCTHW, *text_kv)]
    tables, masks = map(runtime.to_tensor, given[1:4]), map(runtime.to_tensor, given.masks)
    inputs = [halves[0], *tables, *halves[1:], *masks]
    return export(Denoise(build(config, "ascend", dtype), given), *inputs), given, inputs


@functools.cache
def gradient(latent_thw: tuple, pad_text: bool) -> Graph:
    """The graph of a training step's gradients, text projection included: every parameter takes part."""
    given = given_case(SPARSE, latent_thw, 2, pad_text)
    model = build(SPARSE, "ascend", "float16")
    step = Denoise(model, given, transformer.TextProjection(model))
    arrays = [*given[:5], *given.masks, given.x_BCTHW]  # the last one weights the output
    return export(Gradient(step, list(runtime.trainable(model).values())), *map(runtime.to_tensor, arrays))


def run_on_cpu(config: TransformerConfig, given: Case, inputs: list[Tensor], dtype: str) -> np.ndarray:
    """The same model on the CPU's kernels, inputs in half precision widened if need be."""
    cast = [x.astype(runtime.DTYPES[dtype]) if x.dtype == mindspore.float16 else x for x in inputs]
    return runtime.to_numpy(Denoise(build(config, "cpu", dtype), given)(*cast))


def run_exported(graph: Graph, inputs: list[Tensor], rounded: bool) -> np.ndarray:
    return evaluate(graph, [x.asnumpy() for x in inputs], rounded)[graph.output]


def report(title: str, graph: Graph) -> None:
    counts = ", ".join(f"{operator} {n}" for operator, n in graph.count().most_common())
    print(f"\n{title}: {counts}")


def wanted_attentions(config: TransformerConfig, batch: int) -> list[tuple[str, int]]:
    """Layout and number of heads of every attention in the order of execution, as DESIGN.md has them."""
    wanted = []
    for arrangement in config.plan:
        wanted += [("BSH", batch * N) if arrangement == GROUP else ("SBH", N), ("SBH", N)]
    return wanted


def check_attentions(graph: Graph, config: TransformerConfig, batch: int, operator: str = FLASH) -> None:
    nodes = graph.find(operator)
    attributes = [flash_attributes(graph, node) for node in nodes]
    got = [(a.input_layout, a.head_num) for a in attributes]
    wanted = wanted_attentions(config, batch)
    assert got == (wanted if operator == FLASH else wanted[::-1])
    for a in attributes:
        assert a.scale_value == pytest.approx(config.attention_head_dim**-0.5, rel=1e-6)
    if operator == FLASH:
        for node in nodes:
            check_flash(graph, node)


def check_only(walk: Walk, allowed: set[str], stopped: set[str] = PROJECTIONS) -> None:
    """A walk passed nothing but what is allowed, and ended at a projection."""
    assert set(walk.passed) <= allowed, f"between projection and attention: {walk.passed}"
    assert set(walk.stopped) <= stopped
    assert set(walk.stopped) & PROJECTIONS


def check_paths(graph: Graph, text_is_input: bool = True) -> None:
    """Projections reach attention through views, and through the rotary embedding for q and k of video."""
    for i, node in enumerate(graph.find(FLASH)):
        rotated = i % 2 == 0  # self-attention and cross-attention take turns
        check_only(graph.upstream(node.inputs[QUERY], PROJECTIONS), ROPE if rotated else VIEWS)
        if rotated or not text_is_input:
            check_only(graph.upstream(node.inputs[KEY], PROJECTIONS), ROPE if rotated else VIEWS)
            check_only(graph.upstream(node.inputs[VALUE], PROJECTIONS), VIEWS)
        else:
            assert {node.inputs[KEY], node.inputs[VALUE]} <= set(graph.inputs)
        onward = graph.downstream(node.name, PROJECTIONS | {FLASH_GRAD})
        check_only(onward, VIEWS, PROJECTIONS | {FLASH_GRAD})


def check_transposes(graph: Graph) -> None:
    """None lies between two attentions, nor between the gradients of two; entrance and exit remain."""
    for node in graph.find("Transpose"):
        before, after = graph.upstream(node.name, ()).passed, graph.downstream(node.name, ()).passed
        for operator in (FLASH, FLASH_GRAD):
            assert not (before[operator] and after[operator]), f"{node} moves tokens between attentions"


def in_graph(graph: Graph, operators: str) -> set[str]:
    """Operators of the graph whose names contain one of the words."""
    return {operator for operator in graph.count() if any(word in operator for word in operators.split())}


@pytest.mark.parametrize(("latent_thw", "pad_text"), [(EVEN, False), (PADDED, True)], ids=["even", "padded"])
def test_forward_is_fused_attention_on_views(latent_thw, pad_text):
    graph, given, _ = forward(latent_thw, pad_text=pad_text)
    report(f"forward, 6 layers, latents {latent_thw}", graph)
    check_attentions(graph, SPARSE, batch=2)
    check_paths(graph)
    check_transposes(graph)
    # cut patches, their weight, modulation to (6,B,E), into native order; out of it, join patches
    assert len(graph.find("Transpose")) == 6
    assert not in_graph(graph, "Gather Scatter Softmax BatchMatMul")

    masks = [graph.type_of(node.inputs[MASK]) for node in graph.find(FLASH)]
    if not given.masks:
        assert masks == [None] * 12
        assert not in_graph(graph, "LogicalNot BroadcastTo")
    else:
        S, text = 48, (2, 1, 48, L)
        full, single, group = (1, 1, S, S), (K * 2, 1, S // K, S // K), (K, 1, S // K, S // K)
        shapes = [full, text, full, text, single, text, group, text, full, text, full, text]
        assert [mask.shape for mask in masks] == shapes


@pytest.mark.parametrize(("latent_thw", "pad_text"), [(EVEN, False), (PADDED, True)], ids=["even", "padded"])
def test_gradient_is_fused_attention_on_views(latent_thw, pad_text):
    graph = gradient(latent_thw, pad_text)
    report(f"gradient, 6 layers, latents {latent_thw}", graph)
    check_attentions(graph, SPARSE, batch=2)
    check_attentions(graph, SPARSE, batch=2, operator=FLASH_GRAD)
    check_paths(graph, text_is_input=False)
    check_transposes(graph)
    # forward: cut patches, their weight, native order, modulation, text; gradients of all but the first and
    # third, and of the way out
    assert len(graph.find("Transpose")) == 10
    assert not in_graph(graph, "Gather Scatter Softmax BatchMatMul")

    forward_inputs = {node.inputs[:3]: node.inputs[MASK] for node in graph.find(FLASH)}
    for node in graph.find(FLASH_GRAD):
        assert forward_inputs[node.inputs[:3]] == node.inputs[7], "other inputs or another mask than forward"
        check_only(graph.upstream(node.inputs[3], PROJECTIONS), VIEWS)
        check_only(graph.downstream(node.name, PROJECTIONS), ROPE_GRAD | BIAS_GRAD)


def test_bfloat16_keeps_the_contract():
    graph, _, _ = forward(PADDED, pad_text=True, config=WIDE_HEADS, dtype="bfloat16")
    check_attentions(graph, WIDE_HEADS, batch=2)
    check_paths(graph)
    assert {graph.type_of(node.inputs[QUERY]).dtype for node in graph.find(FLASH)} == {"bfloat16"}


@pytest.mark.slow
def test_32_layers_are_the_same_graph_repeated():
    config = sparse(head_dim=96, num_layers=32)
    graph, _, _ = forward(PADDED, pad_text=True, config=config)
    report("forward, 32 layers", graph)
    assert len(graph.find(FLASH)) == 64
    assert len(graph.find("Transpose")) == 6
    check_attentions(graph, config, batch=2)
    check_paths(graph)
    check_transposes(graph)


@pytest.mark.parametrize(
    ("latent_thw", "batch", "pad_text", "config"),
    [
        (EVEN, 2, False, SPARSE),
        (PADDED, 2, True, SPARSE),
        (PADDED, 1, True, SPARSE),
        (EVEN, 1, False, WIDE_HEADS),
    ],
    ids=["even-2", "padded-2", "padded-1", "even-1-wide"],
)
def test_exported_graph_computes_what_the_cpu_computes(latent_thw, batch, pad_text, config):
    graph, given, inputs = forward(latent_thw, batch, pad_text, config)
    want = run_on_cpu(config, given, inputs, "float32")
    exact = abs(run_exported(graph, inputs, rounded=False) - want).max()
    print(f"\nexported graph against the CPU in float32: {exact:.1e}, outputs up to {abs(want).max():.2f}")
    assert exact <= EXACT


def test_exported_graph_computes_what_the_cpu_computes_in_float16():
    graph, given, inputs = forward(PADDED, pad_text=True)
    want = run_on_cpu(SPARSE, given, inputs, "float16")
    difference = abs(run_exported(graph, inputs, rounded=True) - want).max()
    tolerance = 4 * np.spacing(
        abs(want).max().astype(np.float16)
    )  # roundings of six layers, added in another order
    print(f"\nexported graph against the CPU in float16: {difference:.1e}, tolerance {tolerance:.1e}")
    assert difference <= tolerance


def test_no_query_is_without_keys():
    graph, _, inputs = forward(PADDED, pad_text=True)
    values = evaluate(graph, [x.asnumpy() for x in inputs])
    for node in graph.find(FLASH):
        drop = values[node.inputs[MASK]]
        assert drop.any()
        assert not drop.all(axis=-1).any(), "the operator's documentation does not say what such a row gives"


def flipped_polarity(graph: Graph) -> list[Graph]:
    """For every mask, leave out the LogicalNot that turns True = keep into the operator's True = drop."""
    faulty = []
    for name in dict.fromkeys(node.inputs[MASK] for node in graph.find(FLASH)):  # blocks share them
        broadcast = graph.nodes[name]
        inverted = graph.nodes[broadcast.inputs[0]]
        assert (broadcast.operator, inverted.operator) == ("BroadcastTo", "LogicalNot")
        faulty.append(graph.with_node(name, inputs=(inverted.inputs[0], *broadcast.inputs[1:])))
    return faulty


def wrong_layout(graph: Graph) -> list[Graph]:
    """For every attention, SBH instead of BSH or the other way round."""
    index, faulty = FLASH_INPUTS.index("input_layout"), []
    for node in graph.find(FLASH):
        other = "SBH" if flash_attributes(graph, node).input_layout == "BSH" else "BSH"
        faulty.append(graph.with_constant(node.name, index, LAYOUTS.index(other)))
    return faulty


def wrong_head_num(graph: Graph) -> list[Graph]:
    """For every attention, half the heads; in a group block that is to forget the batch folded into them."""
    index = FLASH_INPUTS.index("head_num")
    return [
        graph.with_constant(node.name, index, flash_attributes(graph, node).head_num // 2)
        for node in graph.find(FLASH)
    ]


@pytest.mark.parametrize(
    ("plant", "latent_thw", "shown", "refused"),
    [
        (flipped_polarity, PADDED, 4, 0),
        (wrong_layout, EVEN, 6, 6),  # with B read as S, text of another length does not even fit
        (wrong_layout, PADDED, 0, 12),  # nor do masks
        (wrong_head_num, EVEN, 12, 0),
        (wrong_head_num, PADDED, 12, 0),
    ],
)
def test_a_fault_in_one_place_shows(plant, latent_thw, shown, refused):
    graph, _, inputs = forward(latent_thw, pad_text=latent_thw == PADDED)
    right = run_exported(graph, inputs, rounded=False)
    noise = abs(right - run_exported(graph, inputs, rounded=True)).max()
    differences, messages = [], []
    for faulty in plant(graph):
        try:
            differences.append(abs(run_exported(faulty, inputs, rounded=False) - right).max())
        except ValueError as error:
            messages.append(str(error))
    print(f"\n{plant.__name__}, latents {latent_thw}: output changes by {np.round(differences, 2)}")
    print(f"float16 rounding changes it by {noise:.4f}; {len(messages)} faults refused by the contract")
    assert (len(differences), len(messages)) == (shown, refused)
    assert all(difference > max(10 * noise, 1000 * EXACT) for difference in differences)
    assert all(re.search(r"(key|attn_mask): got \(.*\), wanted .*; ", message) for message in messages)


def test_samples_of_several_sizes_are_refused_with_the_remedy():
    keep_BTHW = np.ones((2, *PADDED), bool)
    keep_BTHW[1, :, 4:] = False
    given = given_case(SPARSE, PADDED, 2, False, keep_BTHW)
    model = build(SPARSE, "ascend", "float16")
    arrays = [*given[:5], *given.masks]
    with pytest.raises(ValueError, match="group batches by size so that all samples share their padding"):
        export(Denoise(model, given, transformer.TextProjection(model)), *map(runtime.to_tensor, arrays))
