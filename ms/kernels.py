"""Operators with one implementation per device, chosen when a layer is built. Model code never asks what
device it is on.

Every entry of one operator has the same signature; each is tested against the entry "reference". Masks are
boolean with True = keep; an operator that wants them otherwise is told so here.

Shapes: S queries, L keys, B batch, E width = N*D, N heads, D head width; C channels, T frames, H height, W
width.
"""

import contextlib
from collections.abc import Callable, Iterator

import mindspore
from mindspore import Tensor, mint
from mindspore import dtype as mstype
from mindspore import ops as _ops

from common.ascend import HEAD_DIM_MULTIPLE, MAX_HEADS
from common.errors import InputError

_slice = _ops.Slice()
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
    """The kind of device whose kernels a layer built now uses: "ascend" or "cpu" here, "cuda" or "cpu" in pt,
    where it is the CPU outside `on(...)`.
    """
    return _DEVICE[-1] if _DEVICE else mindspore.get_context("device_target").lower()


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
    logits_BNSL = _ops.matmul(q_BNSD, k_BNLD.swapaxes(2, 3)).astype(mstype.float32) * q_BNSD.shape[3] ** -0.5
    if keep is not None:
        logits_BNSL = logits_BNSL + (keep.astype(mstype.float32) - 1.0) * 1e9
    weights_BNSL = _ops.softmax(logits_BNSL, -1).astype(v.dtype)
    y_BNSD = _ops.matmul(weights_BNSL, v_BNLD)
    order = (2, 0, 1, 3) if layout == "SBH" else (0, 2, 1, 3)
    return y_BNSD.permute(*order).reshape(q.shape)


def _split_heads(x: Tensor, num_heads: int, layout: str) -> Tensor:
    """ "s b (n d) -> b n s d" for SBH, "b s (n d) -> b n s d" for BSH."""
    a, b, E = x.shape
    x = x.reshape(a, b, num_heads, E // num_heads)
    return x.permute(1, 2, 0, 3) if layout == "SBH" else x.permute(0, 2, 1, 3)


def _attention_flash(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, num_heads: int, layout: str
) -> Tensor:
    # a graph compiles built-in exceptions only; common.ascend refuses the same before anything loads
    head_dim = q.shape[2] // num_heads
    if q.dtype not in (mstype.float16, mstype.bfloat16):
        raise ValueError(
            f"attention: FlashAttentionScore takes float16 or bfloat16, got {q.dtype}; set dtype to either"
        )
    if num_heads > MAX_HEADS:
        raise ValueError(
            f"attention: FlashAttentionScore takes at most {MAX_HEADS} heads, got {num_heads} "
            "(a group block folds the batch into the heads); use a smaller batch"
        )
    if head_dim % HEAD_DIM_MULTIPLE:
        raise ValueError(
            f"attention: FlashAttentionScore wants a head width divisible by {HEAD_DIM_MULTIPLE}, "
            f"got {head_dim}; choose attention_head_dim 48 or 96"
        )
    drop = None
    if keep is not None:
        if keep.shape[1] != 1:
            raise ValueError(
                f"attention: got masks for {keep.shape[1]} heads in a group block, on Ascend all share one; "
                "group batches by size so that all samples share their padding"
            )
        # FlashAttentionScore drops where True, and wants the query axis spelled out.
        S, L = (q.shape[0], k.shape[0]) if layout == "SBH" else (q.shape[1], k.shape[1])
        drop = _ops.broadcast_to(_ops.logical_not(keep), (keep.shape[0], 1, S, L))
    return _ops.flash_attention_score(
        q, k, v, num_heads, attn_mask=drop, scalar_value=head_dim**-0.5, input_layout=layout
    )


def _layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    width = x.shape[-1]
    gamma = _ops.ones((width,), mstype.float32) if weight is None else weight.astype(mstype.float32)
    beta = _ops.zeros((width,), mstype.float32) if bias is None else bias.astype(mstype.float32)
    return _ops.LayerNorm(-1, -1, eps)(x.astype(mstype.float32), gamma, beta)[0].astype(x.dtype)


def _group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    y = _ops.group_norm(
        x.astype(mstype.float32), groups, weight.astype(mstype.float32), bias.astype(mstype.float32), eps
    )
    return y.astype(x.dtype)


def _gelu_tanh(x: Tensor) -> Tensor:
    return _ops.gelu(x, approximate="tanh")


def _conv2d(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    return _ops.conv2d(x_NCHW, weight, bias, stride=stride, pad_mode="pad", padding=(padding, padding))


def _conv2d_aclnn(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """The operator Conv2DExt. The older Conv2D is compiled for every shape, and CANN's tables give the
    gradient of its weight no bfloat16. Conv2DExt has no CPU kernel.
    """
    return mint.nn.functional.conv2d(x_NCHW, weight, bias, (stride, stride), (padding, padding))


def _conv3d(x_BCTHW: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple, padding: tuple) -> Tensor:
    return _ops.conv3d(x_BCTHW, weight, bias, stride=stride, pad_mode="pad", padding=padding)


def _conv3d_aclnn(
    x_BCTHW: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple, padding: tuple
) -> Tensor:
    """The operator Conv3DExt: the kernel that CANN brings for the older Conv3D has no float32. Conv3DExt has
    no CPU kernel.
    """
    return mint.nn.functional.conv3d(x_BCTHW, weight, bias, stride, padding)


def _max_pool2d(x_NCHW: Tensor, size: tuple, stride: tuple) -> Tensor:
    return _ops.MaxPool(size, stride, "valid")(x_NCHW)


def _max_pool2d_aclnn(x_NCHW: Tensor, size: tuple, stride: tuple) -> Tensor:
    """The operator MaxPoolWithMask: CANN brings no kernel for the gradient of the older MaxPool."""
    return mint.nn.functional.max_pool2d(x_NCHW, size, stride)


def _max_pool3d(x_BCTHW: Tensor, size: tuple, stride: tuple) -> Tensor:
    return _ops.MaxPool3D(size, stride, "valid")(x_BCTHW)


def _max_pool3d_aclnn(x_BCTHW: Tensor, size: tuple, stride: tuple) -> Tensor:
    """Over space, then over time, each a MaxPoolWithMask: "b c t h w -> (b t) c h w", then
    "b c t h w -> b c t (h w)".
    """
    B, C, T, H, W = x_BCTHW.shape
    x_NCHW = x_BCTHW.permute(0, 2, 1, 3, 4).reshape(B * T, C, H, W)
    x_NCHW = _max_pool2d_aclnn(x_NCHW, size[1:], stride[1:])
    H, W = x_NCHW.shape[2:]
    x_BCTS = x_NCHW.reshape(B, T, C, H * W).permute(0, 2, 1, 3)
    if size[0] > 1 or stride[0] > 1:
        x_BCTS = _max_pool2d_aclnn(x_BCTS, (size[0], 1), (stride[0], 1))
    return x_BCTS.reshape(B, C, x_BCTS.shape[2], H, W)


def _std(x: Tensor) -> Tensor:
    return _ops.std(x, tuple(range(1, x.ndim)), 1, True)


def _std_aclnn(x: Tensor) -> Tensor:
    """The operator Std: CANN brings no kernel for ReduceStd, which `ops.std` becomes."""
    return mint.std(x, tuple(range(1, x.ndim)), correction=1, keepdim=True)


def _split(x: Tensor, sizes: tuple) -> tuple:
    parts, start = (), 0
    for size in sizes:
        parts = (*parts, _slice(x, (start,), (size,)))
        start = start + size
    return parts


def _split_aclnn(x: Tensor, sizes: tuple) -> tuple:
    """One SplitWithSize. Slice is compiled for every offset, hence for every parameter of a model."""
    return mint.split(x, sizes, 0)


def _everywhere(function: Callable) -> dict[str, Callable]:
    return {"ascend": function, "cpu": function, "reference": function}


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
    "attention": {"ascend": _attention_flash, "cpu": _attention_plain, "reference": _attention_plain},
    "frame_attention": _everywhere(_attention_plain),
    "layer_norm": _everywhere(_layer_norm),
    "group_norm": _everywhere(_group_norm),
    "gelu": _everywhere(_gelu_tanh),
    "conv2d": {"ascend": _conv2d_aclnn, "cpu": _conv2d, "reference": _conv2d},
    "conv3d": {"ascend": _conv3d_aclnn, "cpu": _conv3d, "reference": _conv3d},
    "max_pool2d": {"ascend": _max_pool2d_aclnn, "cpu": _max_pool2d, "reference": _max_pool2d},
    "max_pool3d": {"ascend": _max_pool3d_aclnn, "cpu": _max_pool3d, "reference": _max_pool3d},
    "std": {"ascend": _std_aclnn, "cpu": _std, "reference": _std},
    "split": {"ascend": _split_aclnn, "cpu": _split, "reference": _split},
}
