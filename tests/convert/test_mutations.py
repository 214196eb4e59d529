"""Small files of every format, damaged at random: what comes out is a conversion or one line that says why."""

import json
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.errors import InputError

from .helpers import raw, run, temporary_files, write_safetensors

ROUNDS = 250
ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.ones(2, np.float16),
    "c": np.array(7),
}
LARGE = tuple(value.to_bytes(8, "little") for value in (2**31, 2**40, 2**62, 2**63 - 1, 2**64 - 1))


def safetensors(folder: Path) -> Path:
    return write_safetensors(folder / "m.safetensors", raw(ARRAYS), {"config": json.dumps({"width": 3})})


def mindspore(folder: Path) -> Path:
    run(safetensors(folder), folder / "m.ckpt", kind="any")
    return folder / "m.ckpt"


def mindspore_with_checksum(folder: Path) -> Path:
    path = mindspore(folder)
    data = path.read_bytes()
    path.write_bytes(data + b"crc_num" + zlib.crc32(data).to_bytes(10, "big"))
    return path


def pickled(folder: Path, protocol: int) -> Path:
    path = folder / "m.pkl"
    path.write_bytes(pickle.dumps({"params": ARRAYS, "list": [ARRAYS["b"]]}, protocol))
    return path


def pytorch(folder: Path, zipped: bool) -> Path:
    import torch

    tensors = {name: torch.from_numpy(array.copy()) for name, array in ARRAYS.items()}
    tree = {"state_dict": tensors, "config": {"width": 3, "sizes": (1, 2)}, "step": 7, "note": "text"}
    torch.save(tree, folder / "m.pt", _use_new_zipfile_serialization=zipped)
    return folder / "m.pt"


def config(folder: Path) -> Path:
    safetensors(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({"width": 3, "name": "é", "list": [1, 2.5, None, True], "deep": {"a": {}}}))
    return path


def index(folder: Path) -> Path:
    safetensors(folder)
    path = folder / "m.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(ARRAYS, "m.safetensors")}))
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "safetensors": safetensors,
    "MindSpore": mindspore,
    "MindSpore with a checksum": mindspore_with_checksum,
    "pickle, protocol 2": lambda folder: pickled(folder, 2),
    "pickle, protocol 4": lambda folder: pickled(folder, 4),
    "PyTorch": lambda folder: pytorch(folder, True),
    "PyTorch before 1.6": lambda folder: pytorch(folder, False),
    "config": config,
    "index": index,
}


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three damages: bytes flipped, made large numbers, cut out, doubled, put in, or cut off."""
    for _ in range(rng.integers(1, 4)):
        start, end = sorted(rng.integers(0, len(data) + 1, 2))
        end = min(end, start + 16)
        kept, middle, rest = data[:start], data[start:end], data[end:]
        noise = rng.integers(0, 256, rng.integers(1, 5), np.uint8).tobytes()
        large = LARGE[rng.integers(len(LARGE))]
        choices = (kept + noise + data[start + len(noise) :], kept + large + data[start + 8 :])
        choices += (kept + rest, kept + middle * 3 + rest, kept + noise + rest, kept)
        data = choices[rng.integers(len(choices))]
        if not data:
            break
    return data


@pytest.mark.parametrize(
    "make", [pytest.param(m, marks=[pytest.mark.pt] if "Py" in n else []) for n, m in MAKERS.items()], ids=MAKERS
)
def test_damage_is_a_conversion_or_one_line(tmp_path, make):
    path = make(tmp_path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    source = path.parent / "m.safetensors" if path.name == "config.json" else path
    refused = 0
    for i in range(ROUNDS):
        path.write_bytes(mutated(whole, rng))
        try:
            run(source, tmp_path / f"out{i}", kind="any")
        except (InputError, OSError) as error:
            refused += 1
            assert "\n" not in str(error)
            assert not (tmp_path / f"out{i}").exists()
    assert not temporary_files(tmp_path)
    assert refused > ROUNDS // 10, "the damage was none"
