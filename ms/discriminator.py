"""The 3D patch discriminator that trains the video VAE (pix2pix's, arXiv:1611.07004, with a third axis).

Shapes: B batch, C channels, T frames, H height, W width.
"""

from typing import Any

import numpy as np
from mindspore import Tensor, nn

from common.judges import DiscriminatorConfig

from . import ops
from .layers import Conv3d
from .parallel import Mean

EPS = 1e-5
MOMENTUM = 0.1


class BatchNorm(nn.Cell):
    """Normalise each channel over batch, time and space, of all ranks together."""

    normalizes = True

    def __init__(self, channels: int, mean_over_ranks: Mean):
        super().__init__()
        self.weight = ops.parameter((channels,))
        self.bias = ops.parameter((channels,))
        self.running_mean = ops.constant(np.zeros(channels, np.float32))
        self.running_var = ops.constant(np.ones(channels, np.float32))
        self.mean_over_ranks = mean_over_ranks

    def construct(self, x_BCTHW: Tensor, train: bool) -> tuple:
        """The result, and mean and variance of this batch (the running ones outside training)."""
        x = ops.to_float32(x_BCTHW)
        if train:
            mean_C = self.mean_over_ranks(x.mean((0, 2, 3, 4)))
            centred = x - per_channel(mean_C)
            var_C = self.mean_over_ranks((centred * centred).mean((0, 2, 3, 4)))
        else:
            mean_C, var_C = self.running_mean, self.running_var
            centred = x - per_channel(mean_C)
        scale_C = self.weight / ops.sqrt(var_C + EPS)
        y = centred * per_channel(scale_C) + per_channel(self.bias)
        return ops.cast_like(y, x_BCTHW), mean_C, var_C


class LeakyReLU(nn.Cell):
    normalizes = False

    def construct(self, x: Tensor) -> Tensor:
        return ops.leaky_relu(x)


class PatchConv3d(Conv3d):
    """3x3x3 convolution."""

    normalizes = False

    def __init__(self, in_channels: int, out_channels: int, stride_thw: tuple, bias: bool):
        super().__init__(in_channels, out_channels, (3, 3, 3), stride_thw, (1, 1, 1), bias)


class Discriminator(nn.Cell):
    """Clips (B,3,T,H,W) in [-1, 1] -> one logit per patch (B,1,T',H',W'): large where a patch looks real.

    Its norms need at least two elements per channel, else a variance does not exist.
    """

    def __init__(self, config: DiscriminatorConfig, mean_over_ranks: Mean):
        super().__init__()
        widths = [config.ndf * min(2**i, 8) for i in range(config.n_layers + 1)]
        layers = [PatchConv3d(config.input_nc, widths[0], (2, 2, 2), True), LeakyReLU()]
        for i in range(1, config.n_layers + 1):
            strides = {1: (2, 2, 2), config.n_layers: (1, 1, 1)}
            layers += [
                PatchConv3d(widths[i - 1], widths[i], strides.get(i, (1, 2, 2)), False),
                BatchNorm(widths[i], mean_over_ranks),
                LeakyReLU(),
            ]
        self.main: Any = nn.CellList([*layers, PatchConv3d(widths[-1], 1, (1, 1, 1), True)])
        self.norms = tuple(i for i, layer in enumerate(layers) if layer.normalizes)
        self.ranks = mean_over_ranks.size

    def construct(self, x_BCTHW: Tensor, train: bool) -> tuple:
        """Logits, and the statistics of every norm in order: mean, unbiased variance, mean, ..."""
        statistics = ()
        for layer in self.main:
            if layer.normalizes:
                count = self.ranks * (
                    x_BCTHW.shape[0] * x_BCTHW.shape[2] * x_BCTHW.shape[3] * x_BCTHW.shape[4]
                )
                x_BCTHW, mean_C, var_C = layer(x_BCTHW, train)
                statistics = (*statistics, mean_C, var_C * (count / (count - 1)))
            else:
                x_BCTHW = layer(x_BCTHW)
        return x_BCTHW, statistics

    def track(self, statistics: tuple, finite: Tensor) -> None:
        """Move the running statistics towards those of a batch."""
        for i, place in enumerate(self.norms):
            norm: Any = self.main[place]
            move(norm.running_mean, statistics[2 * i], finite)
            move(norm.running_var, statistics[2 * i + 1], finite)


def move(running_C: Tensor, batch_C: Tensor, finite: Tensor) -> None:
    """A step of the moving average of batch statistics; none if they are not finite."""
    ops.assign(running_C, ops.where(finite, running_C + MOMENTUM * (batch_C - running_C), running_C))


def per_channel(x_C: Tensor) -> Tensor:
    """Shape (C) as (1,C,1,1,1)."""
    return x_C.reshape(1, -1, 1, 1, 1)
