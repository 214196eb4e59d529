"""FlashAttentionScore without an Ascend: what its documentation allows, our kernel against the reference."""

import importlib

import numpy as np
import pytest

from common.noise import normal
from tools.ascend_emulator import (
    FLASH_INPUTS,
    check_flash,
    copies_inside,
    evaluate,
    flash_attention_score,
)
from tools.ascend_graph import export

mindspore = pytest.importorskip("mindspore", reason="mindspore, which exports the Ascend graph, is missing")
nn, Tensor = mindspore.nn, mindspore.Tensor
kernels, layers, runtime = map(importlib.import_module, ("ms.kernels", "ms.layers", "ms.runtime"))

pytestmark = [pytest.mark.ms, pytest.mark.usefixtures("graph_mode")]


class Attend(nn.Cell):
    """One entry of the attention kernels as a Cell."""

    def __init__(self, device: str, num_heads: int, layout: str):
        super().__init__()
        self.attend = kernels.kernel("attention", device)
        self.num_heads = num_heads
        self.layout = layout

    def construct(self, q, k, v, *keep):
        return self.attend(q, k, v, keep[0] if keep else None, self.num_heads, self.layout)


def operands(layout: str, heads: int = 2, head_dim: int = 48) -> list[np.ndarray]:
    """q, k, v of 5 queries, 7 keys and batch 3 in a layout, float16."""
    shapes = [(length, 3) if layout == "SBH" else (3, length) for length in (5, 7, 7)]
    return [normal((*shape, heads * head_dim), 1, i).astype(np.float16) for i, shape in enumerate(shapes)]


def keep_mask(shape: tuple) -> np.ndarray:
    keep = normal(shape, 1, 9) > 0
    keep[..., 0] = True
    return keep


@pytest.mark.parametrize("layout", ["SBH", "BSH"])
@pytest.mark.parametrize("mask", [None, (3, 2, 5, 7), (3, 1, 5, 7), (1, 1, 5, 7), (5, 7)])
def test_emulator_equals_the_reference_kernel(layout, mask):
    q, k, v = operands(layout)
    keep = None if mask is None else keep_mask(mask)
    reference = kernels.kernel("attention", "reference")
    wide = [Tensor(x.astype(np.float32)) for x in (q, k, v)]
    want = reference(*wide, None if keep is None else Tensor(keep), 2, layout).asnumpy()
    drops = [None] if keep is None else [~keep, (~keep).astype(np.uint8)]
    for drop in drops:
        got = flash_attention_score(q, k, v, drop, 2, 48**-0.5, layout)
        assert got.dtype == np.float16
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)  # float16 has 11 bits


class Call(nn.Cell):
    """One entry of the kernels on tensors, the rest of its arguments fixed."""

    def __init__(self, operator: str, device: str, *rest: object):
        super().__init__()
        self.call = kernels.kernel(operator, device)
        self.rest = rest

    def construct(self, *tensors):
        return self.call(*tensors, *self.rest)


class CallSplit(Call):
    """What `split` returns, joined again in the other order."""

    def construct(self, *tensors):
        a, b, c = self.call(*tensors, *self.rest)
        return mindspore.ops.cat((c, b, a), 0)


ENTRIES = [
    (operator, device)
    for operator, entries in kernels._KERNELS.items()
    for device, function in entries.items()
    if function is not entries["reference"]
]


def test_every_entry_of_its_own_is_compared():
    assert {operator for operator, _ in ENTRIES} == {"attention", *(case[0] for case in CASES)}
    assert {device for _, device in ENTRIES} == {"ascend"}, "give the new one a test here"


# operator, shapes of the tensors, other arguments, the operators it becomes (beside Reshape and Transpose)
CASES = [
    ("conv2d", [(2, 3, 8, 7), (4, 3, 3, 3), (4,)], (2, 1), {"Conv2DExt": 1}),
    ("conv3d", [(2, 3, 5, 8, 6), (4, 3, 3, 3, 3), (4,)], ((1, 2, 2), (0, 1, 1)), {"Conv3DExt": 1}),
    ("max_pool2d", [(2, 3, 7, 6)], ((2, 2), (2, 2)), {"MaxPoolWithMask": 1}),
    ("max_pool3d", [(2, 3, 5, 7, 8)], ((1, 3, 3), (1, 2, 2)), {"MaxPoolWithMask": 1}),
    ("max_pool3d", [(2, 3, 5, 7, 8)], ((3, 3, 3), (2, 2, 2)), {"MaxPoolWithMask": 2}),
    ("max_pool3d", [(2, 3, 5, 7, 8)], ((3, 3, 3), (1, 1, 1)), {"MaxPoolWithMask": 2}),
    ("std", [(2, 3, 4, 5)], (), {"Std": 1}),
    ("split", [(12,)], ((3, 7, 2),), {"SplitWithSize": 1, "Concat": 1}),
]


@pytest.mark.parametrize(("operator", "shapes", "rest", "becomes"), CASES)
def test_every_other_entry_of_its_own_equals_the_reference(operator, shapes, rest, becomes):
    """In float32, which CANN's binary of Conv3D does not take; what Conv3DExt calls does."""
    arrays = [normal(shape, 1, i).astype(np.float32) for i, shape in enumerate(shapes)]
    make = CallSplit if operator == "split" else Call
    graph = export(make(operator, "ascend", *rest), *map(Tensor, arrays))
    counts = graph.count()
    assert {name: n for name, n in counts.items() if name not in ("Reshape", "Transpose")} == becomes
    got = evaluate(graph, arrays, rounded=False)[graph.output]
    want = make(operator, "reference", *rest)(*map(Tensor, arrays)).asnumpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["SBH", "BSH"])
@pytest.mark.parametrize("mask", [None, (3, 1, 1, 7), (1, 1, 1, 7)])
@pytest.mark.parametrize("device", [device for operator, device in ENTRIES if operator == "attention"])
def test_every_attention_of_its_own_equals_the_reference(device, mask, layout):
    arrays = [*operands(layout), *([] if mask is None else [keep_mask(mask)])]
    inputs = [Tensor(x) for x in arrays]
    wide = [Tensor(x.astype(np.float32) if x.dtype == np.float16 else x) for x in arrays]
    want = Attend("reference", 2, layout)(*wide).asnumpy()
    if device == "ascend":
        graph = export(Attend(device, 2, layout), *inputs)
        got = evaluate(graph, arrays, rounded=False)[graph.output]
    else:
        got = Attend(device, 2, layout)(*wide).asnumpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)  # MindSpore's exp on a CPU is 4e-6 off


@pytest.mark.parametrize(
    ("heads", "head_dim", "mask", "message"),
    [
        (257, 16, None, r"attention: .*at most 256 heads, got 257 .*; use a smaller batch"),
        (2, 24, None, r"attention: .*divisible by 16, got 24; choose attention_head_dim 48 or 96"),
        (2, 48, (3, 2, 1, 7), r"attention: got masks for 2 heads in a group block.*; group batches by size"),
    ],
)
def test_kernel_refuses_what_the_operator_cannot_do(heads, head_dim, mask, message):
    inputs = [Tensor(x) for x in operands("BSH", heads=heads, head_dim=head_dim)]
    keep = None if mask is None else Tensor(keep_mask(mask))
    with pytest.raises(ValueError, match=message):
        kernels.kernel("attention", "ascend")(*inputs, keep, heads, "BSH")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_layout": "BNSD"}, "input_layout: got BNSD, wanted SBH or BSH"),
        ({"query": np.float32}, r"dtypes: got \['float32', 'float16', 'float16'\]"),
        ({"query": (5, 3 * 96)}, r"query: got \(5, 288\), wanted three axes"),
        ({"key": (7, 2, 96)}, r"key: got \(7, 2, 96\), wanted batch 3"),
        ({"value": (6, 3, 96)}, r"value: got \(6, 3, 96\), wanted the key's \(7, 3, 96\)"),
        ({"head_num": 5}, "head_num: got 5, wanted at most 256, a divisor of 96"),
        ({"head_num": 0}, "head_num: got 0"),
        ({"head_num": 4}, "head width: got 24, wanted a multiple of 16"),
        ({"attn_mask": np.zeros((3, 1, 1, 7), bool)}, r"attn_mask: got \(3, 1, 1, 7\), wanted one of"),
        ({"attn_mask": np.zeros((5, 7), np.float16)}, "attn_mask: got float16, wanted bool or uint8"),
    ],
)
def test_emulator_refuses_what_the_documentation_excludes(changes, message):
    q, k, v = operands("SBH")
    arguments = {"query": q, "key": k, "value": v, "attn_mask": None, "head_num": 2, "scale_value": 0.1}
    arguments["input_layout"] = "SBH"
    for name, change in changes.items():
        if isinstance(change, tuple):
            change = np.zeros(change, np.float16)
        elif isinstance(change, type):
            change = arguments[name].astype(change)
        arguments[name] = change
    with pytest.raises(ValueError, match=message):
        flash_attention_score(**arguments)


def test_more_heads_than_the_operator_has_are_refused():
    x = np.zeros((2, 1, 257 * 16), np.float16)
    with pytest.raises(ValueError, match="head_num: got 257, wanted at most 256"):
        flash_attention_score(x, x, x, None, 257, 0.25, "SBH")


@pytest.mark.parametrize(
    ("name", "value"),
    [("keep_prob", 0.9), ("inner_precise", 1), ("sparse_mode", 2), ("next_tokens", 0), ("real_shift", 1)],
)
def test_features_we_do_not_use_are_refused(name, value):
    graph = export(Attend("ascend", 2, "SBH"), *map(Tensor, operands("SBH")))
    (node,) = graph.find("FlashAttentionScore")
    check_flash(graph, node)
    faulty = graph.with_constant(node.name, FLASH_INPUTS.index(name), value)
    with pytest.raises(ValueError, match=f"FlashAttentionScore .*: .*{name}: got .*, wanted .*; "):
        check_flash(faulty, faulty.nodes[node.name])


@pytest.mark.parametrize(
    ("layout", "batch", "copies"),
    [("SBH", 28, 0), ("SBH", 29, 4), ("BSH", 29, 0)],
)
def test_wide_batches_of_the_released_model_are_copied_inside(layout, batch, copies):
    """24 heads of 96. A single block holds K = 4 times the samples: from 8 on, its tokens are copied."""
    shape = (2, batch, 2304) if layout == "SBH" else (batch, 2, 2304)
    graph = export(Attend("ascend", 24, layout), *(Tensor(np.zeros(shape, np.float16)) for _ in range(3)))
    (node,) = graph.find("FlashAttentionScore")
    assert copies_inside(graph, node) == copies


def test_float32_is_refused():
    inputs = [Tensor(x.astype(np.float32)) for x in operands("SBH")]
    with pytest.raises(ValueError, match=r"takes float16 or bfloat16, got Float32; set dtype to either"):
        kernels.kernel("attention", "ascend")(*inputs, None, 2, "SBH")


class Rearranged(nn.Cell):
    """What the native token order avoids: a transposition between projection and attention."""

    def __init__(self):
        super().__init__()
        self.to_q = layers.Linear(96, 96)
        self.to_out = layers.Linear(96, 96)
        self.attend = Attend("ascend", 2, "BSH")

    def construct(self, x_SBE):
        q_BSE = self.to_q(x_SBE).permute(1, 0, 2)
        return self.to_out(self.attend(q_BSE, q_BSE, q_BSE).permute(1, 0, 2))


def test_a_transposition_beside_attention_is_seen():
    graph = export(runtime.cast(Rearranged(), "float16"), Tensor(operands("SBH")[0]))
    (node,) = graph.find("FlashAttentionScore")
    assert graph.upstream(node.inputs[0], {"Dense"}) == ({"Transpose": 1}, {"Dense": 1})
    passed = {"Transpose": 1, "TupleGetItem": 1}
    assert graph.downstream(node.name, {"Dense"}) == (passed, {"Dense": 1})
