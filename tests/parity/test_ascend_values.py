"""The Ascend proof without an Ascend: the exported graph, run in the emulator, computes what the CPU does.

`pytest tests/parity/test_ascend_values.py -s` prints the differences that docs/ascend.md quotes.
"""

import re

import numpy as np
import pytest

from tests.parity.ascend_cases import (
    EVEN,
    FLASH,
    IMAGE_TO_VIDEO,
    PADDED,
    SPARSE,
    WIDE_HEADS,
    Denoise,
    build,
    forward,
    given_case,
    on_cpu,
    run_exported,
    run_on_cpu,
)
from tools.ascend_emulator import FLASH_INPUTS, LAYOUTS, evaluate, flash_attributes
from tools.ascend_graph import Graph, export

pytestmark = [pytest.mark.ms, pytest.mark.usefixtures("graph_mode")]

MASK = FLASH_INPUTS.index("attn_mask")

# Without rounding, exported graph and CPU differ by the order of float32 sums: 4e-6 where outputs reach 4.
EXACT = 2e-5


@pytest.mark.parametrize(
    ("latent_thw", "batch", "pad_text", "config"),
    [
        (EVEN, 2, False, SPARSE),
        (PADDED, 2, True, SPARSE),
        (PADDED, 1, True, SPARSE),
        (EVEN, 1, False, WIDE_HEADS),
        (PADDED, 2, True, IMAGE_TO_VIDEO),
    ],
    ids=["even-2", "padded-2", "padded-1", "even-1-wide", "padded-2-image-to-video"],
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
    with pytest.raises(ValueError, match="group batches by size so that all samples share their padding"):
        export(Denoise(model, given, projected=False), *map(on_cpu, given.to_project))
