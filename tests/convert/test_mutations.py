"""Small files of every format, damaged at random: each is converted, or refused in one line."""

import json
import os
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.checkpoint import read_metadata
from common.errors import InputError

from .helpers import command, raw, run, temporary_files, write_safetensors

ROUNDS = 250
RESULT = "diffusion_pytorch_model.safetensors"
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


def refusal(source: Path, destination: Path) -> str:
    """What is said where nothing is converted; any other error fails the test."""
    try:
        run(source, destination, kind="any")
    except (InputError, OSError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "make", [pytest.param(m, marks=[pytest.mark.pt] if "Py" in n else [], id=n) for n, m in MAKERS.items()]
)
def test_damaged_files_are_converted_or_refused_in_one_line(tmp_path, make):
    path = make(tmp_path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    source = tmp_path / "m.safetensors" if path.name == "config.json" else path
    refusals = []
    for i in range(ROUNDS):
        path.write_bytes(mutated(whole, rng))
        if said := refusal(source, tmp_path / f"out{i}"):
            refusals.append(said)
            assert not (tmp_path / f"out{i}").exists()
    assert not [said for said in refusals if "\n" in said]
    assert not temporary_files(tmp_path)
    assert len(refusals) > ROUNDS // 10, "the damage was none"


def test_an_object_number_that_would_fill_the_memory(tmp_path):
    """The unpickler makes a list as long as the largest number, here 32 GB."""
    (tmp_path / "m.pkl").write_bytes(b"\x80\x04}r\xff\xff\xff\xff.")
    assert "an object numbered 4294967295" in refusal(tmp_path / "m.pkl", tmp_path / "out")


def test_lists_that_hold_each_other_come_to_an_end(tmp_path):
    """Thirty lists, each of which holds the one before ten times: 10^30 entries to list."""
    tree: object = [ARRAYS["c"]]
    for _ in range(30):
        tree = [tree] * 10
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"x": tree}))
    assert "or hold themselves" in refusal(tmp_path / "m.pkl", tmp_path / "out")


def test_names_that_cannot_be_printed(tmp_path):
    name = "line\nbreak"
    run(write_safetensors(tmp_path / "m.safetensors", raw({name: ARRAYS["b"]})), tmp_path / "a", kind="any")
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"\udcff": ARRAYS["b"]}))
    assert r"\udcff is a name that UTF-8 cannot tell" in refusal(tmp_path / "m.pkl", tmp_path / "out")
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({name: "no array"}))
    assert r"line\nbreak is no array" in refusal(tmp_path / "m.pkl", tmp_path / "out")


def test_a_file_whose_name_is_no_text(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.safetensors"))
    os.rename(safetensors(tmp_path), path)
    done = command(path, tmp_path / "out", "--kind", "any")
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\udcff.safetensors" in read_metadata(tmp_path / "out" / RESULT)["source_sha256"]
