"""Training the video VAE: killed and resumed, stopped, on two ranks, in half precision; and ms against pt."""

import signal
from functools import partial

import numpy as np
import pytest

from common.judges import LPIPSConfig
from common.noise import fresh_weights
from common.training.checkpoint import checkpoints, open_checkpoint
from common.video import write_video
from tests.conftest import TREES, available
from tests.tiny import tiny_vae_config

from .test_evaluate_vae import WIDTHS, judge_folder
from .training import (
    as_vector,
    command,
    final_state,
    logged,
    losses,
    model_weights,
    run,
    stop_when,
    write_config,
)

STEPS = 20
LOSSES = {"loss", "nll", "pixel", "kl", "wavelet", "disc_loss"}
SENSITIVE = {"grad_norm", "adversarial_weight", "adversarial"}  # to rounding, through kinks and quotients
pytestmark = pytest.mark.slow


def settings(**changes):
    size = {"num_frames": 5, "height": 32, "width": 32, "workers": 0}
    everything = {
        "vae": {"config": tiny_vae_config(use_attention=False).model_dump(mode="json"), "random_seed": 3},
        "discriminator": {"ndf": 8, "n_layers": 2},
        # the adversarial weight is a quotient of gradients through a LeakyReLU, whose kinks turn the rounding
        # of one step into half a percent of a later weight; it is kept small so that losses can be compared
        "loss": {"disc_start": 0, "disc_weight": 0.01, "wavelet_weight": 0.1},
        "data": {"sources": [{"generated": True}], **size},
        "validation": {
            "data": {"sources": [{"generated": True, "heldout": True}], **size},
            "clips": 2,
            "batch_size": 2,
        },
        "global_batch_size": 2,
        "optimizer": {"lr": 1e-4, "weight_decay": 1e-4},
        "disc_optimizer": {"lr": 1e-4},
        "ema_decay": 0.9,
        "seed": 5,
        "device": "cpu",
        "loop": {"steps": STEPS, "checkpoint_every": 3, "keep_last": 3, "validate_every": 10, "log_every": 1},
    }
    return {**everything, **changes}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted training of each tree, made when first asked for."""
    folder, made = tmp_path_factory.mktemp("whole"), {}
    config = write_config(folder / "run.yaml", settings())

    def train(tree):
        if tree not in made:
            made[tree] = folder / tree
            run(command(tree, "train_vae", config, f"output={made[tree]}"))
        return config, made[tree]

    return train


@pytest.mark.parametrize("name", TREES)
def test_killed_and_stopped_is_bit_equal_to_uninterrupted(name, whole, tmp_path):
    config, uninterrupted = whole(name)
    output = tmp_path / "parts"
    line = command(name, "train_vae", config, f"output={output}")
    assert stop_when(logged(output, 7), line, signal.SIGKILL) == -signal.SIGKILL
    assert stop_when(logged(output, 11), line, signal.SIGTERM) == 128 + signal.SIGTERM
    stopped = int(checkpoints(output)[-1].name.removeprefix("step-"))
    assert stopped == len(losses(output)) >= 11
    printed = run(line)
    assert f"resumed from {checkpoints(output)[0].parent}" in printed
    expected, state = final_state(uninterrupted), final_state(output)
    assert state.keys() == expected.keys()
    different = [key for key in state if state[key].tobytes() != expected[key].tobytes()]
    assert not different
    assert losses(output) == losses(uninterrupted)


@pytest.mark.parametrize("name", TREES)
def test_two_ranks_equal_one(name, whole, tmp_path):
    config, one_rank = whole(name)
    output = tmp_path / "two"
    run(command(name, "train_vae", config, f"output={output}", ranks=2, logs=tmp_path / "logs"))
    for row, expected in zip(losses(output), losses(one_rank), strict=True):
        step = row["step"]
        rel = {1: 1e-5, 2: 1e-4}.get(step, 1e-2)  # after an update of each model rounding grows
        for term in expected.keys() - (SENSITIVE if step > 2 else set()):
            value = expected[term]
            assert row[term] == pytest.approx(value, rel=rel, abs=1e-5), (step, term)
    moved_alike(final_state(output), final_state(one_rank), 2e-2)


@pytest.mark.skipif(not (available("ms") and available("pt")), reason="needs both frameworks")
def test_both_trees_train_alike(whole):
    (_, ms), (_, pt) = whole("ms"), whole("pt")
    for ours, theirs in zip(losses(ms), losses(pt), strict=True):
        assert ours.keys() == theirs.keys()
        for term in LOSSES & ours.keys():
            assert ours[term] == pytest.approx(theirs[term], rel=1e-4), (ours["step"], term)
    moved_alike(final_state(ms), final_state(pt), 1e-2)


def moved_alike(state, other, share):
    """The parameters of both models differ by at most `share` of how far they moved from where they began."""
    draws = {
        "generator.param.": partial(fresh_weights, seed=settings()["vae"]["random_seed"]),
        "discriminator.param.": partial(fresh_weights, seed=settings()["seed"], std=0.02),
    }
    for kind, draw in draws.items():
        names = [name for name in state if name.startswith(kind)]
        begin = draw({name.removeprefix(kind): state[name].shape for name in names})
        begin = {kind + name: x for name, x in begin.items()}
        moved = np.linalg.norm(as_vector(state, kind) - as_vector(begin, kind))
        apart = np.linalg.norm(as_vector(state, kind) - as_vector(other, kind))
        assert moved > 1e-2, kind
        assert apart <= share * moved, (kind, apart, moved)


@pytest.mark.parametrize("name", TREES)
def test_half_precision_in_parts(name, whole, tmp_path):
    config, full = whole(name)
    output = tmp_path / "half"
    short = ["loop.steps=6", "validation=null", "loop.validate_every=0"]
    run(command(name, "train_vae", config, "dtype=float16", "accumulate=2", *short, f"output={output}"))
    rows = losses(output)
    assert all("loss_scale" in row for row in rows)
    for row, expected in zip(rows[0:4:2], losses(full)[0:4:2], strict=True):
        assert row["nll"] == pytest.approx(expected["nll"], rel=2e-2)
    assert all(np.isfinite(x).all() and x.dtype == np.float32 for x in model_weights(output).values())


@pytest.mark.parametrize("name", TREES)
def test_a_loss_that_is_not_finite_stops_the_run_and_names_it(name, tmp_path):
    config, output = write_config(tmp_path / "run.yaml", settings(discriminator=None)), tmp_path / "nan"
    broken = ["optimizer.lr=1e30", "validation=null", "loop.validate_every=0", "loop.checkpoint_every=1"]
    printed = run(command(name, "train_vae", config, *broken, f"output={output}"), code=2)
    (error,) = [line for line in printed.splitlines() if "not finite" in line]
    for word in ("step 2", "loss, nll, pixel", "scene 2, scene 3"):
        assert word in error
    assert [path.name for path in checkpoints(output)] == ["step-00000001"]


@pytest.mark.parametrize("name", TREES)
def test_every_other_term_and_source(name, tmp_path):
    """Videos of a folder, one of them broken, pictures among them, LPIPS, a logvar that learns; no
    discriminator. Parts of a batch are then the whole.
    """
    from tools.parity.tree import Tree

    tree, judge = Tree(name), LPIPSConfig(widths=WIDTHS)
    judge_folder(tree, tmp_path / "lpips", tree.lpips.LPIPS(judge), judge)
    videos = tmp_path / "videos"
    (videos / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for place in ("a.mp4", "below/b.mp4", "below/c.mp4"):
        write_video(videos / place, rng.integers(0, 255, (9, 32, 40, 3), np.uint8), 8)
    (videos / "broken.mp4").write_bytes(b"nothing")
    size = {"num_frames": 5, "height": 32, "width": 32, "workers": 0, "max_bad_share": 0.5}
    changes = {
        "discriminator": None,
        "lpips": str(tmp_path / "lpips"),
        "loss": {"learn_logvar": True},
        "data": {"sources": [{"videos": str(videos)}], "image_share": 0.3, **size},
        "validation": None,
        "global_batch_size": 4,
        "loop": {"steps": 4},
    }
    config, rows = write_config(tmp_path / "run.yaml", settings(**changes)), []
    for parts in (1, 2)[: 1 + (name == "pt")]:
        output = tmp_path / f"parts{parts}"
        printed = run(command(name, "train_vae", config, f"accumulate={parts}", f"output={output}"))
        assert "broken.mp4" in printed
        rows.append(losses(output))
        assert rows[-1][-1]["perceptual"] > 0
        assert rows[-1][-1]["logvar"] != rows[-1][0]["logvar"]
    for ours, theirs in zip(rows[0], rows[-1], strict=True):
        for term in ("loss", "nll", "perceptual"):
            assert ours[term] == pytest.approx(theirs[term], rel=1e-4), (ours["step"], term)
    assert rows[0][0]["grad_norm"] == pytest.approx(rows[-1][0]["grad_norm"], rel=1e-4)


@pytest.mark.pt
def test_validation_clips_that_are_not_there_show_before_the_first_step(tmp_path):
    config = write_config(tmp_path / "run.yaml", settings())
    missing = f"validation.data.sources.0.videos={tmp_path / 'missing'}"
    generated = "validation.data.sources.0.generated=false"
    output = tmp_path / "out"
    printed = run(command("pt", "train_vae", config, generated, missing, f"output={output}"), code=2)
    assert f"{tmp_path / 'missing'}" in printed
    assert not (output / "losses.jsonl").exists()


@pytest.mark.parametrize("name", TREES)
def test_the_checkpoints_model_is_a_model_directory(name, whole, tmp_path):
    """`reconstruct` takes it as it is."""
    _, output = whole(name)
    clip = tmp_path / "clip.mp4"
    write_video(clip, np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), np.uint8), 8)
    model = open_checkpoint(checkpoints(output)[-1]).model
    config = write_config(tmp_path / "r.yaml", {"vae": {"path": str(model)}, "input": str(clip)})
    size = ["num_frames=5", "height=32", "width=32", "device=cpu", f"output={tmp_path / 'out'}"]
    assert "PSNR" in run(command(name, "reconstruct", config, *size))
