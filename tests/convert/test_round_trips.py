"""Every format into every other and back: not a bit is lost. The formats' own libraries agree."""

import json

import numpy as np
import pytest

from common.checkpoint import StoredWeights, read_metadata, weight_files
from tools.convert import mindspore_file
from tools.convert import tensors as tensor_module

from .helpers import command, every_dtype, raw, read_raw, run, temporary_files, write_safetensors

FORMATS = [
    ".safetensors",
    ".ckpt",
    pytest.param(".pt", marks=pytest.mark.pt),
    pytest.param(".bin", marks=pytest.mark.pt),
]


@pytest.mark.parametrize("suffix", FORMATS)
def test_there_and_back_is_bit_exact(tmp_path, suffix):
    tensors = every_dtype()
    source = write_safetensors(tmp_path / "in.safetensors", tensors)
    run(source, tmp_path / f"there{suffix}", kind="any")
    run(tmp_path / f"there{suffix}", tmp_path / "back.safetensors", kind="any")
    assert read_raw(tmp_path / f"there{suffix}") == tensors
    assert read_raw(tmp_path / "back.safetensors") == tensors
    assert not temporary_files(tmp_path)


def test_the_same_file_twice(tmp_path):
    source = write_safetensors(tmp_path / "in.safetensors", every_dtype())
    for name in ("a", "b"):
        run(source, tmp_path / name, kind="any")
    a, b = ((tmp_path / name / "diffusion_pytorch_model.safetensors").read_bytes() for name in ("a", "b"))
    assert a == b, "the result must depend on the input only"


@pytest.mark.parametrize("limit_bytes", [16, 64, 200, 10**6])
def test_shards_and_merging(tmp_path, limit_bytes):
    tensors = every_dtype()
    source = write_safetensors(tmp_path / "in.safetensors", tensors)
    run(source, tmp_path / "shards", kind="any", shard_gb=limit_bytes / 1e9)
    files = weight_files(tmp_path / "shards")
    assert (len(files) > 1) == (limit_bytes < 10**6)
    for file in files:
        held = read_raw(file)
        assert len(held) == 1 or sum(len(data) for *_, data in held.values()) <= limit_bytes
    assert set(StoredWeights(tmp_path / "shards")) == set(tensors)
    run(tmp_path / "shards", tmp_path / "whole", kind="any")
    assert read_raw(tmp_path / "whole" / "diffusion_pytorch_model.safetensors") == tensors
    if len(files) > 1:
        index = json.loads((tmp_path / "shards/diffusion_pytorch_model.safetensors.index.json").read_text())
        assert list(index["weight_map"]) == list(read_raw(source))
        assert index["metadata"]["total_size"] == sum(len(data) for *_, data in tensors.values())
        run(
            tmp_path / "shards" / "diffusion_pytorch_model.safetensors.index.json", tmp_path / "b", kind="any"
        )
        (tmp_path / "shards" / "diffusion_pytorch_model.safetensors.index.json").unlink()
        run(tmp_path / "shards", tmp_path / "c", kind="any")  # complete by their numbering
        assert read_raw(tmp_path / "c" / "diffusion_pytorch_model.safetensors") == tensors


def test_wide_elements_are_aligned(tmp_path):
    tensors = {"a": ("int8", (3,), b"abc"), "b": ("float64", (1,), bytes(8)), "c": ("float16", (1,), b"ab")}
    run(write_safetensors(tmp_path / "in.safetensors", tensors), tmp_path / "out.safetensors", kind="any")
    data = (tmp_path / "out.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    for name, entry in json.loads(data[8 : 8 + length]).items():
        assert name == "__metadata__" or entry["data_offsets"][0] % {"a": 1, "b": 8, "c": 2}[name] == 0


def test_metadata_tells_where_the_file_is_from(tmp_path):
    source = write_safetensors(tmp_path / "in.safetensors", raw({"x": np.float32([1])}))
    (tmp_path / "config.json").write_text('{"width": 4}')
    told = run(source, tmp_path / "out", kind="any")
    metadata = read_metadata(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    digest = metadata["source_sha256"].split()[0]
    assert metadata["source_sha256"] == f"{digest}  in.safetensors"
    assert len(digest) == 64
    assert metadata["format"] == "pt"
    assert "tools.convert" in metadata["tool"]
    assert json.loads(metadata["config"]) == {"width": 4}
    assert any(digest in line and "read" in line for line in told)
    assert any("wrote" in line and "sha256" in line for line in told)


def test_no_framework_is_imported_where_none_is_needed(tmp_path):
    write_safetensors(tmp_path / "in.safetensors", every_dtype())
    block = "sys.modules.update(torch=None, mindspore=None, mindone=None)"
    for source, destination in (("in.safetensors", "a.ckpt"), ("a.ckpt", "b.safetensors")):
        done = command(tmp_path / source, tmp_path / destination, "--kind", "any", code=block)
        assert done.returncode == 0, done.stderr


@pytest.mark.pt
def test_torch_reads_and_writes_the_same(tmp_path):
    import torch

    tensors = every_dtype()
    run(write_safetensors(tmp_path / "in.safetensors", tensors), tmp_path / "out.pt", kind="any")
    loaded = torch.load(tmp_path / "out.pt", weights_only=True)
    for name, (dtype, shape, data) in tensors.items():
        assert loaded[name].dtype == getattr(torch, dtype)
        assert tuple(loaded[name].shape) == shape
        assert loaded[name].reshape(-1).view(torch.uint8).numpy().tobytes() == data
    views = {
        "transposed": torch.arange(12.0).reshape(3, 4).t(),
        "strided": torch.arange(20, dtype=torch.bfloat16)[3:17:2],
        "expanded": torch.tensor([1.0, 2.0]).reshape(2, 1).expand(2, 3),
        "inner": torch.arange(100)[10:20],
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    }
    for zipped in (True, False):
        torch.save(views, tmp_path / "views.pt", _use_new_zipfile_serialization=zipped)
        told = run(tmp_path / "views.pt", tmp_path / f"{zipped}.safetensors", kind="any")
        assert any("as a whole" in line for line in told) != zipped
        result = read_raw(tmp_path / f"{zipped}.safetensors")
        for name, tensor in views.items():
            plain = tensor.detach().contiguous()
            assert result[name][2] == plain.view(torch.uint8).numpy().tobytes()
            assert result[name][1] == tuple(tensor.shape)


@pytest.mark.pt
def test_weights_saved_on_an_accelerator(tmp_path, monkeypatch):
    import torch

    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:3")
        torch.save({"x": torch.arange(6.0)}, tmp_path / "gpu.pt")
    run(tmp_path / "gpu.pt", tmp_path / "out.safetensors", kind="any")
    assert read_raw(tmp_path / "out.safetensors")["x"][2] == np.arange(6, dtype=np.float32).tobytes()


@pytest.mark.ms
def test_mindspore_reads_and_writes_the_same(tmp_path):
    import mindspore
    from mindspore import Tensor

    tensors = {n: t for n, t in every_dtype().items() if not n.endswith("empty")}  # which it cannot save
    run(write_safetensors(tmp_path / "in.safetensors", tensors), tmp_path / "out.ckpt", kind="any")
    loaded = mindspore.load_checkpoint(str(tmp_path / "out.ckpt"))
    for name, (dtype, shape, data) in tensors.items():
        assert str(loaded[name].dtype).lower() == dtype
        assert loaded[name].shape == shape
        assert bytes(loaded[name].get_bytes()) == data
    order = list(read_raw(tmp_path / "out.ckpt"))
    save = [{"name": name, "data": Tensor(loaded[name])} for name in order]
    mindspore.save_checkpoint(save, str(tmp_path / "theirs.ckpt"))
    assert (tmp_path / "theirs.ckpt").read_bytes() == (tmp_path / "out.ckpt").read_bytes()
    mindspore.save_checkpoint(
        save, str(tmp_path / "more.ckpt"), append_dict={"epoch_num": 3, "note": "a text"}, crc_check=True
    )
    told = run(tmp_path / "more.ckpt", tmp_path / "back.safetensors", kind="any", drop=("epoch_num",))
    assert read_raw(tmp_path / "back.safetensors") == tensors
    assert any("left out: note" in line for line in told)


@pytest.fixture
def sliced(tmp_path, monkeypatch):
    """A MindSpore file with parameters cut into slices, and what it holds."""
    monkeypatch.setattr(mindspore_file, "SLICE_BYTES", 48)
    monkeypatch.setattr(tensor_module, "PIECE_BYTES", 32)
    arrays = {"a": np.arange(50, dtype=np.float32).reshape(5, 10), "b": np.arange(6.0), "c": np.float32(7)}
    run(write_safetensors(tmp_path / "in.safetensors", raw(arrays)), tmp_path / "out.ckpt", kind="any")
    return tmp_path / "out.ckpt", arrays


def test_sliced_parameters(tmp_path, sliced):
    path, arrays = sliced
    assert path.read_bytes().count(b"Float32") == 5 + 1  # slices of a, and c
    assert read_raw(path) == raw(arrays)
    run(path, tmp_path / "back.safetensors", kind="any")
    assert read_raw(tmp_path / "back.safetensors") == raw(arrays)


@pytest.mark.ms
def test_mindspore_joins_slices(sliced):
    import mindspore

    path, arrays = sliced
    loaded = mindspore.load_checkpoint(str(path))
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name].asnumpy(), array)
