"""Weights on disk: nothing lost, nothing half written, every wrong key named."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from common.checkpoint import (
    StoredWeights,
    check_weights,
    finite,
    read_metadata,
    save_weights,
    shapes_of,
    weight_files,
)
from common.errors import InputError
from common.files import whole_file, write_json
from common.models import TransformerConfig
from common.runs import ModelSource

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4000000000\n"
WEIGHTS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.bias": np.float16([1, 2]),
    "c": np.int64([[3]]),
    "scalar": np.float32(1.5).reshape(()),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
}


@pytest.mark.parametrize("limit", [10**9, 40], ids=["one file", "shards"])
def test_round_trip(tmp_path, limit):
    save_weights(tmp_path, WEIGHTS, {"width": 4}, limit)
    stored = StoredWeights(tmp_path)
    assert set(stored) == set(WEIGHTS)
    for name, array in WEIGHTS.items():
        assert stored[name].dtype == array.dtype
        np.testing.assert_array_equal(stored[name], array)
    assert shapes_of(stored) == shapes_of(WEIGHTS)
    assert json.loads((tmp_path / "config.json").read_text()) == {"width": 4}
    files = weight_files(tmp_path)
    assert len(files) == (1 if limit > 40 else 2)
    assert json.loads(read_metadata(files[0])["config"]) == {"width": 4}
    assert not list(tmp_path.glob(".*")), "a temporary file stayed"


def test_bfloat16_is_widened(tmp_path):
    values = np.float32([1.0, -2.5, 3.140625])
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    header = json.dumps({"x": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bits.tobytes())
    np.testing.assert_array_equal(StoredWeights(path)["x"], values)


def test_every_wrong_key_is_listed_at_once():
    expected = {"kept": (2,), "gone": (3,), "bent": (4, 5)}
    given = {"kept": (2,), "new": (1,), "bent": (5, 4)}
    with pytest.raises(ValueError, match="1 missing, 1 unexpected, 1 misshapen") as caught:
        check_weights(expected, given, "transformer x")
    text = str(caught.value)
    assert "missing gone (3,)" in text
    assert "unexpected new (1,)" in text
    assert "misshapen bent: file has (5, 4), model wants (4, 5)" in text


def test_missing_shard(tmp_path):
    save_weights(tmp_path, WEIGHTS, {}, 40)
    weight_files(tmp_path)[0].unlink()
    with pytest.raises(ValueError, match="names files that are not there: diffusion_pytorch_model-00001"):
        StoredWeights(tmp_path)


def test_no_weights_and_wrong_format(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        StoredWeights(tmp_path / "absent")
    (tmp_path / "model.ckpt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"found model\.ckpt; convert"):
        StoredWeights(tmp_path)
    (tmp_path / "m.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        StoredWeights(tmp_path)


def test_truncated_file_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"x": np.zeros(1000, np.float32)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        StoredWeights(path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})

    def fail():
        with whole_file(path) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match="No space left on device"):
        fail()
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_others_may_read_what_was_written(tmp_path):
    """As any file that a program of this user writes."""
    (tmp_path / "plain").touch()
    save_weights(tmp_path, {"w": np.zeros(3, np.float32)}, {})
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "plain").stat().st_mode}


def put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"x": np.full(2, value, np.float32)}, path)
    return path


@pytest.mark.parametrize(
    "other", ["a.safetensors", "z.safetensors", "diffusion_pytorch_model.fp16.safetensors"]
)
def test_several_candidates_are_named_and_the_default_name_wins(tmp_path, other):
    put(tmp_path / "m.safetensors", 1)
    put(tmp_path / other, 2)
    with pytest.raises(InputError, match=r"found .*, .*; give the file you mean as path") as caught:
        weight_files(tmp_path)
    assert "m.safetensors" in str(caught.value)
    assert other in str(caught.value)
    assert weight_files(tmp_path / other) == [tmp_path / other]
    default = put(tmp_path / "diffusion_pytorch_model.safetensors", 3)
    assert weight_files(tmp_path) == [default]


def test_an_index_and_a_file_under_the_default_name(tmp_path):
    save_weights(tmp_path, WEIGHTS, {}, 40)
    shards = weight_files(tmp_path)
    put(tmp_path / "stale.safetensors", 1)
    assert weight_files(tmp_path) == shards
    put(tmp_path / "diffusion_pytorch_model.safetensors", 1)
    index = "diffusion_pytorch_model.safetensors.index.json"
    with pytest.raises(InputError, match=rf"found {index}, diffusion_pytorch_model\.safetensors.*; give"):
        weight_files(tmp_path)
    assert weight_files(tmp_path / index) == shards


def test_what_is_no_weight_file(tmp_path):
    """Hidden files, as macOS leaves them, and folders."""
    only = put(tmp_path / "m.safetensors", 1)
    (tmp_path / "._m.safetensors").write_bytes(b"Mac OS X")
    (tmp_path / "f.safetensors").mkdir()
    assert weight_files(tmp_path) == [only]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "got none or an empty one; download it again"),
        ('{"metadata": {}}', "got none or an empty one; download it again"),
        ('{"weight_map": {}}', "got none or an empty one; download it again"),
        ('{"weight_map": {"x": 3}}', "got none or an empty one; download it again"),
        ('{"weight_map": {"x": "/m.safetensors"}}', "wanted files in its own folder; download it again"),
        ('{"weight_map": {"x": "../m.safetensors"}}', "wanted files in its own folder; download it again"),
        ("{", "wanted an index of weight files, got Expecting .*; write or download it again"),
        ("[" * 100_000, "wanted an index of weight files, got .*recursion.*; write or download it again"),
        ('{"weight_map": ' + "1" * 5000 + "}", "wanted an index of weight files, got Exceeds the limit"),
        (LFS.decode(), "wanted an index of weight files, got a Git LFS pointer .* `git lfs pull`"),
    ],
)
def test_an_index_that_is_none(tmp_path, text, message):
    (tmp_path / "m.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match=rf"m\.safetensors\.index\.json: .*{message}") as caught:
        StoredWeights(tmp_path)
    assert "\n" not in str(caught.value)


def test_shards_of_two_models(tmp_path):
    """A tensor that two files hold would be whichever is read last."""
    for name in ("a", "b"):
        put(tmp_path / f"{name}.safetensors", 1)
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    write_json(tmp_path / "m.safetensors.index.json", index)
    with pytest.raises(
        InputError, match=r"x is in a\.safetensors and in b\.safetensors; shards of two models"
    ):
        StoredWeights(tmp_path)


def test_a_git_lfs_pointer(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(LFS)
    with pytest.raises(InputError, match=r"m\.safetensors: .*got a Git LFS pointer .* `git lfs pull`"):
        StoredWeights(path)


@pytest.mark.parametrize(("spelling", "size"), [("F8_E4M3", 1), ("F8_E5M2", 1), ("C64", 8)])
def test_element_types_that_numpy_lacks(tmp_path, spelling, size):
    entry = {"dtype": spelling, "shape": [3], "data_offsets": [0, 3 * size]}
    header = json.dumps({"x": entry}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(3 * size))
    with pytest.raises(
        InputError, match=rf"m\.safetensors: x has elements of type {spelling}, wanted .*BF16"
    ):
        StoredWeights(path)


def test_placeholders_hold_no_values():
    expected = {"a": (2, 3), "b": (4,), "c": (5,), "empty": (0, 4)}
    given = {"a": (0,), "b": (0,), "c": (0,), "empty": (0, 4)}
    message = r"model x: 3 tensors hold no values \(a, b, \.\.\.\), wanted whole ones: .* zero_to_fp32\.py"
    with pytest.raises(InputError, match=message):
        check_weights(expected, given, "model x")
    check_weights(expected, expected, "model x")


def test_a_checkpoint_of_a_trainer_names_the_models_inside(tmp_path):
    for name in ("model", "model_ema"):
        save_weights(tmp_path / name, {"x": np.ones(2, np.float32)}, {})
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl", "latest"):
        (tmp_path / name).write_bytes(b"")
    inside = f"the models inside are {tmp_path / 'model'}, {tmp_path / 'model_ema'}: give one of them"
    with pytest.raises(InputError, match=re.escape(f"found no weights; {inside}")):
        weight_files(tmp_path)
    with pytest.raises(InputError, match=re.escape(inside)):
        ModelSource(path=str(tmp_path)).resolve(TransformerConfig, "transformer")
    ModelSource(path=str(tmp_path / "model_ema")).resolve(TransformerConfig, "transformer")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_weights_that_are_not_finite(value, dtype):
    weights = {"x": np.array([[1, value], [value, 2]], dtype), "n": np.array([3])}
    message = r"model y: 2 of 4 values of x are not finite; .* take an earlier checkpoint"
    with pytest.raises(InputError, match=message):
        finite(weights, "x", "model y")
    weights["x"][~np.isfinite(weights["x"])] = np.finfo(dtype).max
    np.testing.assert_array_equal(finite(weights, "x", "model y"), weights["x"])
    np.testing.assert_array_equal(finite(weights, "n", "model y"), [3])
