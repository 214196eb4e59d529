"""Killed, interrupted or out of space: the destination is whole or absent, and no temporary file stays."""

import shutil
import signal
import subprocess
from collections import namedtuple

import numpy as np
import pytest

from tools.convert import outputs

from .helpers import ROOT, command, python, raw, read_raw, run, temporary_files, write_safetensors

TENSORS = raw({f"x{i}": np.full(50_000, i, np.float32) for i in range(5)})
DESTINATIONS = [
    "out",
    "out.safetensors",
    "out.ckpt",
    pytest.param("out.pt", marks=pytest.mark.pt),
]
HANG = """
import time
from tools.convert.tensors import FileTensor
pieces = FileTensor.pieces
def slow(self):
    yield from pieces(self)
    if b"x3" in open(self.file, "rb").read() and self.spans[0][0] > 600_000:  # within the fourth tensor
        print("started", flush=True)
        time.sleep(100)
FileTensor.pieces = slow
"""
SIGTERM = "import signal; signal.signal(signal.SIGTERM, signal.default_int_handler)"  # as __main__ does
FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))"


def source(tmp_path):
    return write_safetensors(tmp_path / "in.safetensors", TENSORS)


SIGNALS = [
    *[(name, number) for name in DESTINATIONS[:3] for number in (signal.SIGINT, signal.SIGKILL)],
    ("out", signal.SIGTERM),
    pytest.param("out.pt", signal.SIGINT, marks=pytest.mark.pt),
]


@pytest.mark.parametrize(("name", "number"), SIGNALS)
def test_a_signal_while_writing(tmp_path, name, number):
    words = python(source(tmp_path), tmp_path / name, "--kind", "any", code=f"{SIGTERM}\n{HANG}")
    with subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while "started" not in (line := process.stdout.readline()):
            assert line, process.communicate()
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert not (tmp_path / name).exists()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        assert all(name.startswith(".") and name.endswith(".tmp") for name in hidden_or_new(tmp_path))
    else:
        assert process.returncode == 130
        assert errors == "interrupted; nothing was written\n"
        assert hidden_or_new(tmp_path) == []
    run(source(tmp_path), tmp_path / name, kind="any")  # the next one succeeds
    assert (tmp_path / name).exists()


def hidden_or_new(folder):
    return [path.name for path in folder.iterdir() if path.name != "in.safetensors"]


@pytest.mark.parametrize("name", DESTINATIONS)
def test_no_space_left(tmp_path, name):
    done = command(source(tmp_path), tmp_path / name, "--kind", "any", code=FULL)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: writing {tmp_path / name}: got 'File too large', wanted")
    assert done.stderr.count("\n") == 1
    assert hidden_or_new(tmp_path) == []


def test_no_space_left_for_one_of_many(tmp_path, monkeypatch):
    """The third shard does not fit: those before it go too."""
    calls = []

    def write(path, tensors, metadata):
        calls.append(path)
        path.write_bytes(b"half")
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        path.unlink()
        real(path, tensors, metadata)

    real = outputs.FORMATS["safetensors"].write
    full = {**vars(outputs.FORMATS["safetensors"]), "write": write}
    monkeypatch.setitem(outputs.FORMATS, "safetensors", type(outputs.FORMATS["safetensors"])(**full))
    with pytest.raises(
        ValueError, match=r"writing .*out: got 'No space left on device', wanted a new directory"
    ):
        run(source(tmp_path), tmp_path / "out", kind="any", shard_gb=2e-4)
    assert len(calls) == 3
    assert hidden_or_new(tmp_path) == []


def test_too_little_space_is_noticed_beforehand(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 10**5)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr("tools.convert.job.sha256_of", None)  # comes later
    with pytest.raises(ValueError, match=r"out: needs 0\.00 GB, 0\.00 GB are free; make room"):
        run(source(tmp_path), tmp_path / "out", kind="any")


def test_what_was_in_the_directory_stays(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    path = source(tmp_path)
    monkeypatch.setattr(
        outputs, "_flush", lambda path: (_ for _ in ()).throw(OSError(5, "Input/output error"))
    )
    with pytest.raises(ValueError, match="got 'Input/output error'"):
        run(path, folder, kind="any")
    assert [p.name for p in folder.iterdir()] == ["README.md"]
    assert not temporary_files(tmp_path)
    monkeypatch.undo()
    run(path, folder, kind="any")
    assert read_raw(folder / "diffusion_pytorch_model.safetensors") == TENSORS
    assert (folder / "README.md").read_text() == "mine"


def test_bytes_that_come_back_different(tmp_path, monkeypatch):
    """A disk that loses data: the result is not kept."""
    safetensors = outputs.FORMATS["safetensors"]

    def write(path, tensors, metadata):
        safetensors.write(path, tensors, metadata)
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)

    broken = type(safetensors)(**{**vars(safetensors), "write": write})
    monkeypatch.setitem(outputs.FORMATS, "safetensors", broken)
    with pytest.raises(ValueError, match="x4 is not what was written"):
        run(source(tmp_path), tmp_path / "out.safetensors", kind="any")
    assert hidden_or_new(tmp_path) == []
