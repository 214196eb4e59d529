"""Weights on disk: nothing lost, nothing half written, every wrong key named."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from common.checkpoint import (
    StoredWeights,
    check_weights,
    read_metadata,
    save_weights,
    shapes_of,
    weight_files,
)
from common.files import whole_file, write_json

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
