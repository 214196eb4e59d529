"""Golden folders: recorded computations of the reference, in the format of a `manifest.json` beside
safetensors files.

A case names its inputs (`in.`), parameters (`weights.`, possibly borrowed from another case's file, or drawn
by name) and outputs (`out.`), and the tolerance of each output. Any folder of that format will do: nothing
here knows a seed, a shape or a width.
"""

import contextlib
import fnmatch
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from common.checkpoint import read_safetensors
from common.config import Config, build
from common.errors import InputError
from common.files import read_json

from .by_name import RULES, ByName
from .tree import Arrays

ROOT = Path(__file__).resolve().parents[2]
SHARED, CARRIED = ROOT.parent / "shared", ROOT / "tests" / "goldens" / "data"
FOLDERS = (SHARED / "goldens", CARRIED)


C = TypeVar("C", bound=Config)


class UnsupportedError(InputError):
    """A recording asks for what this version does not have: it is not implemented, which is no mistake of
    ours.
    """


class Fields(dict[Any, Any]):
    """A dict of a recording; what it lacks makes the case unsupported instead of ending the run."""

    def __init__(self, content: Mapping[Any, Any], where: str) -> None:
        super().__init__(content)
        self.where = where

    def __or__(self, other: Mapping[Any, Any]) -> "Fields":
        return Fields({**self, **other}, self.where)

    def __missing__(self, key: Any) -> NoReturn:
        raise UnsupportedError(f"{self.where}: no {key!r} is recorded, which this kind of case has")


@contextlib.contextmanager
def supported() -> Iterator[None]:
    """Inside, what our code refuses of a recording is what this version does not have."""
    try:
        yield
    except InputError as error:
        raise UnsupportedError(str(error)) from None


def build_recorded(cls: type[C], content: dict[str, Any], where: str) -> C:
    """A config of ours from a recorded one.

    Raises:
        UnsupportedError: fields or values that ours does not know.
    """
    with supported():
        return build(cls, content, where)


@dataclass(frozen=True)
class Case:
    """One recorded computation."""

    name: str
    record: dict[str, Any]  # its entry in the manifest
    weights: Arrays | ByName
    inputs: Arrays
    outputs: Arrays
    data: Any  # the JSON beside the tensors; empty if there is none

    def tolerance(self, output: str) -> float:
        """The absolute difference a correct float32 implementation stays below; 0 for exact outputs."""
        return float(self.record["outputs"].get(output, {}).get("suggested_atol") or 0.0)

    @property
    def stored_weights(self) -> Arrays:
        """The parameters, where they are needed as such.

        Raises:
            UnsupportedError: they are drawn by name, which is for cases of a single model.
        """
        if isinstance(self.weights, ByName):
            raise UnsupportedError(f"{self.name}: this kind of case cannot have weights_by_name")
        return self.weights

    def weights_of(self, model: str) -> dict[str, np.ndarray]:
        """The parameters of one of several models, without its prefix."""
        return _part(self.stored_weights, f"{model}.", f"{self.name} weights.{model}.")

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
    content = read_json(path)
    records = content.get("cases") if isinstance(content, dict) else None
    if not isinstance(records, list) or not all(isinstance(r, dict) and "name" in r for r in records):
        raise InputError(f"goldens {path}: no list of named cases in it; give a folder of recorded cases")
    return {record["name"]: _fields(record, record["name"]) for record in records}


def select(folder: str | Path, pattern: str = "*") -> dict[str, dict[str, Any]]:
    """Records of the cases whose name matches a glob, in the manifest's order.

    Raises:
        InputError: a file that one of them needs is not there; a case is never left out silently.
    """
    records = {n: r for n, r in read_manifest(folder).items() if fnmatch.fnmatchcase(n, pattern)}
    missing = sorted({f for r in records.values() for f in _files(r) if not (Path(folder) / f).is_file()})
    if missing:
        raise InputError(f"goldens {folder}: files missing: {', '.join(missing)}; copy them or narrow --case")
    return records


def read_case(folder: str | Path, name: str) -> Case:
    """Read one case with everything it borrows.

    Raises:
        UnsupportedError: a rule for weights by name that this version does not know, or fields are missing.
    """
    folder, record = Path(folder), read_manifest(folder)[name]
    tensors = _tensors(folder / record["file"]) if record["file"] else {}
    weights = _part(tensors, "weights.", f"{name} weights.")
    for prefix, source in (record.get("weights_from") or {}).items():
        file, _, inner = source.partition("#")
        borrowed = _part(_tensors(folder / file), f"weights.{inner}")
        weights.update({prefix + k: v for k, v in borrowed.items()})
    for key in record.get("weight_overrides") or ():
        weights[key] = np.zeros_like(weights[key])
    data = read_json(folder / record["json_file"]) if record["json_file"] else {}
    inputs, outputs = _part(tensors, "in.", f"{name} in."), _part(tensors, "out.", f"{name} out.")
    by_name = _by_name(record) if record.get("weights_by_name") else weights
    return Case(name, record, by_name, inputs, outputs, _fields(data, f"{name} JSON"))


def _by_name(record: dict[str, Any]) -> ByName:
    rule, salt = record["weights_by_name"]["rule"], record["weights_by_name"]["salt"]
    if rule not in RULES:
        raise UnsupportedError(
            f"{record['name']} weights_by_name: got rule {rule!r}, wanted one of {', '.join(RULES)}"
        )
    return ByName(rule, salt)


def _files(record: dict[str, Any]) -> set[str]:
    borrowed = {source.partition("#")[0] for source in (record.get("weights_from") or {}).values()}
    return {name for name in (record.get("file"), record.get("json_file")) if name} | borrowed


def _part(tensors: Mapping[str, np.ndarray], prefix: str, where: str = "") -> Arrays:
    return Fields({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}, where)


def _fields(content: Any, where: str) -> Any:
    """JSON whose objects, at any depth, are `Fields`."""
    if isinstance(content, dict):
        return Fields({key: _fields(value, f"{where}.{key}") for key, value in content.items()}, where)
    return [_fields(value, where) for value in content] if isinstance(content, list) else content


@functools.lru_cache(maxsize=4)
def _tensors(path: Path) -> dict[str, np.ndarray]:
    return read_safetensors(path)
