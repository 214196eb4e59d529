"""3D rotary position tables (RoFormer, arXiv:2104.09864, one third of a head for each of t, h, w), in NumPy.

Shapes: S tokens, D head width, P = D/6 rotation pairs of one axis.
"""

import numpy as np

from .errors import InputError

BASE = 10000.0


def axis_angles(length: int, pairs: int, scale: float = 1.0) -> np.ndarray:
    """Angles (length, P) of one axis: position / scale * BASE ** (-2p / (2P)), in float32 as the reference
    has them.
    """
    exponent = np.arange(0, 2 * pairs, 2, dtype=np.float32) / np.float32(2 * pairs)
    inverse = (1.0 / np.power(np.float32(BASE), exponent)).astype(np.float32)
    positions = np.arange(length, dtype=np.float32) / np.float32(scale)
    return np.outer(positions, inverse)


def rope_table(grid_thw, head_dim: int, scale_thw=(1.0, 1.0, 1.0), round_to: str = "float32"):
    """cos and sin (S, 3, P) float32 for the tokens of a (t, h, w) grid in raster order.

    Args:
        scale_thw: interpolation scales; positions are divided by them.
        round_to: "float16" or "bfloat16" rounds the angle and its cos and sin as half-precision tokens make
        the
            reference do; released weights were trained so.
    """
    pairs = head_dim // 6
    grids = np.meshgrid(*(np.arange(n) for n in grid_thw), indexing="ij")
    tables = [axis_angles(n, pairs, s) for n, s in zip(grid_thw, scale_thw, strict=True)]
    angles = np.stack([table[grid.reshape(-1)] for table, grid in zip(tables, grids, strict=True)], axis=1)
    angles = round_float(angles, round_to)
    return round_float(np.cos(angles), round_to), round_float(np.sin(angles), round_to)


def round_float(x: np.ndarray, dtype: str) -> np.ndarray:
    """Round float32 values to the nearest value of `dtype` (ties to even) and return them as float32."""
    x = np.asarray(x, dtype=np.float32)
    if dtype == "float32":
        return x
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float32)
    if dtype != "bfloat16":
        raise InputError(f"round_float: dtype {dtype!r} is not float32, float16 or bfloat16")
    bits = x.view(np.uint32)
    bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def timestep_features(
    timesteps: np.ndarray, num_features: int = 256, max_period: float = 10000.0
) -> np.ndarray:
    """Sinusoidal features (B, num_features) float32 of timesteps (B,): cosines first, then sines
    (arXiv:2212.09748).

    Everything is rounded to float32 where the reference has float32, but the exponential is exact first: at t
    = 999 an error of one unit in the last place of a frequency is 6e-5 in the feature, and float32 `exp` is
    rarely better.
    """
    half = num_features // 2
    exponents = np.float32(-np.log(max_period)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = np.asarray(timesteps, np.float32)[:, None] * frequencies
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
