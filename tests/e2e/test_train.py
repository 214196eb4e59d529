"""Training the transformer: killed and resumed, on another number of ranks, with a rank that dies; and ms
against pt.
"""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from common.config import load
from common.noise import fresh_weights
from common.parallel import Mesh
from common.t2v_training import T2VTrainConfig, announce, open_loader
from common.training.checkpoint import checkpoint_folder, checkpoints, open_checkpoint
from common.video import read_frames
from tests.conftest import TREES, available

from .test_ranks import padded_settings
from .test_ranks import settings as small_settings
from .training import (
    as_vector,
    command,
    final_state,
    logged,
    losses,
    model_weights,
    run,
    start,
    stop_when,
    write_config,
)

STEPS = 10
SHARED = [("ms", 1), ("pt", 1), ("pt", 3)]
pytestmark = pytest.mark.slow


def settings(**changes):
    loop = {"steps": STEPS, "checkpoint_every": 5, "keep_last": 3, "validate_every": 5, "log_every": 1}
    size = {"num_frames": 5, "height": 32, "width": 64}
    validation = {
        "data": {"generated": True, "generated_sizes": [[5, 32, 64]], "workers": 0},
        "batches": 1,
        "prompts": ["a red ball"],
        "sampler": {"num_steps": 2},
        **size,
    }
    optimizer = {"lr": 1e-3, "warmup_steps": 3, "weight_decay": 1e-2}
    base = {**small_settings(), "optimizer": optimizer, "loop": loop, "validation": validation}
    return {**base, **changes}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted training of each tree, made when first asked for."""
    folder, made = tmp_path_factory.mktemp("whole"), {}
    config = write_config(folder / "run.yaml", settings())

    def train(tree):
        if tree not in made:
            made[tree] = folder / tree
            run(command(tree, "train", config, f"output={made[tree]}"))
        return config, made[tree]

    return train


@pytest.mark.parametrize("name", TREES)
def test_killed_and_stopped_is_bit_equal_to_uninterrupted(name, whole, tmp_path):
    config, uninterrupted = whole(name)
    output = tmp_path / "run"
    line = command(name, "train", config, f"output={output}")
    fifth = checkpoint_folder(output, 5)
    assert stop_when(fifth.is_dir, line, signal.SIGKILL) == -signal.SIGKILL
    assert open_checkpoint(fifth).validation_owed  # killed in it
    assert stop_when(logged(output, 7), line, signal.SIGTERM) == 128 + signal.SIGTERM
    assert not open_checkpoint(fifth).validation_owed
    run(line)
    assert losses(output) == losses(uninterrupted)
    ours, theirs = final_state(output), final_state(uninterrupted)
    assert ours.keys() == theirs.keys()
    for key, array in theirs.items():
        np.testing.assert_array_equal(ours[key], array, err_msg=key)


@pytest.mark.parametrize(
    ("name", "zero"), [pytest.param(*case, marks=getattr(pytest.mark, case[0])) for case in SHARED]
)
def test_goes_on_with_another_number_of_ranks(name, zero, whole, tmp_path):
    """Two ranks that share the optimizer's state (or the parameters) begin, one that has it all ends."""
    config, uninterrupted = whole(name)
    output = f"output={tmp_path / 'run'}"
    early = [
        output,
        "loop.max_seconds=0.001",
        "loop.validate_every=1",
        f"parallel.zero={zero}",
    ]  # one step, judged
    run(command(name, "train", config, *early, ranks=2, logs=tmp_path / "logs"))
    assert [row["step"] for row in losses(tmp_path / "run")] == [1]
    assert (tmp_path / "run" / "pictures" / "step-00000001-samples.png").is_file()
    run(command(name, "train", config, output))
    ours, theirs = final_state(tmp_path / "run"), final_state(uninterrupted)
    for kind in ("param.", "mean.", "var.", "average."):
        a, b = as_vector(ours, kind), as_vector(theirs, kind)
        assert np.linalg.norm(a - b) < 1e-3 * np.linalg.norm(b), kind


@pytest.mark.pt
def test_one_signal_stops_all_ranks_and_more_of_them_go_on(whole, tmp_path):
    """A rank that is told to stop takes the others along; one goes on alone, and then two."""
    config, uninterrupted = whole("pt")
    output = tmp_path / "run"
    line = command("pt", "train", config, f"output={output}", ranks=2, logs=tmp_path / "logs")
    job = start(line, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while len(losses(output)) < 2 and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process_of_rank(1, f"output={output}"), signal.SIGTERM)
        printed, _ = job.communicate(timeout=120)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode != 0
    stopped = open_checkpoint(checkpoints(output)[-1]).step
    assert 2 <= stopped == len(losses(output)) < STEPS, printed[-3000:]
    run(command("pt", "train", config, f"output={output}", "loop.max_seconds=0.001"))
    assert len(losses(output)) == stopped + 1
    run(line)
    assert open_checkpoint(checkpoints(output)[-1]).step == STEPS
    ours, theirs = (as_vector(final_state(folder), "param.") for folder in (output, uninterrupted))
    assert np.linalg.norm(ours - theirs) < 1e-3 * np.linalg.norm(theirs)


@pytest.mark.pt
def test_other_clips_than_before_are_told_of(tmp_path):
    small = padded_settings(tmp_path)
    config = write_config(tmp_path / "run.yaml", small)
    line = [f"output={tmp_path / 'run'}", "data.group=true", "data.min_bucket_batches=0"]
    run(command("pt", "train", config, *line, "loop.steps=1"))
    assert "clips are not those" not in run(command("pt", "train", config, *line, "loop.steps=2"))
    clips = tmp_path / "clips.jsonl"
    clips.write_text(clips.read_text() + "\n" + clips.read_text().splitlines()[0])
    assert "clips are not those of the run" in run(command("pt", "train", config, *line, "loop.steps=3"))


@pytest.mark.parametrize("name", TREES)
def test_a_rank_that_dies_ends_the_job_and_is_named(name, tmp_path):
    config = write_config(
        tmp_path / "run.yaml", settings(loop={"steps": 100000, "log_every": 1}, validation=None)
    )
    output, logs = tmp_path / "run", tmp_path / "logs"
    job = start(
        command(name, "train", config, f"output={output}", ranks=2, logs=logs), start_new_session=True
    )
    try:
        deadline = time.monotonic() + 400
        while len(losses(output)) < 2 and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert job.poll() is None
        os.kill(process_of_rank(1, f"output={output}"), signal.SIGKILL)
        killed = time.monotonic()
        printed, _ = job.communicate(timeout=60)
        assert job.returncode not in (0, None)
        assert time.monotonic() - killed < 60
        printed += "".join(path.read_text(errors="replace") for path in logs.glob("*.log"))
        assert "rank 1 died" in printed or "rank      : 1" in printed, printed[-3000:]
        if name == "pt":  # the survivor says one line, none of gloo's, before the launcher ends
            told, launchers = printed.split("ChildFailedError")[0], "torch/distributed/elastic"
            assert told.count("error: rank 1 died") == 1, printed
            assert not [line for line in told.splitlines() if "gloo" in line and launchers not in line]
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)


def process_of_rank(rank, argument):
    """The process with this argument that a launcher gave this rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            mine = argument.encode() in (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # gone meanwhile
            continue
        if mine and {f"RANK={rank}".encode(), f"RANK_ID={rank}".encode()} & set(environment):
            return int(folder.name)
    raise AssertionError(f"no process has rank {rank}")


@pytest.mark.ms
@pytest.mark.pt
def test_both_trees_train_alike(whole):
    """The losses agree within 1e-4, and the parameters moved 100 times further than the trees differ."""
    if not (available("ms") and available("pt")):
        pytest.skip("needs both frameworks")
    (_, ms), (_, pt) = whole("ms"), whole("pt")
    for ours, theirs in zip(losses(ms), losses(pt), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    final_ms, final_pt = (as_vector(final_state(output), "param.") for output in (ms, pt))
    shapes = {name: x.shape for name, x in model_weights(pt).items()}
    begun = as_vector(fresh_weights(shapes, 1), "")
    moved, apart = np.abs(final_pt - begun).mean(), np.abs(final_ms - final_pt).mean()
    print(f"moved {moved:.2e}, apart {apart:.2e}")
    assert moved > 100 * apart


@pytest.mark.parametrize("name", TREES)
def test_half_precision_is_close(name, whole, tmp_path):
    """float16 with a loss scale in both trees, bfloat16 where the CPU has it."""
    config, full = whole(name)
    short = ["loop.steps=4", "validation=null", "loop.validate_every=0"]
    for dtype in ("float16", "bfloat16")[: 1 + (name == "pt")]:
        output = tmp_path / dtype
        run(command(name, "train", config, f"dtype={dtype}", "accumulate=2", *short, f"output={output}"))
        assert all(("loss_scale" in row) == (dtype == "float16") for row in losses(output))
        for row, expected in zip(losses(output), losses(full)[:4], strict=True):
            assert row["loss"] == pytest.approx(expected["loss"], rel=2e-2)
            assert row["loss"] != expected["loss"]
        assert all(np.isfinite(x).all() and x.dtype == np.float32 for x in model_weights(output).values())


@pytest.mark.ms
def test_a_graph_for_each_number_of_tokens(tmp_path):
    """Upright and lying clips share one; what was announced is what is compiled."""
    from tools.parity.tree import Tree

    tree, sizes = Tree("ms"), [[5, 32, 64], [5, 64, 32], [1, 32, 64]]
    small = settings(validation=None, loop={"steps": 3})
    small["data"] = {**small["data"], "generated_sizes": sizes}
    config = load(T2VTrainConfig, write_config(tmp_path / "run.yaml", small))
    mesh = Mesh()
    task = tree.train.T2VTraining(config, tree.device, mesh, tree.parallel.Ranks(mesh, tree.device))
    loader = open_loader(config, config.data, config.global_batch_size, config.seed, mesh)
    for step, batch in loader.batches(0, len(sizes)):
        task.step(step, batch)
    tokens = loader.report().tokens
    assert announce(config, task.model_config, tokens, 4) == "3 buckets, 2 graphs"
    assert len(task.trained.one_step.compile_cache) == 2


@pytest.mark.parametrize("name", TREES)
def test_a_validation_shows_what_the_model_makes(name, whole):
    _, output = whole(name)
    assert sorted(path.name for path in (output / "pictures").iterdir()) == [
        "step-00000005-samples.png",
        "step-00000010-samples.png",
    ]
    video = read_frames(output / "videos" / "step-00000010-sample-1.mp4", range(5))
    assert video.shape == (5, 32, 64, 3)
    events = b"".join(path.read_bytes() for path in (output / "tensorboard").iterdir())
    for tag in (b"validation/sample 1", b"validation/samples", b"validation/loss", b"grad_norm", b"acTL"):
        assert tag in events, tag
    assert open_checkpoint(checkpoints(output)[-1]).step == STEPS
