"""Random numbers that both trees and every rank agree on: Philox (Salmon et al., SC'11), keyed instead of
advanced.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping

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


class Drawn(Mapping[str, np.ndarray]):
    """Weights by name, each drawn when asked for: filling a model from them makes no second copy of it."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], draw: Callable[[str, tuple[int, ...]], np.ndarray]
    ) -> None:
        self.shapes = dict(shapes)
        self._draw = draw

    def __getitem__(self, name: str) -> np.ndarray:
        return self._draw(name, self.shapes[name])

    def __contains__(self, name: object) -> bool:
        return name in self.shapes  # without drawing it

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def initial_weights(shapes: dict[str, tuple[int, ...]], seed: int, gain: float = 1.0) -> Drawn:
    """Random weights drawn by name: matrices and filters scaled by gain/sqrt(fan_in), norms near one, biases
    near zero.

    Every value differs from every other, so a transposed or misnamed weight shows.
    """

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = normal(shape, seed, index_of(name))
        if len(shape) >= 2 and not name.endswith("scale_shift_table"):
            return values * np.float32(gain / np.sqrt(np.prod(shape[1:])))
        if "norm" in name and name.endswith("weight"):
            return 1 + np.float32(0.1) * values
        return np.float32(0.1) * values

    return Drawn(shapes, draw)


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
