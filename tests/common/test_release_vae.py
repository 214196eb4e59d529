"""The release of a VAE: half precision, and latents of zero mean and unit variance."""

import sys

import numpy as np
import pytest

from common.checkpoint import StoredWeights, save_weights
from common.models import VAEConfig, read_hub_config
from tests.e2e.training import write_config
from tests.tiny import build, tiny_vae_config
from tools.parity.tree import Tree
from tools.release_vae import latent_statistics, main

DATA = {"sources": [{"generated": True, "heldout": True}], "num_frames": 5, "height": 32, "width": 32}
SETTINGS = {
    "vae": {"path": "unused"},
    "data": {**DATA, "workers": 0},
    "validation": {"data": {**DATA, "workers": 0}},
    "loop": {"steps": 1, "validate_every": 1},
}


@pytest.fixture
def model(tmp_path):
    tree, config = Tree("pt", "cpu"), tiny_vae_config(use_attention=False)
    parameters = tree.runtime.parameters(build(tree, "vae", config))
    weights = {name: tree.numpy(p).copy() for name, p in parameters.items()}
    save_weights(tmp_path / "model", weights, config.model_dump(mode="json"))
    return tmp_path / "model"


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["release_vae", *map(str, words), "--tree", "pt"])
    main()


@pytest.mark.pt
def test_a_release_has_half_precision_and_statistics_of_its_latents(model, tmp_path, monkeypatch, capsys):
    config, target = write_config(tmp_path / "train.yaml", SETTINGS), tmp_path / "release"
    run(monkeypatch, model, config, target, "--clips", 3)
    assert "3 held-out clips: PSNR" in capsys.readouterr().out
    stored, trained = StoredWeights(target), StoredWeights(model)
    assert {stored.dtype(name) for name in stored} == {"F16"}
    assert all(np.array_equal(stored[name], trained[name].astype(np.float16)) for name in trained)
    described = read_hub_config(VAEConfig, target)
    assert len(described.scale) == len(described.shift) == described.latent_dim
    assert all(scale > 0 for scale in described.scale)
    assert len({*described.shift}) == described.latent_dim


@pytest.mark.pt
def test_a_release_that_cannot_be_is_refused(model, tmp_path, monkeypatch):
    config = write_config(tmp_path / "train.yaml", SETTINGS)
    before = (model / "config.json").read_bytes()
    for words, message in [
        ((model, config, model), "would overwrite its checkpoint"),
        ((model, config, "--clips", 0), "--clips: got 0, wanted 1 or more"),
    ]:
        with pytest.raises(SystemExit, match=message):
            run(monkeypatch, *words)
    assert (model / "config.json").read_bytes() == before


@pytest.mark.pt
def test_a_channel_that_never_changes_has_no_scale(model, tmp_path):
    weights = dict(StoredWeights(model).items())
    for name, x in weights.items():
        if name.startswith("encoder.conv_out"):
            x[0] = 0
    config = read_hub_config(VAEConfig, model)
    save_weights(tmp_path / "dead", weights, config.model_dump(mode="json"))
    from common.vae_training import VAETrainConfig

    with pytest.raises(ValueError, match="latent channel 0 never changes"):
        latent_statistics(Tree("pt", "cpu"), str(tmp_path / "dead"), VAETrainConfig(**SETTINGS), 2)
