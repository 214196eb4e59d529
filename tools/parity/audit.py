"""`audit CHECKPOINT --model CONFIG`: does a checkpoint belong to a model, and is there anything odd in it."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.checkpoint import StoredWeights, weight_files, wrong_keys
from common.models import HubConfig, TransformerConfig

from .tree import Tree

FLOATS = {"F32", "F16", "BF16"}


class TensorReport(NamedTuple):
    """One tensor: its statistics and what is odd about it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    mean: float
    std: float
    largest: float
    odd: list[str]


def audit_keys(tree: Tree, config: HubConfig, weights: StoredWeights) -> list[str]:
    """Every missing, unexpected and misshapen key, one sentence each; empty if the checkpoint fits."""
    cls = tree.transformer.Transformer if isinstance(config, TransformerConfig) else tree.vae.WFVAE
    expected = {name: tuple(p.shape) for name, p in tree.runtime.parameters(cls(config)).items()}
    problems = wrong_keys(expected, weights.shapes)
    kinds = {weights.dtype(name) for name in weights}
    strange = sorted(kinds - FLOATS)
    if strange:
        problems.append(f"dtypes {', '.join(strange)} among the weights, wanted {', '.join(sorted(FLOATS))}")
    return problems


def audit_tensors(weights: StoredWeights) -> list[TensorReport]:
    """Statistics of every tensor; NaN, Inf, all zero, constant and dead rows are called odd."""
    return [report(name, weights[name], weights.dtype(name)) for name in weights]


def report(name: str, array: np.ndarray, dtype: str) -> TensorReport:
    """One tensor, whose dtype in the file is named as there: NumPy has no bfloat16."""
    wide = np.asarray(array, np.float64)
    finite = wide[np.isfinite(wide)]
    odd = []
    for label, count in (("NaN", int(np.isnan(wide).sum())), ("Inf", int(np.isinf(wide).sum()))):
        if count:
            odd.append(f"{count} {label}")
    if finite.size and not finite.any():
        odd.append("all zero")
    elif finite.size > 8 and (finite == finite[0]).all():  # a wavelet filter of 8 is constant by right
        odd.append(f"constant {finite[0]:g}")
    elif wide.ndim >= 2:
        dead = int((~wide.reshape(len(wide), -1).any(axis=1)).sum())
        if dead:
            odd.append(f"{dead} dead rows")
    mean, std, largest = (
        (finite.mean(), finite.std(), np.abs(finite).max()) if finite.size else (0.0, 0.0, 0.0)
    )
    return TensorReport(name, array.shape, dtype, float(mean), float(std), float(largest), odd)


def sha256(path: str | Path) -> dict[str, str]:
    """Hash of every file that holds the weights."""
    hashes = {}
    for file in weight_files(path):
        digest = hashlib.sha256()
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        hashes[file.name] = digest.hexdigest()
    return hashes
