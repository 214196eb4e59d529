"""The weights that ship with the project do what their pages say."""

import json
from pathlib import Path

import pytest

from common.checkpoint import StoredWeights
from common.config import load
from common.vae_training import VAETrainConfig
from tests.conftest import PT, SLOW_MS
from tools.release_i2v import GOALS
from tools.release_i2v import main as measure_i2v
from tools.release_t2v import main as measure
from tools.release_vae import scores

COLOURS_RIGHT = 3  # of 4 videos; assets/t2v_tiny/README.md has the scores of 200
ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "assets"


def test_assets_stay_small():
    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) <= 25e6
    for model, limit in (("vae_tiny", 2e6), ("t2v_tiny", 4e6), ("i2v_tiny", 4e6)):
        assert sum(x.size for x in StoredWeights(ASSETS / model).values()) <= limit


def test_the_tiny_vae_restores_scenes_it_has_not_seen(tree):
    config = load(VAETrainConfig, ROOT / "configs/train_vae_tiny_2.yaml")
    found = scores(tree, str(ASSETS / "vae_tiny"), config, 24)
    assert found["psnr_db"] >= 30
    assert found["ssim"] >= 0.88


@pytest.mark.parametrize("name", [SLOW_MS, PT])
def test_the_tiny_transformer_paints_what_the_caption_says(name, tmp_path):
    """Captions of triples it has not seen; through the command that measures the release."""
    scores = tmp_path / "scores.json"
    line = ["measure", str(ROOT / "configs/sample_demo.yaml"), "--tree", name, "--clips", "4", "--batch", "4"]
    models = [
        f"{kind}.path={ASSETS / folder}"
        for kind, folder in (("transformer", "t2v_tiny"), ("vae", "vae_tiny"))
    ]
    measure([*line, "--json", str(scores), *models, "sampler.num_steps=12", "device=cpu"])
    readings = json.loads(scores.read_text())["readings"]
    right = [reading["sample"]["colour"] == reading["truth"][0] for reading in readings]
    assert sum(right) >= COLOURS_RIGHT


@pytest.mark.parametrize("name", [SLOW_MS, PT])
def test_the_tiny_transformer_keeps_the_pictures_it_is_given(name, tmp_path):
    scores = tmp_path / "scores.json"
    line = [str(ROOT / "configs/sample_demo_i2v.yaml"), "--tree", name, "--clips", "4", "--batch", "4"]
    models = [
        f"{kind}.path={ASSETS / folder}"
        for kind, folder in (("transformer", "i2v_tiny"), ("vae", "vae_tiny"))
    ]
    measure_i2v([*line, "--json", str(scores), *models, "device=cpu"])
    reached = json.loads(scores.read_text())["reached"]
    assert reached["first frame"] >= GOALS["first frame"]
    assert reached["last frame"] >= GOALS["last frame"]
