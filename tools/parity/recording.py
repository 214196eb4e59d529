"""A recording: named arrays in the order in which they were computed, in one safetensors file.

Names are `stage/kind.name`, kind one of: weights (a fingerprint of a parameter), in, act (an activation, by
module path), out, grad, param (after training).
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.checkpoint import read_metadata, read_safetensors
from common.errors import InputError
from common.files import write_safetensors
from common.noise import index_of, normal


class Recording(NamedTuple):
    """Arrays by name, in order, and what is known about the run."""

    tensors: dict[str, np.ndarray]
    facts: dict[str, Any]


class Recorder:
    """Collects one stage's arrays; a name that comes again (a module called twice) is numbered."""

    def __init__(self, stage: str, seed: int) -> None:
        self.stage = stage
        self.seed = seed
        self.tensors: dict[str, np.ndarray] = {}

    def put(self, name: str, array: np.ndarray) -> None:
        key, again = f"{self.stage}/{name}", 1
        while key in self.tensors:
            again += 1
            key = f"{self.stage}/{name}#{again}"
        self.tensors[key] = np.asarray(array)

    def draw(self, name: str, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
        """An input drawn by its name, the same on every machine; it is recorded too."""
        array = normal(shape, self.seed, index_of(f"{self.stage}/{name}")) * np.float32(scale)
        self.put(f"in.{name}", array)
        return array


def fingerprint(array: np.ndarray) -> np.ndarray:
    """Four float64 numbers that change with any value, and with the order of the values (a transposed
    matrix).
    """
    flat = np.asarray(array, np.float64).ravel()
    ramp = np.cos(np.arange(flat.size) * 0.7310585)
    return np.array([flat.size, flat.sum(), (flat * flat).sum(), (flat * ramp).sum()])


def write(path: str | Path, recording: Recording) -> None:
    """Store a recording; safetensors sorts names, so their order travels in the metadata."""
    metadata = {"order": json.dumps(list(recording.tensors)), "facts": json.dumps(recording.facts)}
    write_safetensors(path, recording.tensors, metadata)


def read(path: str | Path) -> Recording:
    """Load a recording.

    Raises:
        InputError: not a file that `dump` wrote.
    """
    if not Path(path).is_file():
        raise InputError(f"recording {path}: no such file; make it with python -m tools.parity dump")
    tensors, metadata = read_safetensors(path), read_metadata(path)
    if "order" not in metadata:
        raise InputError(f"recording {path}: no order in its metadata; expected a file that `dump` wrote")
    return Recording(
        {name: tensors[name] for name in json.loads(metadata["order"])}, json.loads(metadata["facts"])
    )
