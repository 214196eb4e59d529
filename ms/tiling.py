"""OD-VAE on clips too large to code whole: overlapping windows of time, overlapping tiles of space.

Shapes: B batch, C channels, T frames, H height, W width; Z latent channels.
"""

from collections.abc import Callable

import numpy as np
from mindspore import Tensor

from common.tiling import TilePlan, TilingConfig, decode_plan, encode_plan, run_plan

from . import ops, runtime
from .causal_vae import CausalVAE
from .vae import check_clip


def encode_tiled(vae: CausalVAE, x_BCTHW: Tensor, tiling: TilingConfig) -> Tensor:
    """Moments (B,2Z,T',H/8,W/8) of pixels in [-1, 1], from moments of tiles.

    Every tile is coded as a clip of its own: GroupNorm, attention and convolutions see nothing beyond it. One
    tile gives what `vae.encode` gives, several approximate it.

    Raises:
        InputError: frames that are not a multiple of the time stride plus one, height or width that are not
            multiples of the space stride, or other than three channels.
    """
    check_clip(vae.config, x_BCTHW.shape)
    stride_t, stride_h, stride_w = vae.config.stride_thw
    T, H, W = x_BCTHW.shape[2:]
    latent_thw = ((T - 1) // stride_t + 1, H // stride_h, W // stride_w)
    return run_tiles(vae.encode, x_BCTHW, encode_plan(latent_thw, vae.config.stride_thw, tiling))


def decode_tiled(vae: CausalVAE, z_BCTHW: Tensor, tiling: TilingConfig) -> Tensor:
    """Pixels (B,3,4T-3,8H,8W) of latents, from pixels of tiles; an approximation as in encode_tiled.

    The shape is that of `vae.decode` for every tiling. The reference's is larger with its default sizes: it
    does not crop there, so the overlaps stand twice in its frames.
    """
    return run_tiles(vae.decode, z_BCTHW, decode_plan(z_BCTHW.shape[2:], vae.config.stride_thw, tiling))


def run_tiles(coder: Callable, x_BCTHW: Tensor, plan: TilePlan) -> Tensor:
    """Code tiles on the device, join them on the host. The result has the dtype of x_BCTHW and no gradient.

    Nothing here slices a tensor: MindSpore's eager operators on CPUs misread float16 results of a graph.
    """

    device = runtime.device_of(x_BCTHW)

    def code(tile_BCTHW: np.ndarray) -> np.ndarray:
        return runtime.to_numpy(coder(ops.cast_like(runtime.to_tensor(tile_BCTHW, device), x_BCTHW)))

    y_BCTHW = run_plan(code, runtime.to_numpy(x_BCTHW), plan)
    return ops.cast_like(runtime.to_tensor(y_BCTHW, device), x_BCTHW)
