"""I3D (arXiv:1705.07750), the inflated Inception-v1 that FVD measures videos with; inference only.

Batch normalisation is folded into the convolutions when weights are converted. Padding is TensorFlow's SAME:
as much as makes the output ceil(input / stride), the odd one at the end.

Shapes: B batch, C channels, T frames, H height, W width.
"""

from torch import Tensor, nn

from common.judges import I3DConfig

from . import ops
from .kernels import kernel
from .layers import Conv3d, Linear


class Unit(Conv3d):
    """Convolution with SAME padding, then ReLU."""

    def __init__(self, in_channels: int, out_channels: int, size: int = 1, stride: int = 1):
        super().__init__(in_channels, out_channels, (size,) * 3, (stride,) * 3, (0, 0, 0))
        self.size_thw = (size,) * 3

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        padded = pad_same(x_BCTHW, self.size_thw, self.stride_thw)
        return ops.relu(self.conv3d(padded, self.weight, self.bias, self.stride_thw, self.padding_thw))


class MaxPool(nn.Module):
    """The largest value under every window, SAME padding. What is pooled left a ReLU, so zeros never
    win.
    """

    def __init__(self, size_thw: tuple, stride_thw: tuple):
        super().__init__()
        self.size_thw = size_thw
        self.stride_thw = stride_thw
        self.max_pool3d = kernel("max_pool3d")

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        padded = pad_same(x_BCTHW, self.size_thw, self.stride_thw)
        return self.max_pool3d(padded, self.size_thw, self.stride_thw)


class Mixed(nn.Module):
    """Four branches beside one another: 1x1x1, two of 1x1x1 then 3x3x3, and a pool then 1x1x1."""

    def __init__(self, in_channels: int, widths: tuple):
        super().__init__()
        self.branch_0a = Unit(in_channels, widths[0])
        self.branch_1a = Unit(in_channels, widths[1])
        self.branch_1b = Unit(widths[1], widths[2], 3)
        self.branch_2a = Unit(in_channels, widths[3])
        self.branch_2b = Unit(widths[3], widths[4], 3)
        self.pool = MaxPool((3, 3, 3), (1, 1, 1))
        self.branch_3b = Unit(in_channels, widths[5])

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        branch_0 = self.branch_0a(x_BCTHW)
        branch_1 = self.branch_1b(self.branch_1a(x_BCTHW))
        branch_2 = self.branch_2b(self.branch_2a(x_BCTHW))
        branch_3 = self.branch_3b(self.pool(x_BCTHW))
        return ops.cat((branch_0, branch_1, branch_2, branch_3), 1)


class I3D(nn.Module):
    """Logits (B,classes) of clips (B,3,T,224,224) in [-1, 1], before the softmax; T is 9 or more."""

    def __init__(self, config: I3DConfig):
        super().__init__()
        self.config = config
        stem, widths, outputs = config.stem, config.mixed, config.mixed_outputs
        self.conv_1a = Unit(3, stem[0], 7, 2)
        self.pool_2a = MaxPool((1, 3, 3), (1, 2, 2))
        self.conv_2b = Unit(stem[0], stem[1])
        self.conv_2c = Unit(stem[1], stem[2], 3)
        self.pool_3a = MaxPool((1, 3, 3), (1, 2, 2))
        self.mixed_3b = Mixed(stem[2], widths["3b"])
        self.mixed_3c = Mixed(outputs["3b"], widths["3c"])
        self.pool_4a = MaxPool((3, 3, 3), (2, 2, 2))
        self.mixed_4b = Mixed(outputs["3c"], widths["4b"])
        self.mixed_4c = Mixed(outputs["4b"], widths["4c"])
        self.mixed_4d = Mixed(outputs["4c"], widths["4d"])
        self.mixed_4e = Mixed(outputs["4d"], widths["4e"])
        self.mixed_4f = Mixed(outputs["4e"], widths["4f"])
        self.pool_5a = MaxPool((2, 2, 2), (2, 2, 2))
        self.mixed_5b = Mixed(outputs["4f"], widths["5b"])
        self.mixed_5c = Mixed(outputs["5b"], widths["5c"])
        self.logits = Linear(outputs["5c"], config.num_classes)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        h = self.conv_1a(x_BCTHW)  # (B,64,T/2,112,112)
        h = self.pool_2a(h)
        h = self.conv_2c(self.conv_2b(h))  # (B,192,T/2,56,56)
        h = self.pool_3a(h)
        h = self.mixed_3c(self.mixed_3b(h))  # (B,480,T/2,28,28)
        h = self.pool_4a(h)
        h = self.mixed_4d(self.mixed_4c(self.mixed_4b(h)))
        h = self.mixed_4f(self.mixed_4e(h))  # (B,832,T/4,14,14)
        h = self.pool_5a(h)
        h = self.mixed_5c(self.mixed_5b(h))  # (B,1024,T/8,7,7)
        return self.logits(mean_of_windows(h))


def mean_of_windows(h_BCTHW: Tensor) -> Tensor:
    """Average over space, then over every two neighbouring frames, then over these pairs: (B,C).

    The paper classifies every pair and takes the mean of the logits; a linear layer may come last instead.
    """
    mean_BCT = h_BCTHW.mean((3, 4))
    return ((mean_BCT[:, :, :-1] + mean_BCT[:, :, 1:]) * 0.5).mean(2)


def pad_same(x_BCTHW: Tensor, size_thw: tuple, stride_thw: tuple) -> Tensor:
    """Zeros around the clip, TensorFlow's SAME."""
    T, H, W = x_BCTHW.shape[2:]
    pads_t = same_padding(T, size_thw[0], stride_thw[0])
    pads_h = same_padding(H, size_thw[1], stride_thw[1])
    pads_w = same_padding(W, size_thw[2], stride_thw[2])
    if sum(pads_t) + sum(pads_h) + sum(pads_w) == 0:
        return x_BCTHW
    return ops.pad_zeros(x_BCTHW, (*pads_w, *pads_h, *pads_t))


def same_padding(length: int, size: int, stride: int) -> tuple:
    """Zeros before and after, so that ceil(length / stride) windows fit."""
    windows = (length + stride - 1) // stride
    total = max((windows - 1) * stride + size - length, 0)
    return total // 2, total - total // 2
