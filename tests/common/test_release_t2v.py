"""The release of the text-to-video transformer: float16 weights, and scores that are what was read."""

import json

import numpy as np
import pytest

from common.checkpoint import StoredWeights, read_metadata, read_safetensors, save_weights, weight_files
from common.data.drawing import render
from common.data.scenes import COLOURS, MOTIONS, SHAPES
from common.images import read_image
from common.models import TransformerConfig, VAEConfig
from common.oracle import Reading
from common.outputs import plan_jobs
from common.runs import SampleConfig
from common.sample_plan import plan_videos
from tests.conftest import ONLY_PT
from tests.e2e.command_lines import needs_encoder, sample_settings, write
from tests.tiny import build, tiny_transformer_config
from tools import release_t2v
from tools.measuring import SHEET_FRAMES, Sampler, Setting
from tools.oracle import LINE, SHEET_CELL, clip_of
from tools.release_t2v import GOALS, MAX_PARAMETERS, main

CONFIG = tiny_transformer_config(caption_channels=384, num_layers=3)


def save(folder, weights):
    save_weights(folder, weights, {"_class_name": "OpenSoraT2V_v1_3", **CONFIG.model_dump()})
    return str(folder)


def shares(out, name):
    """The percentages in the row `name` of the printed table."""
    (line,) = [line for line in out.splitlines() if line.startswith(f"| {name} |")]
    return [float(cell.removesuffix(" %")) for cell in line.strip("| ").split(" | ")[1:]]


def test_make_keeps_the_config_and_halves_the_weights(tmp_path, capsys):
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((30, 50), dtype=np.float32) for name in ("a.weight", "b.weight")}
    source, target = save(tmp_path / "model", weights), tmp_path / "release"
    assert main(["make", source, str(target)]) == 0
    size = (target / "diffusion_pytorch_model.safetensors").stat().st_size
    assert f"0.00 M parameters, {size / 1e6:.2f} MB" in capsys.readouterr().out
    stored = StoredWeights(target)
    assert {stored.dtype(name) for name in stored} == {"F16"}
    for name, value in weights.items():
        np.testing.assert_array_equal(stored[name], value.astype(np.float16))
    assert (target / "config.json").read_text() == (tmp_path / "model" / "config.json").read_text()
    (file,) = weight_files(target)
    assert json.loads(read_metadata(file)["config"])["caption_channels"] == 384


def test_shorten_leaves_a_block_out(tmp_path, capsys):
    config = tiny_transformer_config(
        num_layers=6, num_dense_ends=1
    )  # full, group, single, group, single, full
    weights = {"proj_out.weight": np.zeros(2, np.float32)}
    weights |= {f"transformer_blocks.{i}.x": np.full(2, i, np.float32) for i in range(6)}
    save_weights(tmp_path / "model", weights, config.hub_dict())
    line = ["shorten", str(tmp_path / "model"), str(tmp_path / "short"), "--without"]
    assert main([*line, "4"]) == 0
    assert "5 blocks: full, group, single, group, full" in capsys.readouterr().out
    stored = StoredWeights(tmp_path / "short")
    assert {name: float(stored[name][0]) for name in stored if "blocks" in name} == {
        f"transformer_blocks.{new}.x": old for new, old in enumerate([0, 1, 2, 3, 5])
    }
    assert json.loads((tmp_path / "short" / "config.json").read_text())["num_layers"] == 5
    for block, message in (("6", "wanted one of several"), ("0", "leave out another")):
        assert main([*line, block]) == 2
        assert message in capsys.readouterr().err
    assert main([*line[:2], line[1], "--without", "4"]) == 2
    assert "would overwrite its checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            np.zeros((MAX_PARAMETERS // 2 + 1, 2), np.float32),
            "got 4,000,002 parameters, wanted at most 4,000,",
        ),
        (np.zeros(2, np.float16), "w is F16, wanted F32"),
        (np.array([1e6], np.float32), "w has values that float16 cannot hold"),
        (np.array([np.nan], np.float32), "w has values that float16 cannot hold"),
    ],
)
def test_make_refuses(tmp_path, capsys, value, message):
    source = save(tmp_path / "model", {"w": value})
    assert main(["make", source, str(tmp_path / "release")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "release").exists()


def test_make_never_overwrites_its_checkpoint(tmp_path, capsys):
    source = save(tmp_path / "model", {"w": np.zeros(2, np.float32)})
    assert main(["make", source, f"{source}/../model"]) == 2
    assert "would overwrite its checkpoint" in capsys.readouterr().err
    assert main(["make", str(tmp_path / "nowhere"), source]) == 2
    assert capsys.readouterr().err.startswith("error: weights ")


@needs_encoder
@ONLY_PT
def test_samples_of_a_release_are_measured(tree, tmp_path, capsys):
    model = build(tree, "transformer", CONFIG)
    weights = {name: tree.numpy(p) for name, p in tree.runtime.parameters(model).items()}
    assert main(["make", save(tmp_path / "model", weights), str(tmp_path / "release")]) == 0
    config = write(tmp_path, sample_settings(tmp_path, transformer={"path": str(tmp_path / "release")}))
    told, sheet = tmp_path / "told.json", tmp_path / "sheet.png"
    line = ["measure", config, "--tree", "pt", "--clips", "4", "--batch", "3", "seed=7"]
    assert main([*line, "sampler.num_steps=2", "--json", str(told), "--sheet", str(sheet)]) == 1

    out = capsys.readouterr().out
    assert (
        "| 4 held-out captions, 5 x 32 x 48 | colour | shape | motion | all |\n|---|---|---|---|---|" in out
    )
    assert shares(out, "goal, at least") == [95, 90, 85, 80]
    names = ("samples", "samples, captions shuffled", "bound: the scenes through the VAE")
    assert all(0 <= share <= 100 for name in names for share in shares(out, name))
    assert shares(out, "bound: the scenes as rendered") == [100, 100, 100, 100]
    assert [out.count(f"\n* {name}: ") for name in GOALS] == [1, 1, 1, 0]
    assert " s per video, 3 together (pt, " in out
    assert "Goals missed: " in out

    report = json.loads(told.read_text())
    assert report["config"]["seed"] == 7
    assert report["config"]["sampler"]["num_steps"] == 2
    assert {"commit", "versions", "device", "seconds_per_video", "goals"} < set(report)
    scenes = [clip_of(0, index, True) for index in range(4)]
    assert report["config"]["prompt"] == [caption for _, caption in scenes]
    for index, (record, (scene, caption)) in enumerate(zip(report["readings"], scenes, strict=True)):
        assert record["caption"] == caption
        assert record["seed"] == 7 + index
        assert tuple(record["truth"]) == scene.things[0].triple
        for part in ("sample", "rendered", "restored"):
            assert set(record[part]) == set(Reading._fields)
    strip = SHEET_CELL + 3 * LINE + 6
    assert read_image(sheet).shape == (2 * strip, 2 * SHEET_FRAMES * SHEET_CELL * 48 // 32, 3)


@needs_encoder
@ONLY_PT
def test_samples_are_those_of_the_sample_command(tree, tmp_path):
    """Video i comes from caption i and seed + i, whatever is batched with it."""
    prompts = [clip_of(0, index, True)[1] for index in range(3)]
    config = SampleConfig.model_validate(sample_settings(tmp_path, prompt=prompts, seed=5))
    vae = tree.loading.load_vae(config.vae, config.vae.resolve(VAEConfig, "vae"), "float32", "cpu")
    jobs, batched = plan_jobs(prompts, 1, config.seed), config.replace(batch_size=2)
    plan = plan_videos(batched, 3, vae.config, batched.transformer.resolve(TransformerConfig, "transformer"))
    sampler = Sampler(Setting(batched, tree, vae, [], prompts, jobs, plan))
    tree.sample.sample(config)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    videos = [frames for batch in sampler(plan) for frames in batch]
    for frames, file in zip(videos, files, strict=True):
        expected = read_safetensors(file)["frames_THWC"]
        assert np.abs(frames.astype(int) - expected).max() <= 1, "rounding apart"


class Perfect:
    """Samples what a perfect model would."""

    def __init__(self, setting):
        self.setting = setting

    def __call__(self, plan):
        config = self.setting.config
        for job in self.setting.jobs:
            yield [render(clip_of(3, job.index, True)[0], config.num_frames, config.height, config.width)]


@ONLY_PT
def test_perfect_samples_score_all_and_shuffled_ones_as_chance(tree, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(release_t2v, "Sampler", Perfect)
    config = write(tmp_path, sample_settings(tmp_path, height=64, width=64))
    line = ["measure", config, "--tree", "pt", "--clips", "60", "--seed", "3"]
    assert main([*line, "--json", str(tmp_path / "told.json")]) == 0
    out = capsys.readouterr().out
    assert shares(out, "samples") == [100, 100, 100, 100]
    assert "All goals are met." in out
    assert out.count(": none") == 3, "no confusions"
    shuffled = shares(out, "samples, captions shuffled")
    for share, words in zip(shuffled, (COLOURS, SHAPES, MOTIONS)):
        assert share < 100 / len(words) + 15
    assert shuffled[3] < 5
    report = json.loads((tmp_path / "told.json").read_text())
    assert report["reached"] == dict.fromkeys(GOALS, 1.0)
    assert report["missed"] == []

    assert main(["compare", str(tmp_path / "told.json"), str(tmp_path / "told.json")]) == 0
    assert (
        "pt and pt: 180 of 180 readings are the same, scores at most 0.0 % apart" in capsys.readouterr().out
    )
    report["readings"][0]["sample"]["shape"] = "none"
    report["reached"]["shape"] -= 1 / 60
    (tmp_path / "other.json").write_text(json.dumps(report))
    assert main(["compare", str(tmp_path / "told.json"), str(tmp_path / "other.json")]) == 1
    assert "179 of 180 readings are the same, scores at most 1.7 % apart" in capsys.readouterr().out
    report["readings"][0]["caption"] = "another"
    (tmp_path / "other.json").write_text(json.dumps(report))
    assert main(["compare", str(tmp_path / "told.json"), str(tmp_path / "other.json")]) == 2
    assert "of other captions or seeds" in capsys.readouterr().err


@ONLY_PT
def test_samples_that_never_move_miss_the_motion_alone(tree, tmp_path, capsys, monkeypatch):
    class Frozen(Perfect):
        def __call__(self, plan):
            for batch in super().__call__(plan):
                yield [np.repeat(frames[:1], len(frames), axis=0) for frames in batch]

    monkeypatch.setattr(release_t2v, "Sampler", Frozen)
    config = write(tmp_path, sample_settings(tmp_path, height=64, width=64))
    assert main(["measure", config, "--tree", "pt", "--clips", "8", "--seed", "3"]) == 1
    out = capsys.readouterr().out
    motions = [clip_of(3, index, True)[0].things[0].motion for index in range(8)]
    still = 100 * motions.count("still") / len(motions)
    assert shares(out, "samples") == [100, 100, still, still]
    assert "Goals missed: motion, all." in out
    for motion in set(motions) - {"still"}:
        assert f"{motion} as still {motions.count(motion)}x" in out


@ONLY_PT
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clips", "1"], "got 1 clips in batches of 10 from seed 0; wanted at least 2, 1 and 0"),
        (["--batch", "0"], "wanted at least 2, 1 and 0"),
        (["sampler.steps=3"], "did you mean 'num_steps'?"),
        (["num_frames=6"], "num_frames: got 6, wanted a multiple of 4 plus 1"),
        (["--json", "/dev/null/x.json"], "output /dev/null:"),
        (["device=tpu"], "device: wanted auto, cpu, cuda or ascend"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(tree, tmp_path, capsys, words, message):
    config = write(tmp_path, sample_settings(tmp_path))
    assert main(["measure", config, "--tree", "pt", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
