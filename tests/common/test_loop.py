"""The training loop: killed, interrupted and resumed it ends where an uninterrupted run does."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from common.checkpoint import read_safetensors
from common.training.checkpoint import checkpoints, open_checkpoint
from common.training.interrupts import Interrupts
from common.training.log import read_rows
from common.training.loop import LoopConfig, Validation, run_loop

from .toy_training import Toy, contents, toy_config, train

ROOT = Path(__file__).resolve().parents[2]
RESUMED = ["step 7", "write 8", "validate 8", "validate 12", "step 1"]


def run(folder, *overrides, die="none 0", nan="0"):
    words = [sys.executable, "-m", "tests.common.toy_training", str(folder), *overrides]
    environment = {**os.environ, "TOY_DIE": die, "TOY_NAN": nan, "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def judged_steps(folder):
    return [row["step"] for row in read_rows(folder / "losses.jsonl") if "validation/score" in row]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


def test_a_run_leaves_log_checkpoints_models_and_report(whole):
    rows = read_rows(whole / "losses.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert judged_steps(whole) == [4, 8, 12]
    assert [folder.name for folder in checkpoints(whole)] == [f"step-{n:08d}" for n in (4, 8, 12)]
    newest = open_checkpoint(checkpoints(whole)[-1])
    assert newest.score == rows[-1]["validation/score"]
    state = newest.state()
    assert {name: array.dtype.name for name, array in state.items()} == {
        "weight": "float32",
        "momentum": "float16",
        "done": "int64",
    }
    model = read_safetensors(newest.model / "diffusion_pytorch_model.safetensors")
    assert np.array_equal(model["weight"], state["weight"])
    report = json.loads((whole / "train.json").read_text())
    assert report["finished"]
    assert report["config"]["lr"] == 0.004
    assert len(list((whole / "tensorboard").iterdir())) == 1


@pytest.mark.parametrize("die", RESUMED)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, whole, die):
    assert run(tmp_path, die=die).returncode == -9
    assert len(checkpoints(tmp_path)) < 3 or open_checkpoint(checkpoints(tmp_path)[-1]).validation_owed
    train(tmp_path)
    assert contents(tmp_path) == contents(whole)
    for ours, theirs in zip(checkpoints(tmp_path), checkpoints(whole), strict=True):
        assert open_checkpoint(ours).score == open_checkpoint(theirs).score


def test_a_validation_that_dies_costs_no_step(tmp_path, whole):
    """The step's checkpoint is written before, owing the validation, which the next session begins with."""
    assert run(tmp_path, die="validate 8").returncode == -9
    newest = open_checkpoint(checkpoints(tmp_path)[-1])
    assert (newest.step, newest.score, newest.validation_owed) == (8, None, True)
    assert run(tmp_path, "loop.steps=8", die="step 9").returncode == 0
    judged = open_checkpoint(newest.folder)
    assert judged.score == open_checkpoint(checkpoints(whole)[1]).score
    assert not judged.validation_owed
    assert judged_steps(tmp_path) == [4, 8]
    assert "8 of 8 steps are done already" in run(tmp_path, "loop.steps=8").stderr


def test_killed_at_every_file_operation(tmp_path):
    done = run("crash", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 40


@pytest.mark.parametrize(("die", "code"), [("term 6", 143), ("int 6", 130)])
def test_a_signal_finishes_the_step_and_writes_a_checkpoint(tmp_path, whole, die, code):
    stopped = run(tmp_path, die=die)
    assert stopped.returncode == code
    assert "stopped after step 6; to continue, run it again with resume=auto" in stopped.stderr
    assert checkpoints(tmp_path)[-1].name == "step-00000006"
    train(tmp_path)
    assert (tmp_path / "losses.jsonl").read_bytes() == (whole / "losses.jsonl").read_bytes()
    assert contents(tmp_path).items() >= {k: v for k, v in contents(whole).items() if "12/" in k}.items()


def test_a_signal_does_not_wait_for_a_validation(tmp_path, whole):
    assert run(tmp_path, die="term 8").returncode == 143
    assert open_checkpoint(checkpoints(tmp_path)[-1]).validation_owed
    assert "validation/score" not in read_rows(tmp_path / "losses.jsonl")[-1]
    train(tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_what_is_owed_can_be_waived(tmp_path):
    assert run(tmp_path, die="validate 8").returncode == -9
    train(tmp_path, "loop.validate_every=0")
    assert judged_steps(tmp_path) == [4]


def test_a_second_signal_stops_at_once():
    with Interrupts() as interrupts:
        interrupts._note(2, None)
        with pytest.raises(SystemExit) as stop:
            interrupts._note(2, None)
    assert stop.value.code == interrupts.exit_code == 130


def test_a_worker_still_ends_when_told():
    with Interrupts():
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGINT)  # its parent's business
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143


def test_not_finite_stops_before_the_update(tmp_path):
    stopped = run(tmp_path, nan="7")
    assert stopped.returncode == 1
    told = stopped.stderr.splitlines()[-1]
    for word in ("step 7", "loss", "clip-6-0.mp4, clip-6-1.mp4", "as before the step"):
        assert word in told
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-00000004"]
    assert read_rows(tmp_path / "losses.jsonl")[-1]["step"] == 6


def test_a_scalar_that_is_not_finite_is_never_saved(tmp_path):
    config = toy_config(tmp_path)
    toy = Toy(config)
    toy.step = lambda step, batch: {"loss": 1.0, "kl": float("inf") if step == 3 else 0.0}
    with pytest.raises(ValueError, match=r"step 4: .* kl; the batch: clip-3"):
        run_loop(toy, toy.batches, config.loop, tmp_path, config)
    assert not checkpoints(tmp_path)


def test_max_seconds_stops_with_a_checkpoint(tmp_path, whole):
    outcome = train(tmp_path, "loop.max_seconds=1e-9")
    assert (outcome.step, outcome.finished) == (1, False)
    while not train(tmp_path, "loop.max_seconds=1e-9", "loop.keep_last=1").finished:
        pass
    assert (tmp_path / "losses.jsonl").read_bytes() == (whole / "losses.jsonl").read_bytes()
    seconds = [open_checkpoint(folder).seconds for folder in checkpoints(tmp_path)]
    assert seconds == sorted(seconds)


def test_a_finished_run_does_nothing_and_a_longer_one_continues(tmp_path, whole, capsys):
    assert train(tmp_path, "loop.steps=8").step == 8
    before = contents(tmp_path)
    assert train(tmp_path, "loop.steps=8").checkpoint is None
    assert "8 of 8 steps are done already" in capsys.readouterr().err
    assert contents(tmp_path) == before
    train(tmp_path, "loop.log_every=1")
    assert contents(tmp_path) == contents(whole)


def test_the_best_is_kept(tmp_path):
    config = toy_config(
        tmp_path, "loop.steps=8", "loop.keep_last=1", "loop.checkpoint_every=3", "loop.validate_every=2"
    )
    toy = Toy(config)
    toy.validate = lambda step: Validation({2: 5.0, 4: 1.0, 6: 3.0, 8: 2.0}[step])
    run_loop(toy, toy.batches, config.loop, tmp_path, config)
    assert [(c.step, c.score) for c in map(open_checkpoint, checkpoints(tmp_path))] == [(4, 1.0), (8, 2.0)]


def test_data_that_ends_early_is_an_error(tmp_path):
    config = toy_config(tmp_path)
    toy = Toy(config)
    with pytest.raises(ValueError, match="the data ended after step 5, wanted 12"):
        run_loop(toy, lambda start, stop: toy.batches(start, 5), config.loop, tmp_path, config)


def test_no_data_at_all_is_an_error(tmp_path):
    config = toy_config(tmp_path)
    with pytest.raises(ValueError, match="the data ended after step 0, wanted 12"):
        run_loop(Toy(config), lambda start, stop: iter(()), config.loop, tmp_path, config)


def test_a_terminal_gets_a_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    train(tmp_path)
    told = capsys.readouterr().err
    assert "12/12" in told
    assert "s/step" in told
    assert f"wrote {tmp_path}" in told
    assert "\nstep 5/12" not in told


class Threads:
    """Two ranks in two threads."""

    def __init__(self, rank, shared):
        self.rank, self.size, self.shared = rank, 2, shared

    def lost(self, error):
        return False

    def any(self, flag):
        flags, barrier = self.shared
        flags[self.rank] = flag
        barrier.wait(timeout=20)
        answer = any(flags)
        barrier.wait(timeout=20)
        return answer


class Named(Toy):
    """One of two toys whose states have names of their own."""

    def __init__(self, config, rank):
        super().__init__(config)
        self.mark = f" of rank {rank}"

    def state(self):
        return {name + self.mark: array for name, array in super().state().items()}

    def restore(self, state):
        mine = {name for name in state if name.endswith(self.mark)}
        super().restore({name.removesuffix(self.mark): state[name] for name in mine})


def run_two(folder, overrides=(), spoil=lambda toy, rank: None):
    """A rank each in two threads, rank 1 on other data; returns what each raised."""
    shared, raised = ([False, False], threading.Barrier(2)), ["", ""]

    def work(rank):
        config = toy_config(folder, *overrides)
        toy = Named(config.replace(seed=3 + rank), rank)
        spoil(toy, rank)
        try:
            run_loop(toy, toy.batches, config.loop, folder, config, Threads(rank, shared))
        except ValueError as error:
            raised[rank] = str(error)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return raised


def without_export(toy, rank):
    if rank:
        toy.export = lambda folder: None
    toy.validate = lambda step: Validation(float(step))


def test_two_ranks_write_a_shard_each_and_resume(tmp_path):
    assert run_two(tmp_path / "whole", spoil=without_export) == ["", ""]
    assert run_two(tmp_path / "parts", ["loop.steps=8"], spoil=without_export) == ["", ""]
    assert run_two(tmp_path / "parts", spoil=without_export) == ["", ""]
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    newest = open_checkpoint(checkpoints(tmp_path / "parts")[-1])
    assert newest.ranks == 2
    assert {"weight of rank 0", "weight of rank 1"} < newest.state().keys()


def test_one_rank_that_cannot_write_stops_all(tmp_path):
    def spoil(toy, rank):
        without_export(toy, rank)
        if rank:
            toy.state = lambda: {"weight": np.zeros(2, np.complex64)}

    first, second = run_two(tmp_path, spoil=spoil)
    assert "another rank failed" in first
    assert "weight is complex64" in second
    assert not checkpoints(tmp_path)


def test_loop_config_wants_steps():
    with pytest.raises(ValueError, match="steps"):
        LoopConfig.model_validate({})
