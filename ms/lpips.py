"""LPIPS v0.1 with VGG16 (arXiv:1801.03924): how different two pictures look, as a loss and as a measure.

Names are those of the published weights, which count the layers of VGG16 through.

Shapes: N pictures (or B clips times T frames), C channels, H height, W width. Pixels are in [-1, 1].
"""

import numpy as np
from mindspore import Tensor, nn

from common.judges import VGG16_CONVS, LPIPSConfig

from . import ops
from .kernels import kernel
from .layers import Conv2d, frames_to_batch

IMAGENET_SHIFT = (-0.030, -0.088, -0.188)  # moves [-1, 1] to where VGG16 was trained
IMAGENET_SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-10  # keeps the direction of a vector of zeros finite


class ScalingLayer(nn.Cell):
    """Normalise RGB as ImageNet classifiers want it; the two constants have a name in the checkpoint."""

    def __init__(self):
        super().__init__()
        self.shift = ops.constant(np.array(IMAGENET_SHIFT, np.float32).reshape(1, 3, 1, 1))
        self.scale = ops.constant(np.array(IMAGENET_SCALE, np.float32).reshape(1, 3, 1, 1))

    def construct(self, x_NCHW: Tensor) -> Tensor:
        return (x_NCHW - self.shift) / self.scale


class Slice(nn.Cell):
    """The convolutions of VGG16 between two pools, each with its ReLU; all slices but the first begin with a
    pool.
    """

    def __init__(self, in_channels: int, out_channels: int, places: tuple, pools: bool):
        super().__init__()
        self.names = tuple(str(place) for place in places)
        self.pools = pools
        self.max_pool2d = kernel("max_pool2d")
        for name in self.names:
            setattr(self, name, Conv2d(in_channels, out_channels, 3, 1, 1))
            in_channels = out_channels

    def construct(self, x_NCHW: Tensor) -> Tensor:
        if self.pools:
            x_NCHW = self.max_pool2d(x_NCHW, (2, 2), (2, 2))  # an odd last row or column is left out
        for name in self.names:
            x_NCHW = ops.relu(getattr(self, name)(x_NCHW))
        return x_NCHW


class VGG16(nn.Cell):
    """The activations after relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3."""

    def __init__(self, widths: tuple):
        super().__init__()
        inputs = (3, *widths)
        self.slice1 = Slice(inputs[0], widths[0], VGG16_CONVS[0], False)
        self.slice2 = Slice(inputs[1], widths[1], VGG16_CONVS[1], True)
        self.slice3 = Slice(inputs[2], widths[2], VGG16_CONVS[2], True)
        self.slice4 = Slice(inputs[3], widths[3], VGG16_CONVS[3], True)
        self.slice5 = Slice(inputs[4], widths[4], VGG16_CONVS[4], True)

    def construct(self, x_NCHW: Tensor) -> tuple:
        h1 = self.slice1(x_NCHW)
        h2 = self.slice2(h1)
        h3 = self.slice3(h2)
        h4 = self.slice4(h3)
        return h1, h2, h3, h4, self.slice5(h4)


class Head(nn.Cell):
    """A weight for every channel, not negative: a 1x1 convolution without bias."""

    def __init__(self, channels: int):
        super().__init__()
        # the first place is the dropout of the weights' own training
        self.model = nn.CellList([nn.Identity(), ChannelWeights(channels)])

    def construct(self, x_NCHW: Tensor) -> Tensor:
        return self.model[1](x_NCHW)


class ChannelWeights(nn.Cell):
    """1x1 convolution to one channel, no bias."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = ops.parameter((1, channels, 1, 1))
        self.conv2d = kernel("conv2d")

    def construct(self, x_NCHW: Tensor) -> Tensor:
        return self.conv2d(x_NCHW, ops.cast_like(self.weight, x_NCHW), None, 1, 0)


class LPIPS(nn.Cell):
    """The distance of every picture, or of every frame of a clip, (N,1,1,1); 0 for equal ones.

    Takes (N,3,H,W) or (B,3,T,H,W), "b c t h w -> (b t) c h w", of at least 16x16 pixels. Differentiable in
    both arguments; the weights are meant to stay as they are.
    """

    def __init__(self, config: LPIPSConfig):
        super().__init__()
        self.config = config
        self.scaling_layer = ScalingLayer()
        self.net = VGG16(config.widths)
        self.lin0 = Head(config.widths[0])
        self.lin1 = Head(config.widths[1])
        self.lin2 = Head(config.widths[2])
        self.lin3 = Head(config.widths[3])
        self.lin4 = Head(config.widths[4])

    def construct(self, a: Tensor, b: Tensor) -> Tensor:
        a1, a2, a3, a4, a5 = self.features(a)
        b1, b2, b3, b4, b5 = self.features(b)
        return (
            mean_of_frame(self.lin0(squared_difference(a1, b1)))
            + mean_of_frame(self.lin1(squared_difference(a2, b2)))
            + mean_of_frame(self.lin2(squared_difference(a3, b3)))
            + mean_of_frame(self.lin3(squared_difference(a4, b4)))
            + mean_of_frame(self.lin4(squared_difference(a5, b5)))
        )

    def features(self, x: Tensor) -> tuple:
        """What VGG16 sees in pictures, or in the frames of clips."""
        x_NCHW = frames_to_batch(x) if len(x.shape) == 5 else x
        return self.net(self.scaling_layer(x_NCHW))


def squared_difference(a_NCHW: Tensor, b_NCHW: Tensor) -> Tensor:
    """Of the directions of two vectors of channels, at every place."""
    difference = direction(ops.to_float32(a_NCHW)) - direction(ops.to_float32(b_NCHW))
    return difference * difference


def direction(x_NCHW: Tensor) -> Tensor:
    """Vectors of channels at length one.

    The square of EPSILON under the root is lost in rounding, except where all channels are 0: there it keeps
    the gradient finite.
    """
    length = ops.sqrt((x_NCHW * x_NCHW).sum(1, True) + EPSILON * EPSILON)
    return x_NCHW / (length + EPSILON)


def mean_of_frame(x_NCHW: Tensor) -> Tensor:
    """(N,1,1,1) of (N,1,H,W)."""
    return x_NCHW.mean((2, 3), True)
