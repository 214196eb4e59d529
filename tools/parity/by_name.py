"""Weights that a recording does not store, because a rule draws every one of them from its name.

`weights_by_name: {rule, salt}` in a case's record. A parameter's normal numbers come from NumPy's Philox,
whose seed is the first eight bytes (little-endian) of SHA-256 of `salt`, `weights.` and the parameter's name.
"""

import hashlib
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.noise import Drawn

CONSTANTS = "wavelet_transform"  # filters with this in their name are no weights: they keep their values


def transformer_weight(name: str, normal: np.ndarray) -> np.ndarray:
    """Small enough for a residual stream of 32 blocks."""
    return normal * np.float32(0.02 if normal.ndim > 1 else 0.1)


def vae_weight(name: str, normal: np.ndarray) -> np.ndarray:
    """Filters by their number of inputs, norms near one, biases near zero."""
    if normal.ndim > 1:
        return normal / np.float32(np.sqrt(np.prod(normal.shape[1:])))
    return normal * np.float32(0.05) + np.float32(name.endswith(".weight"))


RULES: dict[str, Callable[[str, np.ndarray], np.ndarray]] = {
    "transformer": transformer_weight,
    "vae": vae_weight,
}


@dataclass(frozen=True)
class ByName:
    """A rule, to be given a model's names and shapes."""

    rule: str
    salt: str

    def weights(
        self, shapes: Mapping[str, tuple[int, ...]], constants: Mapping[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        """A model's weights, each drawn when asked for; its constants stay as they are."""
        drawn = Drawn({name: shape for name, shape in shapes.items() if name not in constants}, self.draw)
        parts: list[Any] = [drawn, constants]
        return ChainMap(*parts)

    def draw(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """One parameter."""
        digest = hashlib.sha256(f"{self.salt}weights.{name}".encode()).digest()
        stream = np.random.Generator(np.random.Philox(int.from_bytes(digest[:8], "little")))
        return RULES[self.rule](name, stream.standard_normal(shape, dtype=np.float32))
