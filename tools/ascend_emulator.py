"""Run an exported graph in NumPy, with FlashAttentionScore as its documentation describes it.

Nothing of ms/ is used: what runs is the graph that an Ascend would be given, with its exported attributes.
Sources: the docstrings of mindspore.ops.FlashAttentionScore and mindspore.ops.flash_attention_score (2.7.2).

Shapes: S queries, L keys, B batch, E width = N*D, N heads, D head width.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange

from common.errors import InputError

from .ascend_graph import Graph, Node, TensorType

FLASH_TENSORS = ("query", "key", "value", "real_shift", "drop_mask", "padding_mask", "attn_mask")
FLASH_LISTS = ("prefix", "actual_seq_qlen", "actual_seq_kvlen")
LAYOUTS = ("BSH", "BNSD", "SBH", "BSND", "TND")  # FASInputLayoutMode of mindspore 2.7 numbers them so
AXES = {"SBH": "s b (n d)", "BSH": "b s (n d)"}
MAX_HEADS, MAX_HEAD_DIM, HEAD_DIM_MULTIPLE = 256, 512, 16
MAX_BATCH, MAX_LENGTH = 2048, 512 * 1024
MAX_ROW = 65535  # elements from one token of a sample to the next, above which CANN copies to another layout
LOWEST = np.finfo(np.float32).min  # finite, so that a query without keys gives a mean and not NaN


class FlashAttributes(NamedTuple):
    """The last inputs of FlashAttentionScore and of FlashAttentionScoreGrad, all constants."""

    head_num: int
    keep_prob: float
    scale_value: float
    pre_tokens: int
    next_tokens: int
    inner_precise: int
    input_layout: str
    sparse_mode: int


FLASH_INPUTS = (*FLASH_TENSORS, *FLASH_LISTS, *FlashAttributes._fields)


def flash_attention_score(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    attn_mask: np.ndarray | None,
    head_num: int,
    scale_value: float,
    input_layout: str,
) -> np.ndarray:
    """softmax(mask(scale * query key^T)) value, as documented; a mask drops where it is True.

    Args:
        query, key, value: (S,B,E), (L,B,E), (L,B,E) in layout SBH; (B,S,E), (B,L,E), (B,L,E) in layout BSH.
        attn_mask: (B,N,S,L), (B,1,S,L), (1,1,S,L) or (S,L), bool or uint8; None keeps everything.

    Raises:
        InputError: what the operator's documentation excludes: dtypes, shapes, head widths, numbers of heads.
    """
    _check_contract(query, key, value, attn_mask, head_num, input_layout, "FlashAttentionScore")
    return _attend(query, key, value, attn_mask, head_num, scale_value, input_layout).astype(query.dtype)


def flash_attributes(graph: Graph, node: Node) -> FlashAttributes:
    """What was exported for a FlashAttentionScore or a FlashAttentionScoreGrad."""
    names = node.inputs[-len(FlashAttributes._fields) :]
    attributes = FlashAttributes(*(graph.constants[name] for name in names))
    return attributes._replace(input_layout=LAYOUTS[int(attributes.input_layout)])


def check_flash(graph: Graph, node: Node) -> None:
    """Hold an exported FlashAttentionScore against the operator's contract; export accepts almost anything.

    Types and attributes suffice, so a graph in bfloat16 can be checked too.

    Raises:
        InputError: what an Ascend refuses, or a feature that we do not use (dropout, windows, shifts).
    """
    given = dict(zip(FLASH_INPUTS, node.inputs, strict=True))
    query, key, value, mask = (graph.type_of(given[name]) for name in ("query", "key", "value", "attn_mask"))
    x, where = flash_attributes(graph, node), _where(node)
    _check_contract(query, key, value, mask, x.head_num, x.input_layout, where)
    for name, default in {"keep_prob": 1, "inner_precise": 0, "sparse_mode": 0}.items():
        got = getattr(x, name)
        _require(got == default, where, name, got, default, "leave the default")
    window = min(x.pre_tokens, x.next_tokens)
    _require(window >= MAX_LENGTH, where, "pre_tokens, next_tokens", window, "no window", "leave the default")
    for name in ("real_shift", "drop_mask", "padding_mask", *FLASH_LISTS):
        none = graph.constants.get(given[name], given[name]) is None
        _require(none, where, name, given[name], None, "pass nothing")


def copies_inside(graph: Graph, node: Node) -> int:
    """How many whole tensors CANN copies inside an exported FlashAttentionScore, or inside its gradient.

    None while the tokens of a sample lie near enough; else query, key, value and result change their layout.

    Source: aclnn_flash_attention_score.cpp and its gradient's counterpart (hicann/ops-transformer, 2025-11).
    """
    query, layout = graph.type_of(node.inputs[0]), flash_attributes(graph, node).input_layout
    assert query is not None
    row = query.shape[2] * (query.shape[1] if layout == "SBH" else 1)
    return 4 if row > MAX_ROW else 0


def evaluate(graph: Graph, inputs: Sequence[np.ndarray], rounded: bool = True) -> dict[str, Any]:
    """Every value of the graph by name; `graph.output` names the result.

    Args:
        inputs: arrays for graph.inputs, in that order.
        rounded: round every result to the exported dtype, as a device does. False keeps halves in float32,
            which shows far more sharply whether two graphs mean the same.

    Raises:
        InputError: an input of another type than exported, an operator that is not in the table, a result of
            another shape than the compiler inferred, or a FlashAttentionScore outside its contract.
    """
    values: dict[str, Any] = dict(graph.constants)
    for (name, wanted), array in zip(graph.inputs.items(), inputs, strict=True):
        got = TensorType(array.shape, str(array.dtype))
        _require(got == wanted, f"input {name}", "type", got, wanted, "feed what was exported")
        values[name] = _wide(array)
    values |= {name: _wide(array) for name, array in graph.parameters.items()}
    for node in graph.nodes.values():
        known = node.operator in OPERATORS
        _require(known, _where(node), "operator", node.operator, "one of the emulator's", "extend OPERATORS")
        if node.operator == "FlashAttentionScore":
            check_flash(graph, node)
        result = OPERATORS[node.operator](node, *(values[name] for name in node.inputs))
        values[node.name] = _settle(result, node.types, node, rounded)
    return values


def _check_contract(
    query: Any, key: Any, value: Any, mask: Any, head_num: int, layout: str, where: str
) -> None:
    """The documented limits, for arrays and for types alike."""
    _require(layout in AXES, where, "input_layout", layout, " or ".join(AXES), "use one of these")
    dtypes = [str(x.dtype) for x in (query, key, value)]
    half = dtypes[0] in ("float16", "bfloat16") and len(set(dtypes)) == 1
    _require(half, where, "dtypes", dtypes, "float16 or bfloat16 for all three", "cast the model")
    for name, x in {"query": query, "key": key, "value": value}.items():
        _require(len(x.shape) == 3, where, name, x.shape, "three axes", f"reshape it to {layout}")

    batch_axis, length_axis = layout.index("B"), layout.index("S")
    B, S, L, width = query.shape[batch_axis], query.shape[length_axis], key.shape[length_axis], query.shape[2]
    fits = key.shape[batch_axis] == B and key.shape[2] == width
    _require(fits, where, "key", key.shape, f"batch {B} and width {width} in {layout}", "check the layout")
    _require(value.shape == key.shape, where, "value", value.shape, f"the key's {key.shape}", "check to_v")
    _require(B <= MAX_BATCH, where, "batch", B, f"at most {MAX_BATCH}", "use a smaller batch")
    _require(max(S, L) <= MAX_LENGTH, where, "length", max(S, L), f"at most {MAX_LENGTH}", "cut the clip")

    heads = 1 <= head_num <= MAX_HEADS and width % head_num == 0
    _require(heads, where, "head_num", head_num, f"at most {MAX_HEADS}, a divisor of {width}", "fold less")
    head_dim = width // head_num
    allowed = head_dim % HEAD_DIM_MULTIPLE == 0 and head_dim <= MAX_HEAD_DIM
    limits = f"a multiple of {HEAD_DIM_MULTIPLE} up to {MAX_HEAD_DIM}"
    _require(allowed, where, "head width", head_dim, limits, "check head_num")
    if mask is not None:
        boolean = str(mask.dtype) in ("bool", "uint8")
        _require(boolean, where, "attn_mask", mask.dtype, "bool or uint8, True = drop", "cast it")
        shapes = [(B, head_num, S, L), (B, 1, S, L), (1, 1, S, L), (S, L)]
        _require(tuple(mask.shape) in shapes, where, "attn_mask", mask.shape, f"one of {shapes}", "broadcast")


def _require(holds: bool, where: str, what: str, got: Any, wanted: Any, remedy: str) -> None:
    if not holds:
        raise InputError(f"{where}: {what}: got {got}, wanted {wanted}; {remedy}")


def _where(node: Node) -> str:
    return f"{node.operator} {re.split('[:$]', node.name.split(':', 1)[-1])[0]}"


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) if x.dtype == np.float16 else x


def _settle(result: Any, types: Sequence[TensorType], node: Node, rounded: bool) -> Any:
    """Check shapes against the compiler's; halves stay in float32, rounded or not."""
    if isinstance(result, tuple):
        return tuple(_settle(x, (kind,), node, rounded) for x, kind in zip(result, types, strict=True))
    if result is None:
        return None
    (kind,) = types
    _require(result.shape == kind.shape, _where(node), "shape", result.shape, kind.shape, "mend the emulator")
    return _wide(result.astype(np.float16)) if rounded and kind.dtype == "float16" else result


def _attend(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    attn_mask: np.ndarray | None,
    head_num: int,
    scale_value: float,
    layout: str,
) -> np.ndarray:
    q_BNSD, k_BNLD, v_BNLD = (
        rearrange(_wide(x), f"{AXES[layout]} -> b n s d", n=head_num) for x in (query, key, value)
    )
    logits_BNSL = np.float32(scale_value) * (q_BNSD @ k_BNLD.swapaxes(2, 3))
    if attn_mask is not None:
        logits_BNSL = np.where(attn_mask.astype(bool), LOWEST, logits_BNSL)
    weights_BNSL = np.exp(logits_BNSL - logits_BNSL.max(axis=-1, keepdims=True))
    y_BNSD = weights_BNSL / weights_BNSL.sum(axis=-1, keepdims=True) @ v_BNLD
    return rearrange(y_BNSD, f"b n s d -> {AXES[layout]}")


def _flash(node: Node, *inputs: Any) -> tuple:
    x = dict(zip(FLASH_INPUTS, inputs, strict=True))
    layout = LAYOUTS[x["input_layout"]]
    y = _attend(x["query"], x["key"], x["value"], x["attn_mask"], x["head_num"], x["scale_value"], layout)
    return None, None, None, y  # softmax_max, softmax_sum and softmax_out serve the gradient only


def _dense(node: Node, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    return x @ weight.T if bias is None else x @ weight.T + bias


def _gelu(node: Node, x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _layer_norm(
    node: Node, x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, begin: int, _: int, eps: float
) -> tuple:
    axes = tuple(range(begin % x.ndim, x.ndim))
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + np.float32(eps)) * gamma + beta, mean, variance


def _convolve(
    node: Node,
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> np.ndarray:
    """aclnnConvolution in two or three dims, as far as we use it."""
    plain = (set(dilation), groups) == ({1}, 1)
    _require(plain, _where(node), "dilation and groups", (dilation, groups), "1", "change the layer")
    padded = np.pad(_wide(x), ((0, 0), (0, 0), *((side, side) for side in padding)))
    windows = _windows(padded, weight.shape[2:], stride)
    thw, ijk = "thw"[: len(stride)], "ijk"[: len(stride)]
    y = np.einsum(f"bc{thw}{ijk},oc{ijk}->bo{thw}", windows, _wide(weight))
    return y if bias is None else y + _wide(bias).reshape(-1, *(1 for _ in stride))


def _windows(x: np.ndarray, size: Sequence[int], stride: Sequence[int]) -> np.ndarray:
    """Every window over the last dims, by its place and then by what lies under it."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (1, 1, *size))
    windows = windows.reshape(*windows.shape[: x.ndim], *size)
    return windows[(slice(None), slice(None), *(slice(None, None, step) for step in stride))]


def _max_pool(
    node: Node,
    x_NCHW: np.ndarray,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    _: Any,
) -> tuple:
    """aclnnMaxPool2dWithMask; the mask serves the gradient only."""
    given = (*padding, *(step - 1 for step in dilation), ceil_mode)
    _require(not any(given), _where(node), "padding, dilation, ceil_mode", given, "none", "change the layer")
    return _windows(x_NCHW, size, stride).max(axis=(-2, -1)), None


def _std(node: Node, x: np.ndarray, axes: Sequence[int], correction: int, keepdim: bool) -> np.ndarray:
    return x.std(tuple(axes), ddof=correction, keepdims=keepdim)


def _split(node: Node, x: np.ndarray, sizes: Sequence[int], axis: int) -> tuple:
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis))


def _strided_slice(
    node: Node, x: np.ndarray, begin: tuple, end: tuple, strides: tuple, *masks: int
) -> np.ndarray:
    """Bit i of a mask speaks of axis i: from its start, to its end, or one element instead of a range."""
    begin_mask, end_mask, ellipsis_mask, new_axis_mask, shrink_mask = masks
    plain = not ellipsis_mask and not new_axis_mask
    _require(plain, _where(node), "masks", masks, "no ellipsis, no new axis", "extend the emulator")
    index: list[int | slice] = []
    for i, (first, last, step) in enumerate(zip(begin, end, strides, strict=True)):
        start, stop = None if begin_mask >> i & 1 else first, None if end_mask >> i & 1 else last
        index.append(first if shrink_mask >> i & 1 else slice(start, stop, step))
    return x[tuple(index)]


# operator -> function(node, *inputs). Halves arrive widened to float32.
OPERATORS: dict[str, Callable] = {
    "Add": lambda node, a, b: a + b,
    "BroadcastTo": lambda node, x, shape: np.broadcast_to(x, shape),
    "Cast": lambda node, x, dtype: x,
    "Conv2DExt": _convolve,
    "Conv3DExt": _convolve,
    "Concat": lambda node, arrays, axis: np.concatenate(arrays, axis),
    "Dense": _dense,
    "Depend": lambda node, x, _: x,
    "ExpandDims": lambda node, x, axis: np.expand_dims(x, axis),
    "FlashAttentionScore": _flash,
    "GeLU": _gelu,
    "LayerNorm": _layer_norm,
    "Load": lambda node, parameter, _: parameter,
    "LogicalNot": lambda node, x: ~x,
    "MakeTuple": lambda node, *values: values,
    "MaxPoolWithMask": _max_pool,
    "Mul": lambda node, a, b: a * b,
    "Reshape": lambda node, x, shape: x.reshape(shape),
    "SiLU": lambda node, x: x / 2 * (1 + np.tanh(x / 2)),  # exp(-x) may overflow
    "SplitWithSize": _split,
    "Stack": lambda node, arrays: np.stack(arrays, node.attributes["axis"]),
    "Std": _std,
    "StridedSlice": _strided_slice,
    "Sub": lambda node, a, b: a - b,
    "Transpose": lambda node, x, axes: x.transpose(axes),
    "TupleGetItem": lambda node, values, index: values[index],
    "Unstack": lambda node, x: tuple(np.moveaxis(x, node.attributes["axis"], 0)),
    "UpdateState": lambda node, *_: None,
}
