"""What the tools share that write a release: float16 weights, and never over what they were made of."""

from pathlib import Path

import numpy as np

from common.checkpoint import StoredWeights
from common.errors import InputError


def refuse_overwriting(model: str, target: str) -> None:
    """A release must not take the place of what it is made of.

    Raises:
        InputError: it would.
    """
    if Path(target).resolve() == Path(model).resolve():
        raise InputError(f"{target}: the release would overwrite its checkpoint; give another folder")


def in_float16(weights: StoredWeights, name: str, where: str) -> np.ndarray:
    """A trained tensor in half precision.

    Raises:
        InputError: it was stored in another precision than float32, or has values that float16 cannot hold.
    """
    if weights.dtype(name) != "F32":
        raise InputError(f"{where}: {name} is {weights.dtype(name)}, wanted F32; give the trained checkpoint")
    with np.errstate(over="ignore"):
        half = weights[name].astype(np.float16)
    if not np.isfinite(half).all():
        raise InputError(f"{where}: {name} has values that float16 cannot hold; did the training diverge?")
    return half
