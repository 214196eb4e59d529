"""Weights on disk: safetensors with the config in the metadata, one file or shards with an index, beside a
config.json.

The layout is the Hugging Face hub's: `diffusion_pytorch_model.safetensors`, or shards
`...-00001-of-00003.safetensors` listed in `....safetensors.index.json`. Nothing here unpickles.
"""

import json
from collections import ChainMap, Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from .errors import InputError
from .files import LFS_HINT, is_lfs_pointer, parse_json, read_json, start_of, write_json, write_safetensors
from .noise import Drawn

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
INDEX_TAIL = ".index.json"
INDEX_SUFFIX = f".safetensors{INDEX_TAIL}"
ELEMENT_TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")


def wrong_keys(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Every missing, unexpected and misshapen key of a model's weights, one line each."""
    missing = [f"missing {name} {shape}" for name, shape in expected.items() if name not in given]
    unexpected = [f"unexpected {name} {shape}" for name, shape in given.items() if name not in expected]
    misshapen = [
        f"misshapen {name}: file has {given[name]}, model wants {shape}"
        for name, shape in expected.items()
        if name in given and given[name] != shape
    ]
    return missing + unexpected + misshapen


def check_weights(
    expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Compare names and shapes of a model with those of its weights.

    Raises:
        InputError: lists every missing, unexpected and misshapen key at once, or tensors without values.
    """
    empty = [name for name, shape in given.items() if 0 in shape and 0 not in expected.get(name, (0,))]
    if empty:
        raise InputError(placeholders(empty, where))
    problems = wrong_keys(expected, given)
    if problems:
        count = Counter(line.partition(" ")[0] for line in problems)
        told = ", ".join(f"{count[kind]} {kind}" for kind in ("missing", "unexpected", "misshapen"))
        raise InputError(
            f"{where}: {told} keys; is this the config the weights belong to?\n  " + "\n  ".join(problems)
        )


def placeholders(names: Sequence[str], where: str) -> str:
    """What to say of tensors without elements, which stand where a trainer left the values out."""
    some = ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")
    return (
        f"{where}: {len(names)} tensors hold no values ({some}), wanted whole ones: ranks that shared the "
        "parameters (ZeRO-3) left placeholders; gather them with the trainer's zero_to_fp32.py and take what "
        "it writes"
    )


def finite(weights: Mapping[str, np.ndarray], name: str, where: str) -> np.ndarray:
    """One of a model's weights.

    Raises:
        InputError: a value in it is not finite, which would make every video noise.
    """
    array = np.asarray(weights[name], order="C")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        count = int(array.size - np.isfinite(array).sum())
        raise InputError(
            f"{where}: {count} of {array.size} values of {name} are not finite; the run that wrote them had "
            "diverged, or the copy is damaged: take an earlier checkpoint"
        )
    return array


def shapes_of(weights: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Shapes by name, without reading stored weights or drawing random ones."""
    if isinstance(weights, StoredWeights | Drawn):
        return weights.shapes
    if isinstance(weights, ChainMap):
        return {name: shape for part in weights.maps[::-1] for name, shape in shapes_of(part).items()}
    return {name: tuple(array.shape) for name, array in weights.items()}


class StoredWeights(Mapping[str, np.ndarray]):
    """The tensors of a model directory or a safetensors file, each read when asked for; bfloat16 comes as
    float32.

    Raises:
        InputError: as weight_files; a file that is not safetensors, a tensor whose elements NumPy lacks, or
            one that two shards hold.
    """

    def __init__(self, path: str | Path) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Path] = {}
        self._dtypes: dict[str, str] = {}
        for file in weight_files(path):
            for key, entry in _header(file).items():
                if key in self._files:
                    raise InputError(
                        f"weights {path}: {key} is in {self._files[key].name} and in {file.name}; shards of "
                        "two models are mixed up: download index and shards again"
                    )
                self.shapes[key] = tuple(entry["shape"])
                self._dtypes[key] = entry["dtype"]
                self._files[key] = file

    def dtype(self, key: str) -> str:
        """As stored, in safetensors' spelling: F32, BF16, ..."""
        return self._dtypes[key]

    def __getitem__(self, key: str) -> np.ndarray:
        return _read_tensor(self._files[key], key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def save_weights(
    folder: str | Path, weights: Mapping[str, np.ndarray], config: dict, max_shard_bytes: int = 5 * 10**9
) -> None:
    """Write `config.json` and the weights into `folder`, in shards of at most `max_shard_bytes` with an
    index.

    Every file is written under a temporary name, flushed and renamed, so an interrupt leaves no half file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _cut_into_shards(weights, max_shard_bytes)
    metadata = {"format": "np", "config": json.dumps(config)}
    stem = WEIGHTS_NAME.removesuffix(".safetensors")
    names = [WEIGHTS_NAME]
    if len(shards) > 1:
        names = [f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        index = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(weights[key].nbytes for key in weights)
        write_json(
            folder / f"{WEIGHTS_NAME}.index.json", {"metadata": {"total_size": total}, "weight_map": index}
        )
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(folder / name, {key: weights[key] for key in shard}, metadata)
    write_json(folder / "config.json", config)


def weight_files(path: str | Path) -> list[Path]:
    """The safetensors files that hold a model: a file, or those of an index, sorted.

    In a folder with weights under several names those called as `save_weights` calls them are taken; other
    names are as good as each other, so there the choice is left to the caller.

    Raises:
        InputError: no weights, or several candidates; an index that is none or names files that are missing;
            a trainer's checkpoint, whose message names the folders inside that hold models.
    """
    path = Path(path)
    if path.is_file():
        return _files_of(path)
    if not path.is_dir():
        raise InputError(
            f"weights {path}: no such file or folder; give a model directory or a .safetensors file"
        )
    indexes = visible_files(path, INDEX_SUFFIX)
    listed = {name for index in indexes for name in indexed_files(index)}
    alone = [file for file in visible_files(path, ".safetensors") if file.name not in listed]
    candidates = [*indexes, *alone]
    usual = [found for found in candidates if found.name in (WEIGHTS_NAME, WEIGHTS_NAME + INDEX_TAIL)]
    chosen = usual or candidates
    if len(chosen) != 1:
        raise InputError(_no_choice(path, candidates))
    return _files_of(chosen[0])


def visible_files(folder: Path, ending: str) -> list[Path]:
    """The files of a folder whose names end so, sorted; hidden ones are the system's or half written."""
    named = (path for path in folder.iterdir() if path.name.endswith(ending))
    return sorted(path for path in named if path.is_file() and not path.name.startswith("."))


def models_inside(folder: Path) -> list[Path]:
    """The folders in a folder that are model directories, as in a trainer's checkpoint or a pipeline."""
    return sorted(config.parent for config in folder.glob("*/config.json"))


def read_weight_map(index: Path) -> dict[str, str]:
    """File by tensor, as an index of shards says.

    Raises:
        InputError: it is no index, an empty one, or one that leaves its folder.
    """
    content = read_json(index, "an index of weight files")
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(map(_is_text, weight_map.values())):
        raise InputError(
            f"weights {index}: wanted an index with a weight_map (name: file), got none or an empty one; "
            "download it again"
        )
    outside = [name for name in weight_map.values() if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        raise InputError(
            f"weights {index}: names {outside[0]}, wanted files in its own folder; download it again"
        )
    return weight_map


def indexed_files(index: Path) -> list[str]:
    """Names of the files of an index, all of them there.

    Raises:
        InputError: it is no index, or a file is missing.
    """
    names = sorted(set(read_weight_map(index).values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise InputError(
            f"weights {index}: names files that are not there: {', '.join(missing)}; download them"
        )
    return names


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _files_of(file: Path) -> list[Path]:
    is_index = file.name.endswith(INDEX_TAIL)
    return [file.parent / name for name in indexed_files(file)] if is_index else [file]


def _no_choice(path: Path, candidates: list[Path]) -> str:
    inside = ", ".join(map(str, models_inside(path)))
    if candidates:
        found = ", ".join(file.name for file in candidates)
        advice = "give the file you mean as path, or move the others away"
    elif inside:
        found, advice = "no weights", f"the models inside are {inside}: give one of them"
    else:
        found = ", ".join(sorted(p.name for p in path.iterdir())) or "nothing"
        advice = "convert .ckpt, .bin or .pt files, and a trainer's checkpoints, with python -m tools.convert"
    return f"weights {path}: expected one .safetensors file or an index, found {found}; {advice}"


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of one file; bfloat16, which NumPy lacks, is widened to float32."""
    return {key: _read_tensor(Path(path), key) for key in _header(Path(path))}


def read_metadata(path: str | Path) -> dict[str, str]:
    """The string metadata of a safetensors file."""
    with _opened(Path(path)) as file:
        return dict(file.metadata() or {})


def _cut_into_shards(weights: Mapping[str, np.ndarray], max_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for key, array in weights.items():
        if shards[-1] and size + array.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += array.nbytes
    return shards


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file; what the library says of a damaged one becomes an error that names it."""
    try:
        with safe_open(path, framework="numpy") as file:  # validates offsets and sizes
            yield file
    except (SafetensorError, OSError) as error:
        reason: object = error
        with suppress(OSError):
            reason = LFS_HINT if is_lfs_pointer(start_of(path)) else error
        raise InputError(f"weights {path}: not a readable safetensors file, got {reason}") from None


def _header(path: Path) -> dict[str, dict]:
    """Entries by name, every one of an element type that NumPy can hold.

    Raises:
        InputError: the file, the tensor, and the remedy.
    """
    with _opened(path), open(path, "rb") as file:
        header = parse_json(file.read(int.from_bytes(file.read(8), "little")), str(path))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["dtype"] not in ELEMENT_TYPES:
            raise InputError(
                f"weights {path}: {name} has elements of type {entry['dtype']}, wanted one of "
                f"{', '.join(ELEMENT_TYPES)}; fetch the release in half or full precision"
            )
    return header


def _read_tensor(path: Path, key: str) -> np.ndarray:
    with _opened(path) as file:
        if file.get_slice(key).get_dtype() != "BF16":
            return file.get_tensor(key)
    entry = _header(path)[key]
    start, end = entry["data_offsets"]
    with open(path, "rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little") + start)
        bits = np.frombuffer(file.read(end - start), np.uint16).astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32).reshape(entry["shape"])
