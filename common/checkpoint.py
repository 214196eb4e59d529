"""Weights on disk: safetensors with the config in the metadata, one file or shards with an index, beside a
config.json.

The layout is the Hugging Face hub's: `diffusion_pytorch_model.safetensors`, or shards
`...-00001-of-00003.safetensors` listed in `....safetensors.index.json`. Nothing here unpickles.
"""

import json
from collections import ChainMap, Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from .files import write_json, write_safetensors

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


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
        ValueError: lists every missing, unexpected and misshapen key at once.
    """
    problems = wrong_keys(expected, given)
    if problems:
        count = Counter(line.partition(" ")[0] for line in problems)
        told = ", ".join(f"{count[kind]} {kind}" for kind in ("missing", "unexpected", "misshapen"))
        raise ValueError(
            f"{where}: {told} keys; is this the config the weights belong to?\n  " + "\n  ".join(problems)
        )


def shapes_of(weights: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Shapes by name, without reading the tensors of stored weights."""
    if isinstance(weights, StoredWeights):
        return weights.shapes
    if isinstance(weights, ChainMap):
        return {name: shape for part in weights.maps[::-1] for name, shape in shapes_of(part).items()}
    return {name: tuple(array.shape) for name, array in weights.items()}


class StoredWeights(Mapping[str, np.ndarray]):
    """The tensors of a model directory or a safetensors file, each read when asked for; bfloat16 comes as
    float32.

    Raises:
        ValueError: no weights there, a shard of the index missing, or a file that is not safetensors.
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
    """The safetensors files that hold a model, in the order of the index."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(
            f"weights {path}: no such file or folder; give a model directory or a .safetensors file"
        )
    indexes = sorted(path.glob("*.safetensors.index.json"))
    if indexes:
        files = sorted(set(json.loads(indexes[0].read_text())["weight_map"].values()))
        missing = [name for name in files if not (path / name).is_file()]
        if missing:
            raise ValueError(
                f"weights {path}: {indexes[0].name} names files that are not there: {', '.join(missing)}"
            )
        return [path / name for name in files]
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        found = (
            ", ".join(f.name for f in files) or ", ".join(sorted(p.name for p in path.iterdir())) or "nothing"
        )
        raise ValueError(
            f"weights {path}: expected one .safetensors file or an index, found {found}; "
            "convert .ckpt, .bin or .pt files with python -m tools.convert"
        )
    return files


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of one file; bfloat16, which NumPy lacks, is widened to float32."""
    return {key: _read_tensor(Path(path), key) for key in _header(Path(path))}


def read_metadata(path: str | Path) -> dict[str, str]:
    """The string metadata of a safetensors file."""
    with safe_open(path, framework="numpy") as file:
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


def _header(path: Path) -> dict[str, dict]:
    try:
        with safe_open(path, framework="numpy"):  # validates offsets and sizes
            pass
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"weights {path}: not a readable safetensors file ({error})") from None
    header.pop("__metadata__", None)
    return header


def _read_tensor(path: Path, key: str) -> np.ndarray:
    with safe_open(path, framework="numpy") as file:
        if file.get_slice(key).get_dtype() != "BF16":
            return file.get_tensor(key)
    entry = _header(path)[key]
    start, end = entry["data_offsets"]
    with open(path, "rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little") + start)
        bits = np.frombuffer(file.read(end - start), np.uint16).astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32).reshape(entry["shape"])
