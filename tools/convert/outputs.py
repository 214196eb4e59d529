"""What DESTINATION becomes: names and shards are decided beforehand; files are written aside, read back and
renamed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from common.checkpoint import check_weights
from common.errors import InputError
from common.files import whole_file

from .formats import FORMATS, SUFFIXES, Format
from .sources import sha256_of
from .tensors import Tensor


@dataclass(frozen=True)
class Target:
    """Where the result goes: `path` is a file, or a model directory if `is_folder`."""

    path: Path
    is_folder: bool
    format: Format


@dataclass(frozen=True)
class Written:
    """One file of the result, under its final name."""

    path: Path
    num_bytes: int
    sha256: str


def find_target(path: Path, to: str | None, sources: Sequence[Path]) -> Target:
    """A file if the suffix is one of ours, else a model directory; `to` overrules the format of the suffix.

    Raises:
        InputError: an unknown suffix, a suffix that contradicts `to`, or a file that is being read.
    """
    is_folder = path.is_dir() or path.suffix not in SUFFIXES
    if is_folder and not path.is_dir() and path.suffix[1:2].isalpha():
        raise InputError(
            f"destination {path}: got the suffix {path.suffix!r}, wanted {', '.join(SUFFIXES)} for a file, "
            "none for a model directory"
        )
    by_suffix = next((f for f in FORMATS.values() if path.suffix in f.suffixes), FORMATS["safetensors"])
    format_ = FORMATS[to] if to else by_suffix
    if not is_folder and format_ is not by_suffix:
        raise InputError(
            f"destination {path}: --to {to} wants a name that ends in {' or '.join(format_.suffixes)}"
        )
    if any(path.resolve() == source.resolve() for source in sources):
        raise InputError(f"destination {path}: is the file that is read; choose another name")
    return Target(path, is_folder, format_)


def cut_into_shards(
    tensors: Mapping[str, Tensor], stem: str, suffix: str, shard_gb: float | None
) -> dict[str, dict[str, Tensor]]:
    """File names and the tensors of each, in order; a tensor larger than a shard has one to itself."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shard_gb is not None and shards[-1] and size + tensor.nbytes > shard_gb * 1e9:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        return {stem + suffix: shards[0]}
    return {f"{stem}-{i:05d}-of-{len(shards):05d}{suffix}": shard for i, shard in enumerate(shards, 1)}


def write_index(folder: Path, name: str, shards: Mapping[str, Mapping[str, Tensor]]) -> None:
    """The JSON that tells which shard holds which tensor."""
    total = sum(tensor.nbytes for shard in shards.values() for tensor in shard.values())
    content = {
        "metadata": {"total_size": total},
        "weight_map": {tensor: file for file, shard in shards.items() for tensor in shard},
    }
    (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_verified(
    format_: Format, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[int, str]:
    """Write one file, read it back with the reader of its format and compare names, shapes, types and bytes.

    Returns:
        Bytes and SHA-256 of the file.

    Raises:
        InputError: the file does not hold what was written; it must not be used.
    """
    witnesses = {name: _Witness(tensor.dtype, tensor.shape, tensor) for name, tensor in tensors.items()}
    format_.write(path, witnesses, metadata)
    found = {str(name): tensor for (name,), tensor in format_.read(path).tensors.items()}
    check_weights(_shapes(tensors), _shapes(found), f"reading back {path}")
    for name, witness in witnesses.items():
        if found[name].dtype != witness.dtype or _digest(found[name]) != witness.digest.hexdigest():
            raise InputError(
                f"reading back {path}: {name} is not what was written; the disk or its driver loses data: "
                "convert to another disk"
            )
    return path.stat().st_size, sha256_of(path)


@contextmanager
def whole_target(target: Target) -> Iterator[Path]:
    """A temporary name beside the destination, a file's or a directory's: it becomes the destination if the
    block succeeds and is removed if it fails.

    Raises:
        InputError: the place is not writable, or the disk is full; names the destination and the reason.
    """
    try:
        target.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_written(target.path, error) from None
    if not target.is_folder:
        with whole_file(target.path) as temporary:
            yield temporary
        return
    temporary = target.path.with_name(f".{uuid4().hex}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        files = sorted(temporary.iterdir(), key=lambda file: file.name.endswith(".index.json"))  # index last
        for file in [*files, temporary]:
            _flush(file)
        if target.path.exists():
            for file in files:
                os.replace(file, target.path / file.name)
        else:
            os.rename(temporary, target.path)
    except OSError as error:
        raise _not_written(target.path, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_room(target: Target, tensors: Mapping[str, Tensor]) -> None:
    """Refuse before the work what cannot end well: weights that are there already, or too little space.

    Raises:
        InputError: names what is in the way.
    """
    if target.is_folder and target.path.is_dir():
        suffix = target.format.folder_suffix
        there = sorted(
            p.name for p in target.path.iterdir() if p.name.endswith((suffix, f"{suffix}.index.json"))
        )
        if there:
            raise InputError(
                f"destination {target.path}: holds {', '.join(there[:3])} already, and two models in one "
                "directory cannot be told apart; remove it, or choose another"
            )
    wanted = sum(tensor.nbytes for tensor in tensors.values())
    wanted *= 2 if target.format.name == "pt" else 1  # torch.save reads from a temporary copy
    existing = next(folder for folder in [target.path, *target.path.absolute().parents] if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if free < wanted:
        raise InputError(
            f"destination {target.path}: needs {wanted / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; "
            "make room or choose another disk"
        )


@dataclass(frozen=True)
class _Witness(Tensor):
    """Passes the bytes of a tensor on and remembers their hash."""

    tensor: Tensor
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256, compare=False)

    def pieces(self) -> Iterator[bytes]:
        for piece in self.tensor.pieces():
            self.digest.update(piece)
            yield piece


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256()
    for piece in tensor.pieces():
        digest.update(piece)
    return digest.hexdigest()


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_written(path: Path, error: OSError) -> InputError:
    return InputError(
        f"writing {path}: got {error.strerror or error!r}, wanted a new directory; "
        f"check that {path.parent} may be written and has space left"
    )
