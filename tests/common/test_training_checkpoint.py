"""Checkpoints on the disk: exact, verified, pruned with care, continued only by the run that wrote them."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from common.config import Config
from common.training.checkpoint import (
    DTYPES,
    MANIFEST,
    Facts,
    checkpoint_folder,
    checkpoints,
    open_checkpoint,
    save,
)
from common.training.loop import LoopConfig
from common.training.resume import best_score, newest_good, prune

from .toy_training import contents, train

SHARD = "state-00000-of-00001.safetensors"


class Empty(Config):
    pass


class Validated(Config):
    validation: str


def write(output, step, score=None, config=Empty(), **arrays):  # noqa: B008
    facts = Facts(step, config, "none", score=score)
    return save(output, facts, arrays or {"x": np.arange(step)}, lambda folder: None)


def flip_a_bit(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.fixture
def trained(tmp_path):
    train(tmp_path)
    return tmp_path


def test_every_dtype_comes_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, (6, 16), np.uint8)
    arrays = {name: np.ascontiguousarray(bits % 2 if name == "bool" else bits).view(name) for name in DTYPES}
    arrays |= {"scalar": np.array(7), "empty": np.zeros((0, 3), np.float16), "turned": bits.T}
    back = open_checkpoint(write(tmp_path, 1, **arrays)).state()
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes(), name


def test_a_dtype_that_numpy_lacks_is_refused(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with pytest.raises(ValueError, match=r"x is bfloat16, .*as its bits"):
        write(tmp_path, 1, x=np.zeros(2, ml_dtypes.bfloat16))
    assert not checkpoints(tmp_path)


def test_a_checkpoint_from_before_validations_could_be_owed(tmp_path):
    folder = write(tmp_path, 1, score=2.0)
    content = json.loads((folder / MANIFEST).read_text())
    del content["sha256"], content["validation_owed"]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps({"sha256": digest, **content}))
    found = open_checkpoint(folder)
    assert (found.score, found.validation_owed) == (2.0, False)


def test_a_rank_may_have_nothing_to_say(tmp_path):
    save(tmp_path, Facts(1, Empty(), "none"), {}, lambda folder: None)
    assert open_checkpoint(checkpoints(tmp_path)[0]).state() == {}


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: flip_a_bit(folder / SHARD), rf"{SHARD}: its content changed"),
        (lambda folder: flip_a_bit(folder / "model" / "config.json"), r"config.json: its content changed"),
        (lambda folder: (folder / SHARD).unlink(), rf"{SHARD}: is missing"),
        (lambda folder: (folder / SHARD).write_bytes(b"{}"), rf"{SHARD}: has 2 bytes, wanted"),
        (lambda folder: (folder / "manifest.json").unlink(), r"manifest.json: is missing"),
        (
            lambda folder: (folder / "manifest.json").write_text('{"step": '),
            r"manifest.json: wanted its manifest, got",
        ),
        (lambda folder: (folder / "manifest.json").write_text("[]"), r"manifest.json: is not a manifest"),
    ],
)
def test_a_damaged_newest_is_reported_and_the_one_before_used(trained, capsys, damage, told):
    wanted = contents(trained)
    newest = checkpoints(trained)[-1]
    damage(newest)
    with pytest.raises(ValueError, match=told):
        open_checkpoint(newest)
    capsys.readouterr()
    train(trained)
    messages = capsys.readouterr().err
    assert "warning: checkpoint" in messages
    assert f"resumed from {checkpoints(trained)[-2]}" in messages
    assert contents(trained) == wanted
    open_checkpoint(newest)


def test_a_changed_manifest_is_noticed(trained):
    file = checkpoints(trained)[-1] / "manifest.json"
    file.write_text(file.read_text().replace('"lr": 0.004', '"lr": 0.005'))
    with pytest.raises(ValueError, match=r"manifest.json: its content changed"):
        open_checkpoint(file.parent)


def test_none_good_is_an_error(trained):
    for folder in checkpoints(trained):
        flip_a_bit(folder / SHARD)
    before = contents(trained)
    with pytest.raises(ValueError, match=r"none of the 3 checkpoints is good(.|\n)*00000012(.|\n)*00000004"):
        train(trained)
    assert contents(trained) == before


def test_nothing_there_is_a_fresh_start(tmp_path):
    assert newest_good(tmp_path / "absent") is None


@pytest.mark.parametrize("name", [".step-00000008.tmp", "step-00000008.bak"])
def test_only_finished_names_count(tmp_path, name):
    write(tmp_path, 4)
    shutil.copytree(checkpoint_folder(tmp_path, 4), checkpoint_folder(tmp_path) / name)
    found = newest_good(tmp_path)
    assert found is not None
    assert found.step == 4


def test_a_renamed_checkpoint_is_refused(tmp_path):
    write(tmp_path, 4).rename(checkpoint_folder(tmp_path, 5))
    with pytest.raises(ValueError, match="the manifest is of step 4"):
        open_checkpoint(checkpoint_folder(tmp_path, 5))


def test_a_failing_export_leaves_nothing(tmp_path):
    def export(folder):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        save(tmp_path, Facts(1, Empty(), "none"), {"x": np.zeros(1)}, export)
    assert not checkpoints(tmp_path)


def steps(output):
    return [open_checkpoint(folder, verify=False).step for folder in checkpoints(output)]


def test_prune_keeps_the_last_and_the_best(tmp_path):
    for step, score in [(1, 3.0), (2, 1.0), (3, None), (4, 2.0), (5, 9.0), (6, None)]:
        write(tmp_path, step, score)
    assert best_score(tmp_path, 6, Empty()) == 1.0
    assert best_score(tmp_path, 1, Empty()) == 3.0
    prune(tmp_path, 6, Empty(), keep_last=7, keep_best=0)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    prune(tmp_path, 6, Empty(), keep_last=2, keep_best=2)
    assert steps(tmp_path) == [2, 4, 5, 6]
    prune(tmp_path, 6, Empty(), keep_last=1, keep_best=0)
    assert steps(tmp_path) == [6]


def test_scores_of_another_validation_do_not_count(tmp_path):
    write(tmp_path, 1, 1.0, config=Validated(validation="easy clips"))
    write(tmp_path, 2, 5.0, config=Validated(validation="hard clips"))
    now = Validated(validation="hard clips")
    assert best_score(tmp_path, 2, now) == 5.0
    write(tmp_path, 3, 9.0, config=now)
    prune(tmp_path, 3, now, keep_last=1, keep_best=1)
    assert steps(tmp_path) == [2, 3]


def test_prune_leaves_what_cannot_be_read_now(tmp_path, monkeypatch, capsys):
    for step in (1, 2, 3):
        write(tmp_path, step)

    def open_or_fail(folder, verify=True):
        if folder == checkpoint_folder(tmp_path, 1):
            raise OSError("stale file handle")
        return open_checkpoint(folder, verify)

    with monkeypatch.context() as patched:
        patched.setattr("common.training.resume.open_checkpoint", open_or_fail)
        prune(tmp_path, 3, Empty(), keep_last=1, keep_best=0)
    assert steps(tmp_path) == [1, 3]
    assert "stale file handle; it is left there" in capsys.readouterr().err


def test_prune_never_deletes_the_only_good_one(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    for step in (2, 3):
        (checkpoint_folder(tmp_path, step) / SHARD).unlink()
    prune(tmp_path, 1, Empty(), keep_last=1, keep_best=0)  # resumed from 1, before two damaged ones
    assert checkpoint_folder(tmp_path, 1).is_dir()
    write(tmp_path, 4)
    prune(tmp_path, 4, Empty(), keep_last=2, keep_best=0)
    assert steps(tmp_path) == [1, 4]


def test_another_config_is_refused_by_key(trained):
    with pytest.raises(ValueError, match=r"lr: 0\.004 there, 0\.1 here\n  seed: 3 there, 4 here$"):
        train(trained, "loop.steps=20", "lr=0.1", "seed=4")


def test_a_key_that_came_later_has_its_default(trained):
    manifest = checkpoints(trained)[-1] / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["config"]["seed"]
    manifest.write_text(json.dumps(content))
    assert train(trained, "loop.steps=13").step == 13
    with pytest.raises(ValueError, match=r"seed: 3 there, 4 here$"):
        train(trained, "loop.steps=14", "seed=4")


def test_loop_keys_and_the_output_may_change(trained, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved, ignore=shutil.ignore_patterns("moved"))
    assert train(moved, "loop.steps=14", "loop.checkpoint_every=7").step == 14


def test_resume_never_refuses_to_mix_runs(trained):
    with pytest.raises(ValueError, match=r"resume=never: .*step-00000012 is there already"):
        train(trained, "loop.resume=never")


def test_resume_from_a_path(trained, tmp_path):
    wanted = contents(trained)
    other = tmp_path / "other"
    train(other, f"loop.resume={checkpoints(trained)[0]}")
    assert (
        contents(other)["checkpoints/step-00000012/" + SHARD] == wanted["checkpoints/step-00000012/" + SHARD]
    )
    train(tmp_path / "run", f"loop.resume={trained}", "loop.steps=13")
    with pytest.raises(ValueError, match=r"step-00000012 would be mixed with the new run"):
        train(trained, f"loop.resume={checkpoints(trained)[0]}")
    with pytest.raises(ValueError, match="no checkpoint there; wanted auto, never"):
        train(tmp_path / "new", "loop.resume=newest")


def test_the_manifest_tells_step_config_and_files(trained):
    manifest = json.loads((checkpoints(trained)[-1] / "manifest.json").read_text())
    assert manifest["step"] == 12
    assert manifest["config"]["loop"] == json.loads(
        LoopConfig(steps=12, checkpoint_every=4, validate_every=4, log_every=5).model_dump_json()
    )
    assert {"commit", "seconds", "score", "ranks"} <= manifest.keys()
    assert set(manifest["files"]) == {
        SHARD,
        "model/config.json",
        "model/diffusion_pytorch_model.safetensors",
    }
