"""The weights that ship with the project do what their pages say."""

from pathlib import Path

from common.checkpoint import StoredWeights
from common.config import load
from common.vae_training import VAETrainConfig
from tools.release_vae import scores

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "assets"


def test_assets_stay_small():
    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) <= 25e6
    weights = StoredWeights(ASSETS / "vae_tiny")
    assert sum(x.size for x in weights.values()) <= 2e6


def test_the_tiny_vae_restores_scenes_it_has_not_seen(tree):
    config = load(VAETrainConfig, ROOT / "configs/train_vae_tiny_2.yaml")
    found = scores(tree, str(ASSETS / "vae_tiny"), config, 24)
    assert found["psnr_db"] >= 30
    assert found["ssim"] >= 0.88
