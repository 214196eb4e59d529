"""Any way of sharing the work gives what one rank computes: losses, parameters, the optimizer's state."""

import json

import numpy as np
import pytest

from common.checkpoint import read_safetensors
from common.images import write_png
from common.sharing import traffic
from common.video import write_video
from tests.conftest import TREES, available
from tests.tiny import tiny_transformer_config, tiny_vae_config

from .ranks_worker import LATENT_THW, PLAN
from .training import as_vector, command, launch, run, write_config

pytestmark = pytest.mark.slow
NUM_TOKENS = int(np.prod(LATENT_THW)) // PLAN.patch_size**2
WORKER = "tests/e2e/ranks_worker.py"
TASKS = {"t2iv": 1, "i2v": 2, "transition": 1, "continuation": 1, "random_temporal": 1}
TEXT_ONLY = "transformer.config.vae_scale_factor_t=null,conditions=null"  # a text-to-video model
CASES = {
    1: {
        "whole": "",
        "parts": "accumulate=2",
        "memory": "ema_on_host=true,encoders_on_host=true,recompute=2",
        "text": TEXT_ONLY,
        "padded": "config=PADDED",
    },
    2: {
        "data": "",
        "zero2-parts": "parallel.zero=2,accumulate=2",
        "skiparse": "parallel.sequence=2",
        "ulysses": "parallel.sequence=2,parallel.kind=ulysses",
        "text": f"{TEXT_ONLY},parallel.zero=1",
        "padded": "config=PADDED,accumulate=2",
        "traffic": "",
    },
    4: {
        "skiparse": "parallel.sequence=4",
        "everything": "parallel.sequence=2,parallel.zero=2,accumulate=2,recompute=2",
    },
}

ONLY_IN_PT = {  # FSDP, and what would take minutes to compile
    2: {"zero3": "parallel.zero=3"},
    4: {
        "data-zero1": "parallel.zero=1",
        "ulysses": "parallel.sequence=4,parallel.kind=ulysses",
        "data-skiparse-zero3-parts": "parallel.sequence=2,parallel.zero=3,accumulate=2",
    },
}


def cases_of(tree, ranks):
    return {**CASES[ranks], **(ONLY_IN_PT.get(ranks, {}) if tree == "pt" else {})}


def settings():
    model = tiny_transformer_config(
        num_attention_heads=4,
        cross_attention_dim=48,
        num_layers=4,
        num_dense_ends=1,
        sparse_n=4,
        caption_channels=384,
    )
    return {
        "transformer": {"config": model.model_dump(mode="json"), "random_seed": 1},
        "vae": {"config": tiny_vae_config(use_attention=False).model_dump(mode="json"), "random_seed": 2},
        "text": {"kind": "minilm", "max_length": 32},
        # 16 tokens, and 8 that are padded to 16: with and without masks
        "data": {"generated": True, "generated_sizes": [[5, 32, 64], [1, 32, 64]], "workers": 0},
        "global_batch_size": 4,
        "optimizer": {"lr": 1e-3, "max_grad_norm": 0.5},
        "ema_decay": 0.9,
        "seed": 5,
        "device": "cpu",
        "loop": {"steps": 5},
    }


def image_settings():
    """An image-to-video model, which is the other and more; its tasks change in the middle."""
    found = settings()
    found["transformer"]["config"]["vae_scale_factor_t"] = 4
    stages = [{"video": TASKS}, {"from_step": 3, "video": {"i2v": 1}}]
    return {**found, "conditions": {"stages": stages}}


def padded_settings(folder):
    """Annotated clips and pictures in one batch, so that ranks and parts have unequal shares of padding."""
    rng, entries = np.random.default_rng(0), []
    for i in range(6):
        frames_THWC = rng.integers(256, size=(5 if i % 2 else 1, 4, 8, 3), dtype=np.uint8)
        frames_THWC = frames_THWC.repeat(8, axis=1).repeat(8, axis=2)
        name = f"{i}.mp4" if i % 2 else f"{i}.png"
        if i % 2:
            write_video(folder / name, frames_THWC, 16)
        else:
            write_png(folder / name, frames_THWC[0])
        size = {"resolution": {"height": 32, "width": 64}, "num_frames": len(frames_THWC), "fps": 16}
        entries.append({"path": name, "cap": f"noise number {i}", **size})
    (folder / "clips.jsonl").write_text("\n".join(map(json.dumps, entries)))
    length = {"num_frames": 5, "min_frames": 5}
    annotated = {"annotations": str(folder / "clips.jsonl"), "sizes": {"height": 32, "width": 64}, **length}
    data = {**annotated, "group": False, "workers": 0}
    return {**settings(), "data": data}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What a tree computes on a number of ranks, by the case's name; made when first asked for."""
    folder, made = tmp_path_factory.mktemp("ranks"), {}
    config = write_config(folder / "run.yaml", image_settings())
    padded = write_config(folder / "padded.yaml", padded_settings(folder))

    def train(tree, ranks):
        if (tree, ranks) not in made:
            output = folder / f"{tree}{ranks}"
            output.mkdir()
            wanted = cases_of(tree, ranks)
            cases = [f"{name}:{keys.replace('PADDED', str(padded))}" for name, keys in wanted.items()]
            line = launch(tree, [WORKER, tree, str(config), str(output), *cases], ranks, folder / "logs")
            run(line)
            made[tree, ranks] = {name: read_safetensors(output / f"{name}.safetensors") for name in wanted}
        return made[tree, ranks]

    return train


def check(found, wanted):
    np.testing.assert_allclose(found["loss"], wanted["loss"], rtol=1e-5)
    np.testing.assert_allclose(found["grad_norm"], wanted["grad_norm"], rtol=1e-4)
    assert found.keys() == wanted.keys()
    for kind in ("param.", "mean.", "var.", "average."):
        ours, theirs = as_vector(found, f"state.{kind}"), as_vector(wanted, f"state.{kind}")
        assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max(), kind
        assert np.linalg.norm(ours - theirs) < 1e-4 * np.linalg.norm(theirs), kind


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", TREES)
def test_any_number_of_ranks_equals_one(name, ranks, trained):
    alone = trained(name, 1)
    for case, found in trained(name, ranks).items():
        if case != "traffic":
            check(found, alone[case if case in ("text", "padded") else "whole"])


@pytest.mark.parametrize("name", TREES)
def test_ranks_send_what_was_announced(name, trained):
    """Counted in the running model (pt) and in the graph for Ascend (ms); a quarter between sparse blocks."""
    sent = trained(name, 2)["traffic"]
    for kind in ("skiparse", "ulysses"):
        assert sent[kind] == traffic(PLAN, kind, 2, NUM_TOKENS, 1).total > 0
    assert sent["skiparse"] <= 0.35 * sent["ulysses"]


@pytest.mark.parametrize("name", TREES)
def test_saving_memory_changes_nothing(name, trained):
    for case in ("parts", "memory"):
        check(trained(name, 1)[case], trained(name, 1)["whole"])


@pytest.mark.ms
@pytest.mark.pt
def test_both_trees_train_alike(trained):
    if not (available("ms") and available("pt")):
        pytest.skip("needs both frameworks")
    for case in ("whole", "padded"):
        check(trained("ms", 1)[case], trained("pt", 1)[case])


@pytest.mark.ms
def test_ranks_that_are_not_those_of_their_launcher_are_refused(tmp_path, monkeypatch):
    """Job systems number nodes under the names that torchrun uses for ranks."""
    config = write_config(tmp_path / "run.yaml", image_settings())
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = launch("ms", [WORKER, "ms", str(config), str(tmp_path), "data:"], 2, tmp_path / "logs")
    run(line, code=1)
    told = "".join(path.read_text(errors="replace") for path in (tmp_path / "logs").glob("*.log"))
    assert "the environment says rank 0 of 2, wanted 1 of 2 as msrun counts" in told


@pytest.mark.parametrize("name", TREES)
def test_ranks_that_share_a_sequence_sample_the_same_video(name, tmp_path):
    run_settings = image_settings()
    picture = np.tile(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (32, 1, 3))
    write_png(tmp_path / "first.png", picture)
    config = write_config(
        tmp_path / "sample.yaml",
        {
            **{key: run_settings[key] for key in ("transformer", "vae", "text", "device")},
            "sampler": {"num_steps": 3, "guidance_rescale": 0.5},
            "prompt": ["a red ball", "a blue ring"],
            "image": str(tmp_path / "first.png"),
            "num_frames": 9,
            "window_frames": 5,
            "overlap_frames": 1,
            "height": 32,
            "width": 64,
            "save_tensors": True,
        },
    )
    found = []
    for ranks in (1, 2):
        output = tmp_path / f"{name}{ranks}"
        overrides = [f"parallel.sequence={ranks}", f"output={output}"]
        run(command(name, "sample", config, *overrides, ranks=ranks, logs=tmp_path / "logs"))
        files = sorted(output.glob("*.safetensors"))
        assert len(files) == 2
        latents = [read_safetensors(file)[f"latent_{window}_CTHW"] for file in files for window in (0, 1)]
        found.append(np.stack(latents))
    np.testing.assert_allclose(found[1], found[0], atol=1e-4 * np.abs(found[0]).max())
