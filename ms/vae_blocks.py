"""Building blocks of the causal video VAEs, each able to run a clip whole or as a stream of chunks.

A temporal layer is called `layer(x, past, first, last) -> (y, future)`: `past` holds the tensors its previous
chunk returned as `future` (empty when `first`), `num_pasts` of them; nothing is hidden in the layer, and a
whole clip is the stream of one chunk, first and last. Frame-wise layers are called `layer(x)`.

Shapes: B batch, C channels, T frames, H height, W width.
"""

from collections.abc import Iterable
from typing import Any

from mindspore import Tensor, nn

from . import ops
from .kernels import kernel
from .layers import Conv2d, Conv3d, batch_to_frames, frames_to_batch, normalize


def stream(layers: Iterable[Any], x_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
    """Run layers in order, temporal and frame-wise alike, handing each its share of `past`; also returns the
    future.
    """
    future = ()
    start = 0
    for layer in layers:
        if layer.temporal:
            share = past[start : start + layer.num_pasts]
            x_BCTHW, kept = layer(x_BCTHW, share, first, last)
            start = start + layer.num_pasts
            future = future + kept
        else:
            x_BCTHW = layer(x_BCTHW)
    return x_BCTHW, future


def count_pasts(layers: Iterable[Any]) -> int:
    """How many tensors `stream` carries from one chunk to the next."""
    return sum(layer.num_pasts for layer in layers if layer.temporal)


def repeat_first(x_BCTHW: Tensor, times: int) -> Tensor:
    """Time padding of a causal layer at the start of a clip: the first frame, `times` more."""
    return ops.cat((x_BCTHW[:, :, :1],) * times + (x_BCTHW,), 2)


class CausalConv3d(nn.Cell):
    """Convolution that sees the present and the past; at the start of a clip the first frame is repeated.

    Between chunks it keeps the last kernel - stride frames; chunks after the first must hold a multiple of
    the stride.
    """

    temporal = True

    def __init__(
        self, in_channels: int, out_channels: int, kernel_thw: tuple, stride_thw: tuple, padding_hw: int
    ):
        super().__init__()
        self.conv = Conv3d(in_channels, out_channels, kernel_thw, stride_thw, (0, padding_hw, padding_hw))
        self.kernel_t = kernel_thw[0]
        self.num_kept = kernel_thw[0] - stride_thw[0]
        self.num_pasts = 1 if self.num_kept > 0 else 0

    def construct(self, x_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
        if self.kernel_t > 1:
            if first:
                x_BCTHW = repeat_first(x_BCTHW, self.kernel_t - 1)
            elif self.num_pasts:
                x_BCTHW = ops.cat((past[0], x_BCTHW), 2)
        future = ()
        if self.num_pasts and not last:
            future = (ops.tail(x_BCTHW, self.num_kept),)
        return self.conv(x_BCTHW), future


def conv3x3x3(in_channels: int, out_channels: int) -> CausalConv3d:
    return CausalConv3d(in_channels, out_channels, (3, 3, 3), (1, 1, 1), 1)


class PointConv3d(nn.Cell):
    """1x1x1 convolution named `conv`, as the reference wraps it."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = Conv3d(in_channels, out_channels, (1, 1, 1), (1, 1, 1), (0, 0, 0))

    def construct(self, x_BCTHW: Tensor) -> Tensor:
        return self.conv(x_BCTHW)


class FrameConv2d(Conv2d):
    """3x3 convolution of every frame."""

    temporal = False

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, 1, 1)


class ResnetBlock2D(nn.Cell):
    """norm, silu, conv, twice, plus the input; frame by frame."""

    temporal = False

    def __init__(self, in_channels: int, out_channels: int, norm_type: str):
        super().__init__()
        self.norm1 = normalize(in_channels, norm_type)
        self.conv1 = Conv2d(in_channels, out_channels, 3, 1, 1)
        self.norm2 = normalize(out_channels, norm_type)
        self.conv2 = Conv2d(out_channels, out_channels, 3, 1, 1)
        self.widens = in_channels != out_channels
        if self.widens:
            self.nin_shortcut = Conv2d(in_channels, out_channels, 1)

    def construct(self, x_BCTHW: Tensor) -> Tensor:
        x_NCHW = frames_to_batch(x_BCTHW)
        h_NCHW = self.conv1(ops.silu(self.norm1(x_NCHW)))
        h_NCHW = self.conv2(ops.silu(self.norm2(h_NCHW)))
        if self.widens:
            x_NCHW = self.nin_shortcut(x_NCHW)
        return batch_to_frames(x_NCHW + h_NCHW, x_BCTHW.shape[0])


class ResnetBlock3D(nn.Cell):
    """norm, silu, causal conv, twice, plus the input."""

    temporal = True
    num_pasts = 2

    def __init__(self, in_channels: int, out_channels: int, norm_type: str):
        super().__init__()
        self.norm1 = normalize(in_channels, norm_type)
        self.conv1 = conv3x3x3(in_channels, out_channels)
        self.norm2 = normalize(out_channels, norm_type)
        self.conv2 = conv3x3x3(out_channels, out_channels)
        self.widens = in_channels != out_channels
        if self.widens:
            self.nin_shortcut = PointConv3d(in_channels, out_channels)

    def construct(self, x_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
        h_BCTHW, future1 = self.conv1(ops.silu(self.norm1(x_BCTHW)), past[:1], first, last)
        h_BCTHW, future2 = self.conv2(ops.silu(self.norm2(h_BCTHW)), past[1:], first, last)
        if self.widens:
            x_BCTHW = self.nin_shortcut(x_BCTHW)
        return x_BCTHW + h_BCTHW, future1 + future2


class AttnBlock3DFix(nn.Cell):
    """Self-attention among the pixels of a frame, one head of width C."""

    temporal = False

    def __init__(self, channels: int, norm_type: str):
        super().__init__()
        self.norm = normalize(channels, norm_type)
        self.q = PointConv3d(channels, channels)
        self.k = PointConv3d(channels, channels)
        self.v = PointConv3d(channels, channels)
        self.proj_out = PointConv3d(channels, channels)
        self.attend = kernel("frame_attention")

    def construct(self, x_BCTHW: Tensor) -> Tensor:
        B, C, T, H, W = x_BCTHW.shape
        h_BCTHW = self.norm(x_BCTHW)
        q_FSC = frame_tokens(self.q(h_BCTHW))
        k_FSC = frame_tokens(self.k(h_BCTHW))
        v_FSC = frame_tokens(self.v(h_BCTHW))
        y_FSC = self.attend(q_FSC, k_FSC, v_FSC, None, 1, "BSH")
        return x_BCTHW + self.proj_out(y_FSC.reshape(B, T, H, W, C).permute(0, 4, 1, 2, 3))


def frame_tokens(x_BCTHW: Tensor) -> Tensor:
    """ "b c t h w -> (b t) (h w) c"."""
    B, C, T, H, W = x_BCTHW.shape
    return x_BCTHW.permute(0, 2, 3, 4, 1).reshape(B * T, H * W, C)


class AttnBlock3D(AttnBlock3DFix):
    """The attention of earlier releases, kept as it was trained: keys, values and result are read as (b t) c
    (h w) although they lie as b (c t) (h w), which mixes channels with frames. Only the queries are
    transposed properly.
    """

    def construct(self, x_BCTHW: Tensor) -> Tensor:
        B, C, T, H, W = x_BCTHW.shape
        h_BCTHW = self.norm(x_BCTHW)
        q_FSC = self.q(h_BCTHW).reshape(B * T, C, H * W).permute(0, 2, 1)
        k_FSC = self.k(h_BCTHW).reshape(B * T, C, H * W).permute(0, 2, 1)
        v_FSC = self.v(h_BCTHW).reshape(B * T, C, H * W).permute(0, 2, 1)
        y_FSC = self.attend(q_FSC, k_FSC, v_FSC, None, 1, "BSH")
        return x_BCTHW + self.proj_out(y_FSC.permute(0, 2, 1).reshape(B, C, T, H, W))


ATTENTIONS = {"AttnBlock3DFix": AttnBlock3DFix, "AttnBlock3D": AttnBlock3D}
