"""Haar wavelets of WF-VAE (arXiv:2411.17459, section 3.1): one matrix from 2x2x2 pixels to 8 bands.

A checkpoint carries the filters under names of their own, so they are frozen parameters here and the matrix
is built from what was loaded. Bands are band-major: channel = band * C + c, in the order LLL, LLH, LHL, LHH,
HLL, ... (t, h, w).

Shapes: B batch, C channels, T frames, H height, W width.
"""

import numpy as np
from mindspore import Tensor, nn

from common.haar import haar_filters

from . import ops
from .layers import batch_to_frames, frames_to_batch


class Filter(nn.Cell):
    """A frozen filter named `conv.weight`."""

    def __init__(self, weight: np.ndarray):
        super().__init__()
        self.conv = FilterWeight(weight)


class FilterWeight(nn.Cell):
    def __init__(self, weight: np.ndarray):
        super().__init__()
        self.weight = ops.constant(weight)


def bank(like: Tensor, *filters: Tensor) -> Tensor:
    """Filters as the rows of a matrix (bands, pixels of a cell), in the dtype of `like`."""
    return ops.cast_like(ops.stack([f.reshape(-1) for f in filters], 0), like)


class HaarWaveletTransform3D(nn.Cell):
    """(B,C,T,H,W) -> (B,8C,T',H/2,W/2) with T' = (T+1)/2: the first frame of a clip stands alone."""

    def __init__(self):
        super().__init__()
        h, g, hh, gh, h_v, g_v, hh_v, gh_v = haar_filters(3)
        self.h_conv = Filter(h)
        self.g_conv = Filter(g)
        self.hh_conv = Filter(hh)
        self.gh_conv = Filter(gh)
        self.h_v_conv = Filter(h_v)
        self.g_v_conv = Filter(g_v)
        self.hh_v_conv = Filter(hh_v)
        self.gh_v_conv = Filter(gh_v)

    def construct(self, x_BCTHW: Tensor, first: bool) -> Tensor:
        if first:
            x_BCTHW = ops.cat((x_BCTHW[:, :, :1], x_BCTHW), 2)
        B, C, T, H, W = x_BCTHW.shape
        cells = x_BCTHW.reshape(B, C * T // 2, 2, H // 2, 2, W // 2, 2).permute(0, 2, 4, 6, 1, 3, 5)
        matrix = bank(
            cells,
            self.h_conv.conv.weight,
            self.g_conv.conv.weight,
            self.hh_conv.conv.weight,
            self.gh_conv.conv.weight,
            self.h_v_conv.conv.weight,
            self.g_v_conv.conv.weight,
            self.hh_v_conv.conv.weight,
            self.gh_v_conv.conv.weight,
        )
        bands = ops.matmul(matrix, cells.reshape(B, 8, C * T * H * W // 8))
        return bands.reshape(B, 8 * C, T // 2, H // 2, W // 2)


class InverseHaarWaveletTransform3D(nn.Cell):
    """(B,8C,T,H,W) -> (B,C,T',2H,2W) with T' = 2T - 1 at the start of a clip, else 2T."""

    def __init__(self):
        super().__init__()
        h, g, hh, gh, h_v, g_v, hh_v, gh_v = haar_filters(3)
        self.h = ops.constant(h)
        self.g = ops.constant(g)
        self.hh = ops.constant(hh)
        self.gh = ops.constant(gh)
        self.h_v = ops.constant(h_v)
        self.g_v = ops.constant(g_v)
        self.hh_v = ops.constant(hh_v)
        self.gh_v = ops.constant(gh_v)

    def construct(self, bands_BCTHW: Tensor, first: bool) -> Tensor:
        B, C, T, H, W = bands_BCTHW.shape
        C = C // 8
        filters = (self.h, self.g, self.hh, self.gh, self.h_v, self.g_v, self.hh_v, self.gh_v)
        matrix = bank(bands_BCTHW, *filters).permute(1, 0)
        cells = ops.matmul(matrix, bands_BCTHW.reshape(B, 8, C * T * H * W))
        x = (
            cells.reshape(B, 2, 2, 2, C * T, H, W)
            .permute(0, 4, 1, 5, 2, 6, 3)
            .reshape(B, C, 2 * T, 2 * H, 2 * W)
        )
        return x[:, :, 1:] if first else x


class HaarWaveletTransform2D(nn.Cell):
    """Every frame (B,C,T,H,W) -> (B,4C,T,H/2,W/2)."""

    def __init__(self):
        super().__init__()
        aa, da, ad, dd = haar_filters(2)
        self.aa = ops.constant(aa)
        self.ad = ops.constant(ad)
        self.da = ops.constant(da)
        self.dd = ops.constant(dd)

    def construct(self, x_BCTHW: Tensor, first: bool) -> Tensor:
        x_NCHW = frames_to_batch(x_BCTHW)
        N, C, H, W = x_NCHW.shape
        cells = x_NCHW.reshape(N, C, H // 2, 2, W // 2, 2).permute(0, 3, 5, 1, 2, 4)
        bands = ops.matmul(
            bank(cells, self.aa, self.ad, self.da, self.dd), cells.reshape(N, 4, C * H * W // 4)
        )
        return batch_to_frames(bands.reshape(N, 4 * C, H // 2, W // 2), x_BCTHW.shape[0])


class InverseHaarWaveletTransform2D(nn.Cell):
    """Every frame (B,4C,T,H,W) -> (B,C,T,2H,2W)."""

    def __init__(self):
        super().__init__()
        aa, da, ad, dd = haar_filters(2)
        self.aa = ops.constant(aa)
        self.ad = ops.constant(ad)
        self.da = ops.constant(da)
        self.dd = ops.constant(dd)

    def construct(self, bands_BCTHW: Tensor, first: bool) -> Tensor:
        bands_NCHW = frames_to_batch(bands_BCTHW)
        N, C, H, W = bands_NCHW.shape
        C = C // 4
        matrix = bank(bands_NCHW, self.aa, self.ad, self.da, self.dd).permute(1, 0)
        cells = ops.matmul(matrix, bands_NCHW.reshape(N, 4, C * H * W))
        x = cells.reshape(N, 2, 2, C, H, W).permute(0, 3, 4, 1, 5, 2).reshape(N, C, 2 * H, 2 * W)
        return batch_to_frames(x, bands_BCTHW.shape[0])


WAVELETS = {
    cls.__name__: cls
    for cls in (
        HaarWaveletTransform2D,
        HaarWaveletTransform3D,
        InverseHaarWaveletTransform2D,
        InverseHaarWaveletTransform3D,
    )
}
