"""What SOURCE names: a file, a model directory in any sharding, or the folder of a training checkpoint."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import InputError

from .formats import SUFFIXES, reader_of
from .tensors import Content, reading

SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.\w+)")
INDEX = ".index.json"
AVERAGED, PLAIN = "model_ema", "model"  # folders inside a training checkpoint of the reference


def open_source(path: Path, use_ema: bool = True, also: Sequence[Path] = ()) -> Content:
    """Read names, shapes and places of all tensors; their bytes stay where they are.

    Args:
        also: more files, each of which holds another part of the model.

    Raises:
        InputError: nothing there, nothing known, several things to choose from, or a missing shard.
    """
    if not path.exists():
        raise InputError(f"source {path}: no such file or folder")
    for file in also:
        if not file.is_file():
            raise InputError(f"--also {file}: no such file; give another part of the same model")
    chosen = _in_folder(path, use_ema) if path.is_dir() else _Chosen([path])
    if path.name.endswith(INDEX):
        chosen = _indexed(path)
    try:
        contents = [reader_of(file)(file) for file in [*chosen.files, *also]]
    except OSError as error:
        raise InputError(f"source {path}: {error.strerror or error}; check that it can be read") from None
    content = _merged(contents, path)
    absent = [name for name in chosen.listed if (name,) not in content.tensors]
    if absent:
        raise InputError(
            f"source {path}: the index lists {len(absent)} tensors that no file holds, as {absent[0]}; "
            "download index and shards again"
        )
    if chosen.left:
        notes = f"not read: {', '.join(chosen.left)}; name one as SOURCE to convert it instead"
        content.notes.append(notes)
    return content


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with reading(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class _Chosen:
    files: list[Path]
    left: list[str] = field(default_factory=list)  # other candidates
    listed: list[str] = field(default_factory=list)  # the tensors in the index, if there is one


def _in_folder(folder: Path, use_ema: bool) -> _Chosen:
    """The weight files of a folder, or of the folder with weights inside it."""
    names = sorted(p.name for p in folder.iterdir() if p.suffix in SUFFIXES and not p.name.startswith("."))
    known = tuple(suffix + INDEX for suffix in SUFFIXES)
    indexes = sorted(path for path in folder.glob(f"*{INDEX}") if path.name.endswith(known))
    if not names and not indexes:
        for inner in (AVERAGED, PLAIN) if use_ema else (PLAIN, AVERAGED):
            if (folder / inner).is_dir():
                chosen = _in_folder(folder / inner, use_ema)
                others = {AVERAGED, PLAIN} - {inner}
                chosen.left += [f"{name}/" for name in others if (folder / name).is_dir()]
                return chosen
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise InputError(f"source {folder}: found {found}; wanted a file that ends in {', '.join(SUFFIXES)}")
    suffix = next(s for s in SUFFIXES if any(n.endswith((s, s + INDEX)) for n in [*names, *_names(indexes)]))
    same = [path for path in indexes if path.name.endswith(suffix + INDEX)]  # safetensors come first
    if same:
        chosen = _indexed(_only(folder, same))
    else:
        chosen = _Chosen(_shards_or_one(folder, [name for name in names if name.endswith(suffix)]))
    chosen.left = [name for name in names if name not in _names(chosen.files)]
    return chosen


def _indexed(index: Path) -> _Chosen:
    """The files that an index lists, all of them there."""
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        names = sorted({str(name) for name in weight_map.values()})
    except (ValueError, KeyError, AttributeError, TypeError):
        raise InputError(
            f"source {index}: not an index, wanted JSON with a weight_map (name: file); download it again"
        ) from None
    _require(index.parent, names, index.name)
    return _Chosen([index.parent / name for name in names], listed=list(weight_map))


def _shards_or_one(folder: Path, names: Sequence[str]) -> list[Path]:
    """One file, or shards that are complete by their own numbering."""
    if len(names) == 1 and not SHARD.fullmatch(names[0]):
        return [folder / names[0]]
    matches = [SHARD.fullmatch(name) for name in names]
    families = {(m["stem"], m["total"], m["suffix"]) for m in matches if m}
    if len(families) != 1 or not all(matches):
        raise InputError(
            f"source {folder}: found {', '.join(names)}; wanted one model: give the file you mean as SOURCE"
        )
    stem, total, suffix = families.pop()
    wanted = [f"{stem}-{i:05d}-of-{total}{suffix}" for i in range(1, int(total) + 1)]
    _require(folder, wanted, "their numbering")
    return [folder / name for name in wanted]


def _require(folder: Path, names: Sequence[str], who: str) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"source {folder}: {who} wants {', '.join(missing)}, not there; download the missing shards"
        )


def _names(paths: Sequence[Path]) -> list[str]:
    return [path.name for path in paths]


def _only(folder: Path, indexes: Sequence[Path]) -> Path:
    if len(indexes) > 1:
        raise InputError(
            f"source {folder}: found {', '.join(_names(indexes))}; give the one you mean as SOURCE"
        )
    return indexes[0]


def _merged(contents: Sequence[Content], path: Path) -> Content:
    merged = Content(contents[0].format, [], {})
    for content in contents:
        twice = content.tensors.keys() & merged.tensors.keys()
        if twice:
            name = ".".join(map(str, min(twice, key=str)))
            raise InputError(
                f"source {path}: {name} is in more than one file; shards of two models are mixed up: "
                "remove those that do not belong"
            )
        merged.files += content.files
        merged.tensors |= content.tensors
        merged.values |= content.values
        merged.metadata = {**content.metadata, **merged.metadata}
        merged.notes += content.notes
    return merged
