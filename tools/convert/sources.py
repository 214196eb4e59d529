"""What SOURCE names: a file, an index, or a folder with a model in any sharding."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from common.checkpoint import INDEX_TAIL
from common.errors import InputError

from .folders import Chosen, index_in, weights_in
from .formats import reader_of
from .tensors import Content, reading, shown


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
    try:
        chosen = _chosen(path, use_ema)
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
    content.notes += chosen.notes
    if chosen.others:
        content.notes.append(
            f"not read: {', '.join(chosen.others)}; name one as SOURCE to convert it instead"
        )
    if chosen.states:
        content.notes.append(f"not read: {', '.join(chosen.states)}, the trainer's own")
    return content


def _chosen(path: Path, use_ema: bool) -> Chosen:
    if path.is_dir():
        return weights_in(path, use_ema)
    return index_in(path) if path.name.endswith(INDEX_TAIL) else Chosen([path])


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with reading(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _merged(contents: Sequence[Content], path: Path) -> Content:
    merged = Content(contents[0].format, [], {})
    for content in contents:
        twice = content.tensors.keys() & merged.tensors.keys()
        if twice:
            name = ".".join(map(str, min(twice, key=str)))
            raise InputError(
                f"source {path}: {shown(name)} is in more than one file; shards of two models are mixed up: "
                "remove those that do not belong"
            )
        merged.files += content.files
        merged.tensors |= content.tensors
        merged.values |= content.values
        merged.metadata = {**content.metadata, **merged.metadata}
        merged.notes += content.notes
    return merged
