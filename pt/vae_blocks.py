"""Building blocks of the causal video VAEs, each able to run a clip whole or as a stream of chunks.

A temporal layer is called `layer(x, past, first, last) -> (y, future)`: `past` holds the tensors its previous
chunk returned as `future` (empty when `first`), `num_pasts` of them; nothing is hidden in the layer, and a
whole clip is the stream of one chunk, first and last. Frame-wise layers are called `layer(x)`.

Shapes: B batch, C channels, T frames, H height, W width.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

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


class CausalConv3d(nn.Module):
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

    def forward(self, x_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
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


class PointConv3d(nn.Module):
    """1x1x1 convolution named `conv`, as the reference wraps it."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = Conv3d(in_channels, out_channels, (1, 1, 1), (1, 1, 1), (0, 0, 0))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.conv(x_BCTHW)


class FrameConv2d(Conv2d):
    """3x3 convolution of every frame."""

    temporal = False

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, 1, 1)


class ResnetBlock2D(nn.Module):
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

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        x_NCHW = frames_to_batch(x_BCTHW)
        h_NCHW = self.conv1(ops.silu(self.norm1(x_NCHW)))
        h_NCHW = self.conv2(ops.silu(self.norm2(h_NCHW)))
        if self.widens:
            x_NCHW = self.nin_shortcut(x_NCHW)
        return batch_to_frames(x_NCHW + h_NCHW, x_BCTHW.shape[0])


class ResnetBlock3D(nn.Module):
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

    def forward(self, x_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
        h_BCTHW, future1 = self.conv1(ops.silu(self.norm1(x_BCTHW)), past[:1], first, last)
        h_BCTHW, future2 = self.conv2(ops.silu(self.norm2(h_BCTHW)), past[1:], first, last)
        if self.widens:
            x_BCTHW = self.nin_shortcut(x_BCTHW)
        return x_BCTHW + h_BCTHW, future1 + future2


class AttnBlock3DFix(nn.Module):
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

    def forward(self, x_BCTHW: Tensor) -> Tensor:
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

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        B, C, T, H, W = x_BCTHW.shape
        h_BCTHW = self.norm(x_BCTHW)
        q_FSC = self.q(h_BCTHW).reshape(B * T, C, H * W).permute(0, 2, 1)
        k_FSC = self.k(h_BCTHW).reshape(B * T, C, H * W).permute(0, 2, 1)
        v_FSC = self.v(h_BCTHW).reshape(B * T, C, H * W).permute(0, 2, 1)
        y_FSC = self.attend(q_FSC, k_FSC, v_FSC, None, 1, "BSH")
        return x_BCTHW + self.proj_out(y_FSC.permute(0, 2, 1).reshape(B, C, T, H, W))


class Downsample(nn.Module):
    """Half the height and width, frame by frame; zeros are added right and below."""

    temporal = False

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, 3, 2, 0)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.conv(ops.pad_right_bottom(x_BCTHW))


class Upsample(nn.Module):
    """Twice the height and width by nearest neighbour, frame by frame, then a convolution."""

    temporal = False

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, 3, 1, 1)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return batch_to_frames(self.conv(ops.nearest_2x(frames_to_batch(x_BCTHW))), x_BCTHW.shape[0])


class SpatialDownsample2x(nn.Module):
    """Downsample with a 1x3x3 kernel."""

    temporal = False

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = CausalConv3d(in_channels, out_channels, (1, 3, 3), (1, 2, 2), 0)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.conv(ops.pad_right_bottom(x_BCTHW), (), True, True)[0]


class SpatialUpsample2x(nn.Module):
    """Upsample with a 1x3x3 kernel."""

    temporal = False

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = CausalConv3d(in_channels, out_channels, (1, 3, 3), (1, 1, 1), 1)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        x_BCTHW = batch_to_frames(ops.nearest_2x(frames_to_batch(x_BCTHW)), x_BCTHW.shape[0])
        return self.conv(x_BCTHW, (), True, True)[0]


class Spatial2xTime2x3DDownsample(nn.Module):
    """Half of time, height and width by one causal convolution of stride 2; T frames become (T+1)/2."""

    temporal = True
    num_pasts = 1

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = CausalConv3d(in_channels, out_channels, (3, 3, 3), (2, 2, 2), 0)

    def forward(self, x_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
        return self.conv(ops.pad_right_bottom(x_BCTHW), past, first, last)


class TimeDoubler(nn.Module):
    """T frames become 2T - 1: the first stands alone, the others are doubled, by repetition or linearly.

    A linear frame needs its successor, so all but the last chunk come one frame short; `delay` says how many
    frames a parallel path has to hold back to stay in step. The first of several chunks must hold at least
    two frames.
    """

    temporal = True

    def __init__(self, interpolation: str):
        super().__init__()
        self.linear = interpolation == "trilinear"
        self.delay = 1 if self.linear else 0
        self.num_pasts = self.delay

    def forward(self, x_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
        if first and x_BCTHW.shape[2] == 1:
            return x_BCTHW, ()
        rest = x_BCTHW[:, :, 1:] if first else x_BCTHW
        if self.linear:
            future = () if last else (ops.tail(rest, 1),)
            rest = double_linear(rest, past, last)
        else:
            future = ()
            rest = interleave(rest, rest)
        return (ops.cat((x_BCTHW[:, :, :1], rest), 2) if first else rest), future


def double_linear(x_BCTHW: Tensor, past: tuple, last: bool) -> Tensor:
    """Linear interpolation of frames to twice their number, half-pixel centres, ends repeated, on a stream of
    frames.

    Between neighbours a and b lie 3/4 a + 1/4 b and 1/4 a + 3/4 b; the clip's first and last frame stand at
    the ends.
    """
    joined = ops.cat((past[0], x_BCTHW), 2) if len(past) else x_BCTHW
    parts = () if len(past) else (x_BCTHW[:, :, :1],)
    if joined.shape[2] > 1:
        a, b = joined[:, :, :-1], joined[:, :, 1:]
        parts = (*parts, interleave(a * 0.75 + b * 0.25, a * 0.25 + b * 0.75))
    if last:
        parts = (*parts, x_BCTHW[:, :, -1:])
    return ops.cat(parts, 2)


def interleave(a_BCTHW: Tensor, b_BCTHW: Tensor) -> Tensor:
    """Frames a0 b0 a1 b1 ...: "b c t 2 h w -> b c (t 2) h w"."""
    B, C, T, H, W = a_BCTHW.shape
    return ops.stack((a_BCTHW, b_BCTHW), 3).reshape(B, C, 2 * T, H, W)


class Spatial2xTime2x3DUpsample(nn.Module):
    """Twice the height and width linearly, time as TimeDoubler does, then a causal convolution."""

    temporal = True

    def __init__(self, in_channels: int, out_channels: int, t_interpolation: str):
        super().__init__()
        self.doubler = TimeDoubler(t_interpolation)
        self.conv = conv3x3x3(in_channels, out_channels)
        self.delay = self.doubler.delay
        self.num_pasts: int = self.doubler.num_pasts + self.conv.num_pasts

    def forward(self, x_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
        held = self.doubler.num_pasts
        x_BCTHW, future = self.doubler(x_BCTHW, past[:held], first, last)
        y_BCTHW, kept = self.conv(ops.linear_2x(x_BCTHW), past[held:], first, last)
        return y_BCTHW, future + kept


class TimeDownsample2x(nn.Module):
    """T frames become (T+1)/2 by averaging three, causally."""

    temporal = True
    num_pasts = 1

    def forward(self, x_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
        x_BCTHW = repeat_first(x_BCTHW, 2) if first else ops.cat((past[0], x_BCTHW), 2)
        return average_of_three(x_BCTHW), (() if last else (ops.tail(x_BCTHW, 1),))


def average_of_three(x_BCTHW: Tensor) -> Tensor:
    """Means of frames 0..2, 2..4, 4..6, ... of an odd number of frames."""
    B, C, T, H, W = x_BCTHW.shape
    pairs = x_BCTHW[:, :, : T - 1].reshape(
        B, C, T // 2, 2, H, W
    )  # indexing by 2 has no gradient on MindSpore's CPU
    a, b = pairs[:, :, :, 0], pairs[:, :, :, 1]
    c = ops.cat((a[:, :, 1:], x_BCTHW[:, :, T - 1 :]), 2) if T > 3 else x_BCTHW[:, :, T - 1 :]
    return (a + b + c) / 3.0


class TimeUpsample2x(TimeDoubler):
    """TimeDoubler, linear: the time upsampler of the first causal VAE."""

    def __init__(self):
        super().__init__("trilinear")


class TimeDownsampleRes2x(nn.Module):
    """A learned mix of averaging and a convolution of stride 2 in time."""

    temporal = True
    num_pasts = 1

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = Conv3d(in_channels, out_channels, (3, 3, 3), (2, 1, 1), (0, 1, 1))
        self.mix_factor = ops.parameter((1,))

    def forward(self, x_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
        x_BCTHW = repeat_first(x_BCTHW, 2) if first else ops.cat((past[0], x_BCTHW), 2)
        alpha = ops.sigmoid(self.mix_factor)
        y_BCTHW = alpha * average_of_three(x_BCTHW) + (1.0 - alpha) * self.conv(x_BCTHW)
        return y_BCTHW, (() if last else (ops.tail(x_BCTHW, 1),))


class TimeUpsampleRes2x(nn.Module):
    """TimeUpsample2x and a learned mix of its result with a convolution of it."""

    temporal = True
    num_pasts = 2

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.doubler = TimeDoubler("trilinear")
        self.conv = conv3x3x3(in_channels, out_channels)
        self.mix_factor = ops.parameter((1,))

    def forward(self, x_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
        x_BCTHW, held = self.doubler(x_BCTHW, past[:1], first, last)
        y_BCTHW, kept = self.conv(x_BCTHW, past[1:], first, last)
        alpha = ops.sigmoid(self.mix_factor)
        return alpha * x_BCTHW + (1.0 - alpha) * y_BCTHW, held + kept


ATTENTIONS = {"AttnBlock3DFix": AttnBlock3DFix, "AttnBlock3D": AttnBlock3D}
