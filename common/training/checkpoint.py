"""Checkpoints of a training run: `checkpoints/step-00001000/`, whole or absent, verified when read.

A checkpoint holds one `state-RRRRR-of-NNNNN.safetensors` per rank, the model itself in `model/` as on the
Hugging Face hub, and `manifest.json`: the step, the resolved config, the commit and every file's SHA-256.
Several ranks write to one shared file system.
"""

import hashlib
import json
import os
import re
import shutil
from collections import ChainMap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.checkpoint import StoredWeights
from common.config import Config
from common.errors import InputError
from common.files import parse_json, write_json, write_safetensors

from .ranks import ONE_RANK, Ranks, together

MANIFEST = "manifest.json"
NAME = re.compile(r"step-\d+")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = ("bool", *INTEGERS, "float16", "float32", "float64")


class Checkpoint(NamedTuple):
    """A checkpoint on the disk, as its manifest describes it."""

    folder: Path
    step: int  # updates done
    ranks: int
    seconds: float  # spent training so far
    score: float | None  # of the validation at this step; lower is better
    validation_owed: bool  # a validation was due at this step, and did not come to its end
    config: dict[str, Any]
    files: dict[str, dict[str, Any]]  # by name: sha256 and bytes

    @property
    def model(self) -> Path:
        """The model directory, for any command that takes one."""
        return self.folder / "model"

    def state(self) -> Mapping[str, np.ndarray]:
        """What `save` was given on all ranks together, bit for bit; a tensor is read when asked for."""
        shards = [StoredWeights(self.folder / _shard(rank, self.ranks)) for rank in range(self.ranks)]
        return ChainMap(*shards)  # type: ignore[arg-type] it is only read


class Facts(NamedTuple):
    """What the manifest says beside the files."""

    step: int
    config: Config
    commit: str
    seconds: float = 0.0
    score: float | None = None
    validation_owed: bool = False


def checkpoint_folder(output: str | Path, step: int | None = None) -> Path:
    """Where a run keeps its checkpoints, or the one of a step."""
    root = Path(output) / "checkpoints"
    return root if step is None else root / f"step-{step:08d}"


def save(
    output: str | Path,
    facts: Facts,
    state: Mapping[str, np.ndarray],
    export: Callable[[Path], None],
    ranks: Ranks = ONE_RANK,
) -> Path:
    """Write the checkpoint of a step: under a temporary name, flushed, then renamed. Every rank calls it.

    Raises:
        InputError, OSError: on every rank if one of them could not write.
    """
    final = checkpoint_folder(output, facts.step)
    temporary = final.with_name(f".{final.name}.tmp")
    shard = temporary / _shard(ranks.rank, ranks.size)
    if ranks.rank == 0:
        together(ranks, lambda: _empty_folder(temporary))
    else:
        together(ranks, lambda: None)
    together(ranks, lambda: _write_state(shard, state))
    together(ranks, lambda: export(temporary / "model"))
    together(ranks, lambda: _publish(temporary, final, facts, ranks.size) if ranks.rank == 0 else None)
    return final


def record_validation(folder: Path, score: float | None) -> None:
    """The validation that this checkpoint owed is done: its score goes into the manifest."""
    _write_manifest(folder, {**read_manifest(folder), "score": score, "validation_owed": False})
    _flush(folder)


def checkpoints(output: str | Path) -> list[Path]:
    """The folders of a run's checkpoints, oldest first; nothing is said of what is in them."""
    named = [path for path in checkpoint_folder(output).glob("step-*") if NAME.fullmatch(path.name)]
    return sorted(named, key=step_of)


def open_checkpoint(folder: Path, verify: bool = True) -> Checkpoint:
    """Read a checkpoint's manifest and check its files: sizes always, hashes with `verify`.

    Raises:
        InputError: the first file that is missing, cut short or changed.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"checkpoint {file}: is missing, the manifest lists it")
        if file.stat().st_size != entry["bytes"]:
            raise InputError(f"checkpoint {file}: has {file.stat().st_size} bytes, wanted {entry['bytes']}")
        if verify and _sha256(file) != entry["sha256"]:
            raise InputError(f"checkpoint {file}: its content changed since it was written (SHA-256 differs)")
    return Checkpoint(folder, *(manifest[name] for name in Checkpoint._fields[1:]))


def clear_leftovers(output: str | Path) -> None:
    """Remove what killed runs left half written or half deleted."""
    for leftover in checkpoint_folder(output).glob(".step-*"):
        shutil.rmtree(leftover)


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _shard(rank: int, size: int) -> str:
    return f"state-{rank:05d}-of-{size:05d}.safetensors"


def _empty_folder(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _write_state(file: Path, state: Mapping[str, np.ndarray]) -> None:
    for name, array in state.items():
        if array.dtype.name not in DTYPES:
            raise InputError(
                f"checkpoint {file.name}: {name} is {array.dtype}, wanted one of {', '.join(DTYPES)}; "
                "hand in bfloat16 as its bits (uint16) or as float32"
            )
    if not file.parent.is_dir():
        raise InputError(f"checkpoint {file}: no such folder; all ranks must see one shared file system")
    write_safetensors(file, state)


def _publish(temporary: Path, final: Path, facts: Facts, size: int) -> None:
    """Describe the files in the manifest, flush everything, and give the folder its name."""
    names = sorted(path.relative_to(temporary).as_posix() for path in temporary.rglob("*") if path.is_file())
    missing = {_shard(rank, size) for rank in range(size)} - set(names)
    if missing:
        told = ", ".join(sorted(missing))
        raise InputError(f"checkpoint {final}: {told} missing; all ranks must see one shared file system")
    files = {n: {"sha256": _sha256(temporary / n), "bytes": (temporary / n).stat().st_size} for n in names}
    content = {
        "step": facts.step,
        "ranks": size,
        "seconds": round(facts.seconds, 3),
        "score": facts.score,
        "validation_owed": facts.validation_owed,
        "commit": facts.commit,
        "config": json.loads(facts.config.model_dump_json()),
        "files": files,
    }
    _write_manifest(temporary, content)
    for path in (*temporary.rglob("*"), temporary):
        _flush(path)
    if final.exists():  # a damaged one that this run has caught up with
        delete(final)
    os.rename(temporary, final)
    _flush(final.parent)


def _write_manifest(folder: Path, content: dict[str, Any]) -> None:
    write_json(folder / MANIFEST, {"sha256": _digest(content), **content})


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; one from before validations could be owed owes none."""
    file = folder / MANIFEST
    if not file.is_file():
        raise InputError(f"checkpoint {file}: is missing, so the checkpoint is incomplete")
    content = parse_json(file.read_bytes(), f"checkpoint {file}", "its manifest")
    if not isinstance(content, dict) or "sha256" not in content:
        raise InputError(f"checkpoint {file}: is not a manifest, which says its own SHA-256")
    claimed = content.pop("sha256")
    if claimed != _digest(content):
        raise InputError(f"checkpoint {file}: its content changed since it was written (SHA-256 differs)")
    if NAME.fullmatch(folder.name) and content["step"] != step_of(folder):
        raise InputError(f"checkpoint {folder}: the manifest is of step {content['step']}; was it renamed?")
    return {"validation_owed": False, **content}


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def delete(folder: Path) -> None:
    """Out of sight in one step first: what a kill leaves half deleted must not look like a checkpoint."""
    hidden = folder.with_name(f".{folder.name}.deleted")
    shutil.rmtree(hidden, ignore_errors=True)
    os.rename(folder, hidden)
    shutil.rmtree(hidden)
