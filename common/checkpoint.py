"""Weights on disk: safetensors with the config in the metadata, one file or shards with an index, beside a
config.json.

The layout is the Hugging Face hub's: `diffusion_pytorch_model.safetensors`, or shards
`...-00001-of-00003.safetensors` listed in `....safetensors.index.json`. Nothing here unpickles.
"""

import json
from collections import ChainMap, Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from .errors import InputError
from .files import LFS_HINT, is_lfs_pointer, parse_json, read_json, write_json, write_safetensors
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
        raise InputError(
            f"{where}: {len(empty)} tensors hold no values ({empty[0]}, ...), wanted whole ones: ranks that "
            "shared the parameters (ZeRO-3) left placeholders; gather them with the trainer's zero_to_fp32.py"
        )
    problems = wrong_keys(expected, given)
    if problems:
        count = Counter(line.partition(" ")[0] for line in problems)
        told = ", ".join(f"{count[kind]} {kind}" for kind in ("missing", "unexpected", "misshapen"))
        raise InputError(
            f"{where}: {told} keys; is this the config the weights belong to?\n  " + "\n  ".join(problems)
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
        InputError: as weight_files; a file that is not safetensors, or a tensor whose elements NumPy lacks.
    """

    def __init__(self, path: str | Path) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Path] = {}
        self._dtypes: dict[str, str] = {}
        for file in weight_files(path):
            for key, entry in _header(file).items():
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
    """The safetensors files that hold a model, in the order of the index.

    In a folder with weights under several names those called as `save_weights` calls them are taken; other
    names are as good as each other, so there the choice is left to the caller.

    Raises:
        InputError: no weights, or several candidates; an index that is none or names files that are missing;
            a trainer's checkpoint, whose message names the folders inside that hold models.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(
            f"weights {path}: no such file or folder; give a model directory or a .safetensors file"
        )
    indexes = sorted(path.glob(f"*{INDEX_SUFFIX}"))
    files = sorted(path.glob("*.safetensors"))
    listed = {index: indexed_files(index) for index in indexes}
    alone = [file for file in files if not any(file.name in names for names in listed.values())]
    candidates = [*indexes, *alone]
    usual = [found for found in candidates if found.name in (WEIGHTS_NAME, WEIGHTS_NAME + INDEX_TAIL)]
    if len(candidates) != 1 and len(usual) != 1:
        raise InputError(_no_choice(path, candidates))
    (chosen,) = usual if len(usual) == 1 else candidates
    return [path / name for name in listed[chosen]] if chosen in listed else [chosen]


def _no_choice(path: Path, candidates: list[Path]) -> str:
    inside = sorted(str(folder.parent) for folder in path.glob("*/config.json"))
    if candidates:
        found = ", ".join(file.name for file in candidates)
        advice = "give the file you mean as path, or move the others away"
    elif inside:
        found, advice = "no weights", f"the models inside are {', '.join(inside)}: give one of them"
    else:
        found = ", ".join(sorted(p.name for p in path.iterdir())) or "nothing"
        advice = "convert .ckpt, .bin or .pt files, and a trainer's checkpoints, with python -m tools.convert"
    return f"weights {path}: expected one .safetensors file or an index, found {found}; {advice}"


def indexed_files(index: Path) -> list[str]:
    """Names of the files of an index, all of them there.

    Raises:
        InputError: it is no index, or a file is missing.
    """
    content = read_json(index, "an index of weight files")
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(map(_is_text, weight_map.values())):
        raise InputError(
            f"weights {index}: wanted an index with a weight_map (name: file), got none or an empty one; "
            "download it again"
        )
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise InputError(
            f"weights {index}: names files that are not there: {', '.join(missing)}; download them"
        )
    return names


def _is_text(value: object) -> bool:
    return isinstance(value, str)


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
        with suppress(OSError), open(path, "rb") as file:
            reason = LFS_HINT if is_lfs_pointer(file.read(64)) else error
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
