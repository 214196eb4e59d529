"""The framework's functions under one spelling (torch's), so that the twins read alike. Nothing here has a
choice to make; what depends on the device is in kernels.py.
"""

from collections.abc import Iterable

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor
from mindspore import dtype as mstype
from mindspore import ops as _ops
from mindspore.common.initializer import initializer as _initializer

_reshape = _ops.Reshape()


def parameter(shape: tuple[int, ...]) -> Parameter:
    """A trainable float32 parameter of zeros; values come from a checkpoint or from
    common.noise.initial_weights.
    """
    return Parameter(_initializer("zeros", shape, mstype.float32))


def constant(array: np.ndarray) -> Parameter:
    """A frozen parameter: it has a name in the checkpoint and no gradient."""
    return Parameter(Tensor(array), requires_grad=False)


def cat(tensors, dim: int) -> Tensor:
    """Join tensors along an existing dim."""
    return _ops.cat(tensors, dim)


def stack(tensors, dim: int) -> Tensor:
    """Join tensors along a new dim."""
    return _ops.stack(tensors, dim)


def chunk(x: Tensor, chunks: int, dim: int):
    """Cut into `chunks` equal parts along dim."""
    return _ops.chunk(x, chunks, dim)


def unstack(x: Tensor, dim: int):
    """The slices along dim, without it; the inverse of stack."""
    return _ops.unstack(x, dim)


def zeros(shape, like: Tensor) -> Tensor:
    """Zeros of the dtype (and device) of `like`."""
    return _ops.zeros(shape, like.dtype)


def zeros_like(x: Tensor) -> Tensor:
    """Zeros of the shape and dtype of `x`."""
    return _ops.zeros_like(x)


def tail(x_BCTHW: Tensor, frames: int) -> Tensor:
    """The last frames, as memory of their own, so that keeping them does not keep the clip."""
    return x_BCTHW[:, :, -frames:]


def pad_right_bottom(x: Tensor) -> Tensor:
    """One row and one column of zeros at the end of the last two dims."""
    # not ops.pad: on a CPU its gradient never returns from the tenth call; not Pad: CANN's has no bfloat16
    x = _ops.concat((x, _ops.zeros((*x.shape[:-1], 1), x.dtype)), -1)
    return _ops.concat((x, _ops.zeros((*x.shape[:-2], 1, x.shape[-1]), x.dtype)), -2)


def pad_zeros(x_BCTHW: Tensor, pads: tuple) -> Tensor:
    """Zeros around a clip: (left, right, top, bottom, before, after)."""
    return _ops.pad(x_BCTHW, pads)


def pad_to(x_SBE: Tensor, length: int) -> Tensor:
    """Append zero tokens up to `length`."""
    missing = length - x_SBE.shape[0]
    if missing == 0:
        return x_SBE
    return _ops.cat((x_SBE, _ops.zeros((missing, x_SBE.shape[1], x_SBE.shape[2]), x_SBE.dtype)), 0)


def nearest_2x(x_NCHW: Tensor) -> Tensor:
    """Every pixel twice in height and width."""
    N, C, H, W = x_NCHW.shape
    return _ops.broadcast_to(x_NCHW.reshape(N * C, H, 1, W, 1), (N * C, H, 2, W, 2)).reshape(
        N, C, 2 * H, 2 * W
    )


def linear_2x(x_BCTHW: Tensor) -> Tensor:
    """Linear interpolation to twice the height and width (half-pixel centres)."""
    T, H, W = x_BCTHW.shape[2:]
    return _ops.interpolate(x_BCTHW, size=(T, 2 * H, 2 * W), mode="trilinear")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias over the last dim."""
    return _ops.dense(x, weight, bias)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product of the last two dims, the others broadcast."""
    return _ops.matmul(a, b)


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last dim."""
    return _ops.softmax(x, -1)


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return _ops.silu(x)


def relu(x: Tensor) -> Tensor:
    """The positive part of every element."""
    return _ops.relu(x)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return _ops.sigmoid(x)


def exp(x: Tensor) -> Tensor:
    """e ** x."""
    return _ops.exp(x)


def sqrt(x: Tensor) -> Tensor:
    """Square root."""
    return _ops.sqrt(x)


def clamp(x: Tensor, low: float, high: float) -> Tensor:
    """Limit every element to [low, high]."""
    return _ops.clamp(x, low, high)


def to_float32(x: Tensor) -> Tensor:
    """Widen half precision to float32; the float64 of a pt oracle stays."""
    return x.astype(mstype.float32)


def to_dtype(x: Tensor, dtype) -> Tensor:
    """Cast to one of runtime.DTYPES."""
    return _ops.cast(x, dtype)


def cast_like(x: Tensor, like: Tensor) -> Tensor:
    """Cast to the dtype of `like`."""
    return x.astype(like.dtype)


def leaky_relu(x: Tensor) -> Tensor:
    """The positive part, and a fifth of the negative one."""
    return _ops.maximum(x, 0.2 * x)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e ** x), without overflow."""
    return _ops.relu(x) + _ops.log1p(_ops.exp(-_ops.abs(x)))


def abs(x: Tensor) -> Tensor:
    """The size of every element."""
    return _ops.abs(x)


def isfinite(x: Tensor) -> Tensor:
    """Whether a value is neither infinite nor NaN."""
    return _ops.isfinite(x)


def where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """x where the condition holds, else y."""
    return _ops.where(condition, x, y)


def detach(x: Tensor) -> Tensor:
    """The same values; no gradient passes."""
    return _ops.stop_gradient(x)


def assign(parameter: Tensor, value: Tensor) -> None:
    """Overwrite a parameter in place; inside a compiled step, too."""
    _ops.assign(parameter, value.astype(parameter.dtype))  # set_data does not reach a compiled graph


def join(tensors) -> Tensor:
    """Any tensors as one long vector."""
    parts = ()
    for x in tensors:
        parts = (*parts, _reshape(x, (-1,)))  # a primitive compiles faster than the method
    return _ops.cat(parts, 0)


def assign_parts(params, parts: tuple) -> None:
    """Overwrite parameters with as many vectors."""
    for i in range(len(params)):
        _ops.assign(params[i], _reshape(parts[i], params[i].shape))


def parameter_list(params: Iterable[Parameter]) -> tuple:
    """Parameters a layer uses but does not own."""
    return ParameterTuple(list(params))


def state_like(tensors: Iterable[Tensor], kind: str, copy: bool = False) -> tuple:
    """A frozen parameter for each tensor, named "kind.0" and so on, of zeros or a copy of its values."""
    states = []
    for i, tensor in enumerate(tensors):
        value = Tensor(tensor.asnumpy()) if copy else _initializer("zeros", tensor.shape, tensor.dtype)
        states.append(Parameter(value, name=f"{kind}.{i}", requires_grad=False))
    return ParameterTuple(states)
