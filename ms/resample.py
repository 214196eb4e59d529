"""Down- and upsamplers of the causal video VAEs, in space, in time and in both; called as vae_blocks says.

Shapes: B batch, C channels, T frames, H height, W width.
"""

from mindspore import Tensor, nn

from . import ops
from .layers import Conv2d, Conv3d, batch_to_frames, frames_to_batch
from .vae_blocks import CausalConv3d, conv3x3x3, repeat_first


class Downsample(nn.Cell):
    """Half the height and width, frame by frame; zeros are added right and below."""

    temporal = False

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, 3, 2, 0)

    def construct(self, x_BCTHW: Tensor) -> Tensor:
        return self.conv(ops.pad_right_bottom(x_BCTHW))


class Upsample(nn.Cell):
    """Twice the height and width by nearest neighbour, frame by frame, then a convolution."""

    temporal = False

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, 3, 1, 1)

    def construct(self, x_BCTHW: Tensor) -> Tensor:
        return batch_to_frames(self.conv(ops.nearest_2x(frames_to_batch(x_BCTHW))), x_BCTHW.shape[0])


class SpatialDownsample2x(nn.Cell):
    """Downsample with a 1x3x3 kernel."""

    temporal = False

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = CausalConv3d(in_channels, out_channels, (1, 3, 3), (1, 2, 2), 0)

    def construct(self, x_BCTHW: Tensor) -> Tensor:
        return self.conv(ops.pad_right_bottom(x_BCTHW), (), True, True)[0]


class SpatialUpsample2x(nn.Cell):
    """Upsample with a 1x3x3 kernel."""

    temporal = False

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = CausalConv3d(in_channels, out_channels, (1, 3, 3), (1, 1, 1), 1)

    def construct(self, x_BCTHW: Tensor) -> Tensor:
        x_BCTHW = batch_to_frames(ops.nearest_2x(frames_to_batch(x_BCTHW)), x_BCTHW.shape[0])
        return self.conv(x_BCTHW, (), True, True)[0]


class Spatial2xTime2x3DDownsample(nn.Cell):
    """Half of time, height and width by one causal convolution of stride 2; T frames become (T+1)/2."""

    temporal = True
    num_pasts = 1

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = CausalConv3d(in_channels, out_channels, (3, 3, 3), (2, 2, 2), 0)

    def construct(self, x_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
        return self.conv(ops.pad_right_bottom(x_BCTHW), past, first, last)


class TimeDoubler(nn.Cell):
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

    def construct(self, x_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
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


class Spatial2xTime2x3DUpsample(nn.Cell):
    """Twice the height and width linearly, time as TimeDoubler does, then a causal convolution."""

    temporal = True

    def __init__(self, in_channels: int, out_channels: int, t_interpolation: str):
        super().__init__()
        self.doubler = TimeDoubler(t_interpolation)
        self.conv = conv3x3x3(in_channels, out_channels)
        self.delay = self.doubler.delay
        self.num_pasts: int = self.doubler.num_pasts + self.conv.num_pasts

    def construct(self, x_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
        held = self.doubler.num_pasts
        x_BCTHW, future = self.doubler(x_BCTHW, past[:held], first, last)
        y_BCTHW, kept = self.conv(ops.linear_2x(x_BCTHW), past[held:], first, last)
        return y_BCTHW, future + kept


class TimeDownsample2x(nn.Cell):
    """T frames become (T+1)/2 by averaging three, causally."""

    temporal = True
    num_pasts = 1

    def construct(self, x_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
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


class TimeDownsampleRes2x(nn.Cell):
    """A learned mix of averaging and a convolution of stride 2 in time."""

    temporal = True
    num_pasts = 1

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = Conv3d(in_channels, out_channels, (3, 3, 3), (2, 1, 1), (0, 1, 1))
        self.mix_factor = ops.parameter((1,))

    def construct(self, x_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
        x_BCTHW = repeat_first(x_BCTHW, 2) if first else ops.cat((past[0], x_BCTHW), 2)
        alpha = ops.sigmoid(self.mix_factor)
        y_BCTHW = alpha * average_of_three(x_BCTHW) + (1.0 - alpha) * self.conv(x_BCTHW)
        return y_BCTHW, (() if last else (ops.tail(x_BCTHW, 1),))


class TimeUpsampleRes2x(nn.Cell):
    """TimeUpsample2x and a learned mix of its result with a convolution of it."""

    temporal = True
    num_pasts = 2

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.doubler = TimeDoubler("trilinear")
        self.conv = conv3x3x3(in_channels, out_channels)
        self.mix_factor = ops.parameter((1,))

    def construct(self, x_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
        x_BCTHW, held = self.doubler(x_BCTHW, past[:1], first, last)
        y_BCTHW, kept = self.conv(x_BCTHW, past[1:], first, last)
        alpha = ops.sigmoid(self.mix_factor)
        return alpha * x_BCTHW + (1.0 - alpha) * y_BCTHW, held + kept
