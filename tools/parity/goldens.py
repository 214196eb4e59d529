"""Golden folders: recorded computations of the reference, in the format of a `manifest.json` beside
safetensors files.

A case names its inputs (`in.`), parameters (`weights.`, possibly borrowed from another case's file) and
outputs (`out.`), and the tolerance of each output. Any folder of that format will do: nothing here knows a
seed, a shape or a width.
"""

import fnmatch
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.checkpoint import read_safetensors
from common.errors import InputError
from common.files import read_json

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT.parent / "shared" / "goldens", ROOT / "tests" / "goldens" / "data")


@dataclass(frozen=True)
class Case:
    """One recorded computation."""

    name: str
    record: dict[str, Any]  # its entry in the manifest
    weights: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    data: Any  # the JSON beside the tensors, or None

    def tolerance(self, output: str) -> float:
        """The absolute difference a correct float32 implementation stays below; 0 for exact outputs."""
        return float(self.record["outputs"].get(output, {}).get("suggested_atol") or 0.0)

    def weights_of(self, model: str) -> dict[str, np.ndarray]:
        """The parameters of one of several models, without its prefix."""
        return _part(self.weights, model + ".")

    def numbered(self, prefix: str) -> list[np.ndarray]:
        """Inputs `prefix.0`, `prefix.1`, ... in order."""
        found = []
        while f"{prefix}.{len(found)}" in self.inputs:
            found.append(self.inputs[f"{prefix}.{len(found)}"])
        return found

    def num_outputs(self, prefix: str) -> int:
        """How many outputs are called prefix0, prefix1, ..."""
        return sum(f"{prefix}{i}" in self.outputs for i in range(len(self.outputs)))


def find_folder() -> Path | None:
    """The complete goldens if this checkout has them beside it, else the subset it carries, else None."""
    return next((folder for folder in FOLDERS if (folder / "manifest.json").is_file()), None)


def read_manifest(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Records by case name.

    Raises:
        InputError: not a golden folder.
    """
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise InputError(f"goldens {folder}: no manifest.json; give a folder of recorded cases")
    return {record["name"]: record for record in read_json(path)["cases"]}


def select(folder: str | Path, pattern: str = "*") -> list[str]:
    """Names of the cases that match a glob, in the manifest's order.

    Raises:
        InputError: a file that one of them needs is not there; a case is never left out silently.
    """
    records = {n: r for n, r in read_manifest(folder).items() if fnmatch.fnmatch(n, pattern)}
    missing = sorted({f for r in records.values() for f in _files(r) if not (Path(folder) / f).is_file()})
    if missing:
        raise InputError(f"goldens {folder}: files missing: {', '.join(missing)}; copy them or narrow --case")
    return list(records)


def read_case(folder: str | Path, name: str) -> Case:
    """Read one case with everything it borrows."""
    folder = Path(folder)
    record = read_manifest(folder)[name]
    tensors = _tensors(folder / record["file"]) if record["file"] else {}
    weights = _part(tensors, "weights.")
    for prefix, source in (record["weights_from"] or {}).items():
        file, _, inner = source.partition("#")
        weights.update({prefix + k: v for k, v in _part(_tensors(folder / file), "weights." + inner).items()})
    for key in record.get("weight_overrides") or ():
        weights[key] = np.zeros_like(weights[key])
    data = read_json(folder / record["json_file"]) if record["json_file"] else None
    return Case(name, record, weights, _part(tensors, "in."), _part(tensors, "out."), data)


def _files(record: dict[str, Any]) -> set[str]:
    borrowed = {source.partition("#")[0] for source in (record["weights_from"] or {}).values()}
    return {name for name in (record["file"], record["json_file"]) if name} | borrowed


def _part(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


@functools.lru_cache(maxsize=4)
def _tensors(path: Path) -> dict[str, np.ndarray]:
    return read_safetensors(path)
