"""The framework's functions under one spelling (torch's), so that the twins read alike. Nothing here has a
choice to make; what depends on the device is in kernels.py.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.nn import functional as F


def parameter(shape: tuple[int, ...]) -> Parameter:
    """A trainable float32 parameter of zeros; values come from a checkpoint or from
    common.noise.initial_weights.
    """
    return Parameter(torch.zeros(shape))


def constant(array: np.ndarray) -> Parameter:
    """A frozen parameter: it has a name in the checkpoint and no gradient."""
    return Parameter(torch.from_numpy(array.copy()), requires_grad=False)


def cat(tensors, dim: int) -> Tensor:
    """Join tensors along an existing dim."""
    return torch.cat(tensors, dim)


def stack(tensors, dim: int) -> Tensor:
    """Join tensors along a new dim."""
    return torch.stack(tensors, dim)


def chunk(x: Tensor, chunks: int, dim: int):
    """Cut into `chunks` equal parts along dim."""
    return torch.chunk(x, chunks, dim)


def unstack(x: Tensor, dim: int):
    """The slices along dim, without it; the inverse of stack."""
    return torch.unbind(x, dim)


def zeros(shape, like: Tensor) -> Tensor:
    """Zeros of the dtype (and device) of `like`."""
    return torch.zeros(shape, dtype=like.dtype, device=like.device)


def zeros_like(x: Tensor) -> Tensor:
    """Zeros of the shape and dtype of `x`."""
    return torch.zeros_like(x)


def tail(x_BCTHW: Tensor, frames: int) -> Tensor:
    """The last frames, as memory of their own, so that keeping them does not keep the clip."""
    return x_BCTHW[:, :, -frames:].clone()


def pad_right_bottom(x: Tensor) -> Tensor:
    """One row and one column of zeros at the end of the last two dims."""
    return F.pad(x, (0, 1, 0, 1))


def pad_zeros(x_BCTHW: Tensor, pads: tuple) -> Tensor:
    """Zeros around a clip: (left, right, top, bottom, before, after)."""
    return F.pad(x_BCTHW, pads)


def pad_to(x_SBE: Tensor, length: int) -> Tensor:
    """Append zero tokens up to `length`."""
    return F.pad(x_SBE, (0, 0, 0, 0, 0, length - x_SBE.shape[0]))


def nearest_2x(x_NCHW: Tensor) -> Tensor:
    """Every pixel twice in height and width."""
    return F.interpolate(x_NCHW, scale_factor=2.0, mode="nearest")


def linear_2x(x_BCTHW: Tensor) -> Tensor:
    """Linear interpolation to twice the height and width (half-pixel centres)."""
    return F.interpolate(x_BCTHW, scale_factor=(1.0, 2.0, 2.0), mode="trilinear")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias over the last dim."""
    return F.linear(x, weight, bias)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product of the last two dims, the others broadcast."""
    return torch.matmul(a, b)


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last dim."""
    return torch.softmax(x, -1)


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return F.silu(x)


def relu(x: Tensor) -> Tensor:
    """The positive part of every element."""
    return torch.relu(x)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return torch.sigmoid(x)


def exp(x: Tensor) -> Tensor:
    """e ** x."""
    return torch.exp(x)


def sqrt(x: Tensor) -> Tensor:
    """Square root."""
    return torch.sqrt(x)


def clamp(x: Tensor, low: float, high: float) -> Tensor:
    """Limit every element to [low, high]."""
    return torch.clamp(x, low, high)


def to_float32(x: Tensor) -> Tensor:
    """Widen half precision to float32; the float64 of a pt oracle stays."""
    return x if x.dtype == torch.float64 else x.float()


def to_dtype(x: Tensor, dtype) -> Tensor:
    """Cast to one of runtime.DTYPES."""
    return x.to(dtype)


def cast_like(x: Tensor, like: Tensor) -> Tensor:
    """Cast to the dtype of `like`."""
    return x.to(like.dtype)


def leaky_relu(x: Tensor) -> Tensor:
    """The positive part, and a fifth of the negative one."""
    return F.leaky_relu(x, 0.2)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e ** x), without overflow."""
    return F.softplus(x)


def abs(x: Tensor) -> Tensor:
    """The size of every element."""
    return torch.abs(x)


def isfinite(x: Tensor) -> Tensor:
    """Whether a value is neither infinite nor NaN."""
    return torch.isfinite(x)


def where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """x where the condition holds, else y."""
    return torch.where(condition, x, y)


def detach(x: Tensor) -> Tensor:
    """The same values; no gradient passes."""
    return x.detach()


@torch.no_grad()
def assign(parameter: Tensor, value: Tensor) -> None:
    """Overwrite a parameter in place; inside a compiled step, too."""
    parameter.copy_(value)


def join(tensors) -> Tensor:
    """Any tensors as one long vector."""
    return torch.cat([x.reshape(-1) for x in tensors])


@torch.no_grad()
def assign_parts(params, parts: tuple) -> None:
    """Overwrite parameters with as many vectors."""
    for param, part in zip(params, parts, strict=True):
        param.copy_(part.reshape(param.shape))


def parameter_list(params: Iterable[Parameter]) -> tuple:
    """Parameters a layer uses but does not own."""
    return tuple(param.to_local().detach() if isinstance(param, DTensor) else param for param in params)


def state_like(tensors: Iterable[Tensor], kind: str, copy: bool = False) -> tuple:
    """A frozen parameter for each tensor, named "kind.0" and so on, of zeros or a copy of its values."""
    start = torch.clone if copy else torch.zeros_like
    return tuple(Parameter(start(tensor.detach()), requires_grad=False) for tensor in tensors)
