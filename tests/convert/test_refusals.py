"""What is refused: in one line that says where, what was there and what to do, and nothing is written."""

import json
import os

import numpy as np
import pytest

from .helpers import command, golden, raw, run, temporary_files, write_config, write_safetensors

WEIGHTS = raw({"x": np.arange(6, dtype=np.float32)})


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Custom:
    """Any class that is not a tensor or a plain container."""


def refused(source, *, destination=None, match, **options):
    destination = destination or source.parent / "refused"
    with pytest.raises(ValueError, match=match) as caught:
        run(source, destination, **{"kind": "any", **options})
    assert "\n" not in str(caught.value)
    assert not destination.exists() or destination == source
    assert not temporary_files(source.parent)


@pytest.mark.pt
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_pickles_that_run_code(tmp_path, zipped):
    import torch

    path, touched = tmp_path / "c.pt", tmp_path / "touched"
    torch.save({"x": torch.ones(2), "y": Payload(touched)}, path, _use_new_zipfile_serialization=zipped)
    refused(path, match=r"c\.pt: refused, because loading it would run posix\.system; wanted tensors")
    torch.save({"x": torch.ones(2), "y": Custom()}, path, _use_new_zipfile_serialization=zipped)
    refused(path, match=r"would run .*Custom; .* save the state_dict alone")
    torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=zipped)
    refused(path, match=r"would run torch\.nn\.modules\.linear\.Linear")
    assert not touched.exists()


@pytest.mark.pt
def test_what_is_no_plain_tensor(tmp_path):
    import torch

    path = tmp_path / "c.pt"
    torch.save({"a": {"x": torch.ones(2).to_sparse()}}, path)
    refused(path, match=r"c\.pt: a\.x is sparse, quantized")
    torch.save({"x": torch.ones(2, dtype=torch.complex64)}, path)
    refused(path, match="x: element type complex64 is not one of float64, ")
    torch.save({"epoch": 3}, path)
    refused(path, match="found no tensor; wanted a dictionary of tensors")
    torch.save({"optimizer": {"state": {0: torch.ones(2)}}, "loss": {"w": torch.ones(2)}}, path)
    refused(path, match="found optimizer, loss; wanted a dictionary of tensors")
    cycle: dict = {"x": torch.ones(2)}
    cycle["again"] = cycle
    torch.save(cycle, path)
    refused(path, match=r"c\.pt: its dictionaries are nested more than 32 deep, or hold themselves; save")


@pytest.mark.pt
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_pytorch_files_cut_off(tmp_path, zipped, keep):
    import torch

    path = tmp_path / "c.pt"
    torch.save({f"x{i}": torch.ones(100) for i in range(5)}, path, _use_new_zipfile_serialization=zipped)
    os.truncate(path, int(path.stat().st_size * keep))
    refused(path, match=r"c\.pt.*: (not a whole PyTorch checkpoint|begins with b'')")


@pytest.mark.pt
def test_a_zip_that_lies_about_its_tensors(tmp_path):
    import zipfile

    import torch

    torch.save({"x": torch.ones(100)}, tmp_path / "c.pt")
    with zipfile.ZipFile(tmp_path / "c.pt") as old, zipfile.ZipFile(tmp_path / "short.pt", "w") as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info.filename, data[:100] if info.filename.endswith("data/0") else data)
    refused(tmp_path / "short.pt", match="x: wants 400 bytes at [0-9]+, there are")
    with zipfile.ZipFile(tmp_path / "c.pt") as old, zipfile.ZipFile(tmp_path / "packed.pt", "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info), zipfile.ZIP_DEFLATED)
    refused(tmp_path / "packed.pt", match="is compressed")


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_other_files_cut_off_or_damaged(tmp_path, suffix, keep):
    path = tmp_path / f"c{suffix}"
    run(
        write_safetensors(tmp_path / "in.safetensors", {**WEIGHTS, **raw({"y": np.ones(9)})}),
        path,
        kind="any",
    )
    whole = path.read_bytes()
    os.truncate(path, int(len(whole) * keep))
    refused(path, match=r"c\.\w+: (not a whole (safetensors file|MindSpore \.ckpt)|begins with b'')")
    path.write_bytes(b"\xff" * 100)
    refused(path, match=r"c\.\w+: (not a whole safetensors file|begins with)")
    path.write_bytes(b"\x0a\xff\xff\xff" * 100)
    refused(path, match=r"c\.\w+: not a whole (safetensors file|MindSpore \.ckpt)")


def test_mindspore_files_with_a_wrong_checksum(tmp_path):
    import zlib

    run(write_safetensors(tmp_path / "in.safetensors", WEIGHTS), tmp_path / "c.ckpt", kind="any")
    data = (tmp_path / "c.ckpt").read_bytes()
    crc = zlib.crc32(data)
    (tmp_path / "c.ckpt").write_bytes(data + b"crc_num" + crc.to_bytes(10, "big"))
    run(tmp_path / "c.ckpt", tmp_path / "good.safetensors", kind="any")
    (tmp_path / "c.ckpt").write_bytes(data + b"crc_num" + (crc ^ 1).to_bytes(10, "big"))
    refused(tmp_path / "c.ckpt", match="its checksum is wrong; copy it again")


def test_a_file_that_shrinks_while_it_is_read(tmp_path, monkeypatch):
    source = write_safetensors(tmp_path / "in.safetensors", WEIGHTS)
    monkeypatch.setattr(
        "tools.convert.job.check_room", lambda *_: os.truncate(source, source.stat().st_size - 8)
    )
    refused(source, match="ends .* bytes before a tensor does; it was cut off or changed while it was read")


def test_suffixes(tmp_path):
    (tmp_path / "weights.npz").write_bytes(b"PK\x03\x04")
    refused(tmp_path / "weights.npz", match=r"got the suffix '\.npz', wanted \.safetensors, \.ckpt, ")
    source = write_safetensors(tmp_path / "in.safetensors", WEIGHTS)
    refused(source, destination=tmp_path / "out.onnx", match=r"out\.onnx: got the suffix '\.onnx', wanted")
    refused(
        source, destination=tmp_path / "out.ckpt", to="safetensors", match=r"--to safetensors wants a name"
    )
    refused(source, destination=tmp_path / "out.h5", match=r"out\.h5: got the suffix '\.h5', wanted")
    refused(source, destination=source, match="is the file that is read")
    refused(tmp_path / "absent", match="no such file or folder")
    refused(
        source, destination=tmp_path / "out.ckpt", shard_gb=1, match="--shard-gb 1 wants a positive number"
    )
    refused(source, shard_gb=0.0, match="--shard-gb 0 wants a positive number")
    run(source, tmp_path / "model_v1.3.0", kind="any")  # a directory may have a dot
    assert (tmp_path / "model_v1.3.0").is_dir()
    run(source, tmp_path / "folder", kind="any", to="ckpt")
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["diffusion_pytorch_model.ckpt"]


def test_kinds(tmp_path):
    weights, config = golden("text_encoder_mt5")
    write_config(tmp_path, config)
    source = write_safetensors(tmp_path / "t5.safetensors", raw(weights))
    refused(source, kind="vae", match="has the parameters of kind text, wanted vae; correct --kind")
    other = write_safetensors(tmp_path / "other.safetensors", WEIGHTS)
    refused(other, kind="auto", match="parameters like x are of no kind we know, .* use --kind any")
    refused(other, drop=("y",), match="no name begins with y; correct --drop")
    refused(other, drop=("x",), match="no tensor is left")


def test_folders(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "flax_model.msgpack.index.json").write_text("{}")
    refused(folder, match=r"found flax_model\.msgpack\.index\.json; wanted a file that ends")
    (folder / "flax_model.msgpack.index.json").unlink()
    refused(folder, match=r"found nothing; wanted a file that ends in \.safetensors")
    for i in (1, 3):
        write_safetensors(folder / f"m-0000{i}-of-00003.safetensors", raw({f"x{i}": np.float32([1])}))
    refused(folder, match=r"their numbering wants m-00002-of-00003\.safetensors, not there; download")
    index = folder / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))
    refused(
        folder, match=r"found m\.safetensors\.index\.json, m-00001-of-00003\.safetensors; wanted one model"
    )
    refused(index, match=r"m\.safetensors\.index\.json wants gone\.safetensors, not there; download")
    shards = {f"x{i}": f"m-0000{i}-of-00003.safetensors" for i in (1, 3)}
    index.write_text(json.dumps({"weight_map": {**shards, "x2": shards["x1"]}}))
    refused(folder, match="the index lists 1 tensors that no file holds, as x2; download")
    for foreign in ("[]", "{}", '{"weight_map": {}}', '{"weight_map": {"x": 3}}'):
        index.write_text(foreign)
        refused(folder, match=r"m\.safetensors\.index\.json: wanted an index with a weight_map .*download it")
    index.write_text("not JSON")
    refused(folder, match=r"m\.safetensors\.index\.json: wanted an index of weight files, got Expecting")
    index.write_text(json.dumps({"weight_map": {"x": "../other/m.safetensors"}}))
    refused(folder, match=r"names \.\./other/m\.safetensors, wanted files in its own folder; download")
    (folder / "m.safetensors.index.json").unlink()
    write_safetensors(folder / "m-00002-of-00003.safetensors", raw({"x1": np.float32([1])}))
    refused(folder, match="x1 is in more than one file")
    write_safetensors(folder / "another.safetensors", WEIGHTS)
    refused(folder, match=r"found another\.safetensors, m-00001-of-00003.safetensors; wanted one model")


def test_a_directory_that_holds_weights_is_left_alone(tmp_path):
    source = write_safetensors(tmp_path / "in.safetensors", WEIGHTS)
    run(source, tmp_path / "out", kind="any")
    before = (tmp_path / "out" / "diffusion_pytorch_model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"holds diffusion_pytorch_model\.safetensors already"):
        run(source, tmp_path / "out", kind="any")
    assert (tmp_path / "out" / "diffusion_pytorch_model.safetensors").read_bytes() == before


def test_two_tensors_of_one_name(tmp_path):
    weights, config = golden("text_encoder_mt5")
    name = min(weights)
    twice = raw({**weights, f"module.{name}": weights[name]})
    refused(
        write_safetensors(tmp_path / "in.safetensors", twice),
        kind="auto",
        match=f"two tensors are called {name} once prefixes are removed",
    )


def test_element_types_that_not_all_can_hold(tmp_path):
    tensors = {"x": ("float8_e4m3fn", (4,), b"abcd")}
    refused(
        write_safetensors(tmp_path / "in.safetensors", tensors), match="x: element type F8_E4M3 is not one of"
    )


@pytest.mark.parametrize("there", ["c.pt", "in.safetensors"])
def test_torch_is_missing(tmp_path, monkeypatch, there):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    write_safetensors(tmp_path / "in.safetensors", WEIGHTS)
    (tmp_path / "c.pt").write_bytes(b"PK\x03\x04")
    refused(
        tmp_path / there,
        destination=tmp_path / ("out.bin" if there == "in.safetensors" else "out"),
        match=r"package torch is not installed, .* pip install -r requirements-pt\.txt, or convert where",
    )


@pytest.mark.pt
def test_torch_is_too_old(tmp_path, monkeypatch):
    import torch

    torch.save({"x": torch.ones(2)}, tmp_path / "c.pt")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    refused(tmp_path / "c.pt", match=r"torch 2\.5\.1\+cpu is too old; install torch 2\.6 or newer")


def test_exit_codes(tmp_path):
    source = write_safetensors(tmp_path / "in.safetensors", WEIGHTS)
    done = command(source, tmp_path / "out.safetensors")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    done = command(source, tmp_path / "out.safetensors", "--kind", "any")
    assert (done.returncode, done.stderr) == (0, "")
    assert "verified  1 tensors" in done.stdout
    assert command(source).returncode == 2
