"""The Ascend proof without an Ascend: the exported graph has the promised operators.

`pytest tests/parity/test_ascend_graph.py -s` prints the operator counts that docs/ascend.md quotes.

Shapes: S video tokens (padded), L text tokens, B batch, N heads, K skip stride.
"""

from collections import Counter

import pytest

from common.models import TransformerConfig
from common.skiparse import GROUP
from tests.parity.ascend_cases import (
    EVEN,
    FLASH,
    IMAGE_TO_VIDEO,
    PADDED,
    SPARSE,
    WIDE_HEADS,
    K,
    L,
    N,
    forward,
    gradient,
    sparse,
)
from tools.ascend_emulator import FLASH_INPUTS, check_flash, copies_inside, flash_attributes
from tools.ascend_graph import BOOKKEEPING, Graph, Walk

pytestmark = [pytest.mark.ms, pytest.mark.usefixtures("graph_mode")]

FLASH_GRAD = "FlashAttentionScoreGrad"
QUERY, KEY, VALUE, MASK = (FLASH_INPUTS.index(name) for name in ("query", "key", "value", "attn_mask"))
PROJECTIONS = {"Dense", "MatMul", "BatchMatMul", "BiasAdd"}
VIEWS = {"Reshape", *BOOKKEEPING}
ROPE = {*VIEWS, "Mul", "Add", "Sub", "Neg", "Unstack", "Stack", "Cast"}
ROPE_GRAD = {*ROPE, "StridedSliceGrad", "Unstack", "AddN"}
BIAS_GRAD = {"SumExt"}


def report(title: str, graph: Graph) -> None:
    counts = ", ".join(f"{operator} {n}" for operator, n in graph.count().most_common())
    print(f"\n{title}: {counts}")


def wanted_attentions(config: TransformerConfig, batch: int) -> list[tuple[str, int]]:
    """Layout and number of heads of every attention in the order of execution (docs/ascend.md)."""
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
    assert not any(copies_inside(graph, node) for node in nodes)


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


def test_what_is_given_of_a_video_is_one_addition():
    plain, with_condition = (forward(EVEN, config=config)[0].count() for config in (SPARSE, IMAGE_TO_VIDEO))
    assert with_condition - plain == Counter({"Add": 1})
    assert not plain - with_condition


def test_what_is_given_of_a_video_is_projected_in_training():
    plain, with_condition = (gradient(EVEN, False, config) for config in (SPARSE, IMAGE_TO_VIDEO))
    for operator in (FLASH, FLASH_GRAD):
        check_attentions(with_condition, IMAGE_TO_VIDEO, batch=2, operator=operator)
    check_paths(with_condition, text_is_input=False)
    check_transposes(with_condition)
    # Tokens come in native order and stay. For each of the two inputs: the embedding's weight and its
    # gradient, and the two matrices that MindSpore turns in the gradient of a linear layer without bias.
    assert len(with_condition.find("Transpose")) == len(plain.find("Transpose")) + 2 * (2 + 2)
    assert not in_graph(with_condition, "Gather Scatter Softmax BatchMatMul")


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
