"""The layers a checkpoint knows: weights under the reference's names, arithmetic from the kernels table.

Weights are cast to the dtype of what comes in, so float32 master weights compute in half precision.

Shapes: B batch, C channels, T frames, H height, W width.
"""

from mindspore import Tensor, nn

from . import ops
from .kernels import kernel


class Linear(nn.Cell):
    """x @ weight.T + bias over the last dim; weight (out, in)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.weight = ops.parameter((out_features, in_features))
        self.bias = ops.parameter((out_features,)) if bias else None

    def construct(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return ops.linear(x, ops.cast_like(self.weight, x), None)
        return ops.linear(x, ops.cast_like(self.weight, x), ops.cast_like(self.bias, x))


class Conv2d(nn.Cell):
    """2D convolution of (N,C,H,W), or of every frame of (B,C,T,H,W)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0
    ):
        super().__init__()
        self.weight = ops.parameter((out_channels, in_channels, kernel_size, kernel_size))
        self.bias = ops.parameter((out_channels,))
        self.stride = stride
        self.padding = padding
        self.conv2d = kernel("conv2d")

    def construct(self, x: Tensor) -> Tensor:
        weight, bias = ops.cast_like(self.weight, x), ops.cast_like(self.bias, x)
        if len(x.shape) == 4:
            return self.conv2d(x, weight, bias, self.stride, self.padding)
        y_NCHW = self.conv2d(frames_to_batch(x), weight, bias, self.stride, self.padding)
        return batch_to_frames(y_NCHW, x.shape[0])


class Conv3d(nn.Cell):
    """3D convolution of (B,C,T,H,W); strides and paddings are (t, h, w)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_thw: tuple,
        stride_thw: tuple,
        padding_thw: tuple,
        bias: bool = True,
    ):
        super().__init__()
        self.weight = ops.parameter((out_channels, in_channels, *kernel_thw))
        self.bias = ops.parameter((out_channels,)) if bias else None
        self.stride_thw = stride_thw
        self.padding_thw = padding_thw
        self.conv3d = kernel("conv3d")

    def construct(self, x_BCTHW: Tensor) -> Tensor:
        bias = None if self.bias is None else ops.cast_like(self.bias, x_BCTHW)
        weight = ops.cast_like(self.weight, x_BCTHW)
        return self.conv3d(x_BCTHW, weight, bias, self.stride_thw, self.padding_thw)


class LayerNorm(nn.Cell):
    """Normalise the last dim; statistics in float32."""

    def __init__(self, width: int, eps: float = 1e-6, affine: bool = True):
        super().__init__()
        self.weight = ops.parameter((width,)) if affine else None
        self.bias = ops.parameter((width,)) if affine else None
        self.eps = eps
        self.layer_norm = kernel("layer_norm")

    def construct(self, x: Tensor) -> Tensor:
        return self.layer_norm(x, self.weight, self.bias, self.eps)


class ChannelNorm(nn.Cell):
    """LayerNorm over the channels of every pixel, "b c ... -> b ... c" and back."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = LayerNorm(channels)

    def construct(self, x: Tensor) -> Tensor:
        if len(x.shape) == 4:
            return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.norm(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)


class GroupNorm(nn.Cell):
    """32 groups of channels; the statistics span all frames that are given at once."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = ops.parameter((channels,))
        self.bias = ops.parameter((channels,))
        self.group_norm = kernel("group_norm")

    def construct(self, x: Tensor) -> Tensor:
        flat_BCS = x.reshape(x.shape[0], x.shape[1], -1)
        return self.group_norm(flat_BCS, 32, self.weight, self.bias, 1e-6).reshape(x.shape)


def normalize(channels: int, norm_type: str) -> nn.Cell:
    """The VAE's norm by the config's name."""
    return ChannelNorm(channels) if norm_type == "layernorm" else GroupNorm(channels)


def frames_to_batch(x_BCTHW: Tensor) -> Tensor:
    """ "b c t h w -> (b t) c h w"."""
    B, C, T, H, W = x_BCTHW.shape
    return x_BCTHW.permute(0, 2, 1, 3, 4).reshape(B * T, C, H, W)


def batch_to_frames(x_NCHW: Tensor, batch: int) -> Tensor:
    """ "(b t) c h w -> b c t h w"."""
    N, C, H, W = x_NCHW.shape
    return x_NCHW.reshape(batch, N // batch, C, H, W).permute(0, 2, 1, 3, 4)
