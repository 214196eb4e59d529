"""Scores of the image-to-video transformer are those of its videos."""

import json

import numpy as np
import pytest

from common.data.drawing import render
from common.images import read_image
from tests.conftest import ONLY_PT
from tests.e2e.command_lines import needs_encoder, sample_settings, write
from tests.tiny import tiny_transformer_config
from tools import release_i2v
from tools.oracle import clip_of
from tools.release_i2v import GOALS, main

CLIPS = 6


def image_model():
    config = tiny_transformer_config(caption_channels=384, num_layers=3, vae_scale_factor_t=4)
    return {"config": config.model_dump(mode="json"), "random_seed": 0}


class Perfect:
    """Samples the scenes themselves, and checks that their own frames are given."""

    def __init__(self, setting):
        self.setting = setting

    def __call__(self, plan):
        config = self.setting.config
        for job in self.setting.jobs:
            frames = render(clip_of(3, job.index, True)[0], config.num_frames, config.height, config.width)
            entry = plan.given[job.index]
            assert entry.indices in ((0,), (0, config.num_frames - 1))
            np.testing.assert_array_equal(entry.frames_NHWC, frames[list(entry.indices)])
            yield [self.spoil(frames)]

    def spoil(self, frames):
        return frames


class Frozen(Perfect):
    def spoil(self, frames):
        return np.repeat(frames[:1], len(frames), axis=0)


@pytest.fixture
def measure(tmp_path, monkeypatch, capsys):
    def measure(sampler):
        monkeypatch.setattr(release_i2v, "Sampler", sampler)
        config = write(tmp_path, sample_settings(tmp_path, height=64, width=64, transformer=image_model()))
        files = ["--json", str(tmp_path / "told.json"), "--sheet", str(tmp_path / "sheet.png")]
        code = main([config, "--tree", "pt", "--clips", str(CLIPS), "--seed", "3", *files])
        return code, capsys.readouterr().out, json.loads((tmp_path / "told.json").read_text())

    return measure


@ONLY_PT
def test_perfect_samples_meet_every_goal(tree, tmp_path, measure):
    code, out, report = measure(Perfect)
    assert code == 0
    assert "All goals are met." in out
    assert report["reached"] == {"first frame": 100.0, "last frame": 100.0, "motion": 1.0}
    assert report["goals"] == GOALS
    assert set(report["tasks"]) == {"image to video", "transition"}
    assert read_image(tmp_path / "sheet.png").std() > 5


@ONLY_PT
def test_samples_that_stand_still_miss_the_motion(tree, measure):
    code, out, report = measure(Frozen)
    assert code == 1
    assert "Goals missed: motion." in out
    assert report["reached"]["first frame"] == 100.0 > report["reached"]["last frame"]
    moving = [clip_of(3, i, True)[0].things[0].motion != "still" for i in range(CLIPS)]
    assert report["reached"]["motion"] <= 1 - np.mean(moving) + 1e-9


@needs_encoder
@ONLY_PT
def test_a_model_without_training_is_measured(tree, tmp_path, capsys):
    settings = sample_settings(tmp_path, transformer=image_model())
    assert main([write(tmp_path, settings), "--tree", "pt", "--clips", "2", "--batch", "2"]) == 1
    out = capsys.readouterr().out
    assert "| 2 held-out clips (pt) | first frame, dB | last frame, dB | colour | shape |" in out
    assert "| bound: VAE |" in out
