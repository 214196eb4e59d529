"""Operators with one implementation per device, chosen when a layer is built. Model code never asks what
device it is on.

Every entry of one operator has the same signature; each is tested against the entry "reference". Masks are
boolean with True = keep; an operator that wants them otherwise is told so here.

Shapes: S queries, L keys, B batch, E width = N*D, N heads, D head width; C channels, T frames, H height, W
width.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import InputError

_DEVICE: list[str] = []  # the innermost `on(...)`; empty outside


@contextlib.contextmanager
def on(device: str) -> Iterator[None]:
    """Layers built inside use the kernels of `device`; how the Ascend graph is built and exported on a CPU
    host.
    """
    _DEVICE.append(device)
    try:
        yield
    finally:
        _DEVICE.pop()


def device() -> str:
    """The device whose kernels a layer built now would use: "ascend" or "cpu" here, "cuda" or "cpu" in pt."""
    if _DEVICE:
        return _DEVICE[-1]
    return "cuda" if torch.cuda.is_available() else "cpu"


def kernel(operator: str, on_device: str | None = None) -> Callable:
    """The implementation of `operator` for a device (default: the current one).

    Raises:
        InputError: no entry for that device; the message lists the entries there are.
    """
    entries, where = _KERNELS[operator], on_device or device()
    if where not in entries:
        raise InputError(f"no {operator} kernel for device {where!r}; have {', '.join(entries)}")
    return entries[where]


def _attention_plain(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, num_heads: int, layout: str
) -> Tensor:
    q_BNSD = _split_heads(q, num_heads, layout)
    k_BNLD = _split_heads(k, num_heads, layout)
    v_BNLD = _split_heads(v, num_heads, layout)
    logits_BNSL = _wide(q_BNSD @ k_BNLD.transpose(2, 3)) * q_BNSD.shape[3] ** -0.5
    if keep is not None:
        logits_BNSL = logits_BNSL.masked_fill(~keep, -1e9)
    return _merge_heads(torch.softmax(logits_BNSL, -1).to(v.dtype) @ v_BNLD, q, layout)


def _attention_fused(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, num_heads: int, layout: str
) -> Tensor:
    # Strided views go straight in; without a mask PyTorch picks flash attention, with one its
    # memory-efficient kernel.
    q_BNSD, k_BNLD, v_BNLD = (_split_heads(x, num_heads, layout) for x in (q, k, v))
    return _merge_heads(F.scaled_dot_product_attention(q_BNSD, k_BNLD, v_BNLD, keep), q, layout)


def _split_heads(x: Tensor, num_heads: int, layout: str) -> Tensor:
    """ "s b (n d) -> b n s d" for SBH, "b s (n d) -> b n s d" for BSH; a view."""
    x = x.unflatten(2, (num_heads, -1))
    return x.permute(1, 2, 0, 3) if layout == "SBH" else x.permute(0, 2, 1, 3)


def _merge_heads(y_BNSD: Tensor, q: Tensor, layout: str) -> Tensor:
    order = (2, 0, 1, 3) if layout == "SBH" else (0, 2, 1, 3)
    return y_BNSD.permute(order).reshape(q.shape)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    wide = _wide(x)
    weight, bias = (None if p is None else p.to(wide.dtype) for p in (weight, bias))
    return F.layer_norm(wide, x.shape[-1:], weight, bias, eps).to(x.dtype)


def _group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    wide = _wide(x)
    return F.group_norm(wide, groups, weight.to(wide.dtype), bias.to(wide.dtype), eps).to(x.dtype)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _conv2d(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    return F.conv2d(x_NCHW, weight, bias, stride, padding)


def _conv3d(x_BCTHW: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple, padding: tuple) -> Tensor:
    return F.conv3d(x_BCTHW, weight, bias, stride, padding)


def _max_pool2d(x_NCHW: Tensor, size: tuple, stride: tuple) -> Tensor:
    return F.max_pool2d(x_NCHW, size, stride)


def _max_pool3d(x_BCTHW: Tensor, size: tuple, stride: tuple) -> Tensor:
    return F.max_pool3d(x_BCTHW, size, stride)


def _std(x: Tensor) -> Tensor:
    return torch.std(x, dim=tuple(range(1, x.ndim)), keepdim=True)


def _split(x: Tensor, sizes: tuple) -> tuple:
    return torch.split(x, list(sizes))


def _everywhere(function: Callable) -> dict[str, Callable]:
    return {"cuda": function, "cpu": function, "reference": function}


# attention(q, k, v, keep, num_heads, layout) -> like q
#   layout "SBH": q_SBE, k_LBE, v_LBE; "BSH": q_BSE, k_BLE, v_BLE; keep broadcasts to (B, N, S, L) or is None
# frame_attention: the same for the VAE's one wide head, which is outside the fused operator's limits
# layer_norm(x, weight, bias, eps): over the last dim, statistics in float32
# group_norm(x, groups, weight, bias, eps): likewise, over groups of channels
# gelu(x): the tanh form
# conv2d(x, weight, bias, stride, padding), conv3d(x, weight, bias, stride_thw, padding_thw)
# max_pool2d(x, size_hw, stride_hw), max_pool3d(x, size_thw, stride_thw): of every window that lies inside
# std(x): sample standard deviation (divisor n - 1) over all dims but the first, which is kept; the others
#   become 1
# split(x, sizes): a vector cut into parts of so many elements
_KERNELS = {
    "attention": {"cuda": _attention_fused, "cpu": _attention_fused, "reference": _attention_plain},
    "frame_attention": {"cuda": _attention_fused, "cpu": _attention_fused, "reference": _attention_plain},
    "layer_norm": _everywhere(_layer_norm),
    "group_norm": _everywhere(_group_norm),
    "gelu": _everywhere(_gelu_tanh),
    "conv2d": _everywhere(_conv2d),
    "conv3d": _everywhere(_conv3d),
    "max_pool2d": _everywhere(_max_pool2d),
    "max_pool3d": _everywhere(_max_pool3d),
    "std": _everywhere(_std),
    "split": _everywhere(_split),
}
