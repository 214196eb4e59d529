"""Random numbers that both trees and every rank agree on: Philox (Salmon et al., SC'11), keyed instead of
advanced.
"""

import hashlib

import numpy as np


def generator(seed: int, index: int) -> np.random.Generator:
    """An independent stream for each (seed, index); drawing from one never moves another."""
    return np.random.Generator(np.random.Philox(key=[seed, index]))


def normal(shape: tuple[int, ...], seed: int, index: int) -> np.ndarray:
    """Standard normal noise, float32, a pure function of (shape, seed, index)."""
    return generator(seed, index).standard_normal(shape, dtype=np.float32)


def index_of(name: str) -> int:
    """A stable 63-bit index for a name, so that a parameter's draw does not depend on the order of
    construction.
    """
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


def initial_weights(
    shapes: dict[str, tuple[int, ...]], seed: int, gain: float = 1.0
) -> dict[str, np.ndarray]:
    """Random weights drawn by name: matrices and filters scaled by gain/sqrt(fan_in), norms near one, biases
    near zero.

    Every value differs from every other, so a transposed or misnamed weight shows.
    """
    weights = {}
    for name, shape in shapes.items():
        draw = normal(shape, seed, index_of(name))
        if len(shape) >= 2 and not name.endswith("scale_shift_table"):
            weights[name] = draw * np.float32(gain / np.sqrt(np.prod(shape[1:])))
        elif "norm" in name and name.endswith("weight"):
            weights[name] = 1 + np.float32(0.1) * draw
        else:
            weights[name] = np.float32(0.1) * draw
    return weights
