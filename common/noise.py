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


def fresh_weights(
    shapes: dict[str, tuple[int, ...]], seed: int, std: float | None = None
) -> dict[str, np.ndarray]:
    """Weights to start training from, drawn by name.

    Matrices and filters are uniform within 1/sqrt(fan_in), and so are their biases; with `std` they are
    normal and the biases zero. Norms start as the identity.
    """
    weights = {}
    for name, shape in shapes.items():
        owner = shapes.get(f"{name.removesuffix('bias')}weight", shape)
        stream = generator(seed, index_of(name))
        if len(owner) < 2:
            weights[name] = np.full(shape, not name.endswith("bias"), np.float32)
        elif std is None:
            bound = 1 / np.sqrt(np.prod(owner[1:]))
            weights[name] = stream.uniform(-bound, bound, shape).astype(np.float32)
        elif len(shape) < 2:
            weights[name] = np.zeros(shape, np.float32)
        else:
            weights[name] = np.float32(std) * stream.standard_normal(shape, dtype=np.float32)
    return weights
