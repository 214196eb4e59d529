"""What the transformer's training works out in NumPy before a step."""

import numpy as np
import pytest

from common.conditions import grid_inputs
from common.data.t2v_config import T2VDataConfig
from common.diffusion import DiffusionConfig
from common.fingerprint import clips_of
from common.models import TransformerConfig
from common.skiparse import to_patches
from common.t2v_training import (
    Samples,
    T2VTrainConfig,
    noise_for,
    shares,
    step_inputs,
    validation_given,
)
from common.training.checkpoint import Facts, checkpoints, open_checkpoint, save
from common.training.resume import check_same_run
from tests.tiny import tiny_transformer_config, tiny_vae_config

COS, SIN = 7, 8  # places among a step's inputs


@pytest.mark.parametrize("precision", ["float32", "reference"])
def test_rotary_tables_are_rounded_as_in_sampling(precision):
    model: TransformerConfig = tiny_transformer_config(rope_precision=precision)
    latent = np.zeros((1, model.in_channels, 2, 8, 8), np.float32)
    samples = Samples(latent, None, np.zeros((1, 4, 8), np.float32), np.ones((1, 4), bool))
    inputs = step_inputs(DiffusionConfig(), model, latent, samples, np.array([5]), latent, dtype="float16")
    grid = grid_inputs(model, (2, 8, 8), 1, dtype="float16")
    assert np.array_equal(inputs[COS], grid.cos_S13P)
    assert np.array_equal(inputs[SIN], grid.sin_S13P)
    exact = grid_inputs(tiny_transformer_config(), (2, 8, 8), 1)
    assert np.array_equal(inputs[COS], exact.cos_S13P) is (precision == "float32")


def test_a_sampler_of_the_validation_that_cannot_be_is_refused_at_once():
    model = {"path": "nowhere"}
    validation = {"prompts": ["a"], "num_frames": 1, "height": 64, "width": 64, "sampler": {"name": "DDIMM"}}
    config = T2VTrainConfig(
        transformer=model,
        vae=model,
        text={"kind": "minilm"},
        data={"generated": True, "generated_sizes": [[1, 64, 64]]},
        validation=validation,
        loop={"steps": 1, "validate_every": 1},
    )
    with pytest.raises(ValueError, match="did you mean 'DDIM'"):
        validation_given(config, tiny_vae_config(), tiny_transformer_config())


def test_the_offset_moves_a_channel_as_a_whole():
    shape, where = (3, 2, 4, 4), (7, 5, [0, 1])
    plain = noise_for(DiffusionConfig(), shape, *where)
    moved = noise_for(DiffusionConfig(noise_offset=0.5), shape, *where) - plain
    np.testing.assert_allclose(moved, np.broadcast_to(moved[:, :, :1, :1, :1], moved.shape), atol=1e-6)
    assert len(np.unique(moved[:, :, 0, 0, 0])) == 2 * 3


def test_ranks_with_unequal_padding_make_one_mean():
    """Each divides by the cells that a rank has on average, also the one whose clips are all whole."""
    rng = np.random.default_rng(0)
    shape, model = (1, 3, 2, 4, 4), tiny_transformer_config()
    keeps = [np.ones((1, 2, 4, 4), bool), np.zeros((1, 2, 4, 4), bool)]
    keeps[1][:, :1] = True
    errors = [rng.random(shape).astype(np.float32) for _ in keeps]
    cells = float(np.mean([keep.sum() for keep in keeps]))
    losses = [
        (
            shares(keep, shape, model.patch_size, model.skip_stride, cells)
            * to_patches(error, model.patch_size, model.skip_stride)
        ).sum()
        for keep, error in zip(keeps, errors)
    ]
    kept = [np.broadcast_to(keep[:, None], shape) for keep in keeps]
    whole = np.concatenate([error[keep] for error, keep in zip(errors, kept)]).mean()
    assert np.mean(losses) == pytest.approx(whole, rel=1e-5)


def test_what_a_run_is_told_of_may_change_when_it_goes_on(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    data = {"annotations": str(tmp_path / "a.jsonl"), "sizes": {"max_tokens": 6}}
    config = T2VTrainConfig(
        transformer={"path": "a"}, vae={"path": "b"}, text={"kind": "minilm"}, data=data, loop={"steps": 1}
    )
    facts = Facts(1, config, "none")
    save(tmp_path, facts, {"x": np.zeros(1)}, lambda folder: folder.mkdir())
    found = open_checkpoint(checkpoints(tmp_path)[-1])
    for key, value in (("max_bad_share", 0.5), ("token_multiple", 4), ("workers", 0)):
        check_same_run(found, config.replace(data=config.data.replace(**{key: value})), config.free_keys)
    with pytest.raises(ValueError, match=r"data\.num_frames: 93 there, 33 here"):
        check_same_run(found, config.replace(data=config.data.replace(num_frames=33)), config.free_keys)


def test_clips_are_known_by_what_names_them(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"path": "1.mp4"}')
    data = T2VDataConfig(annotations=str(file), sizes={"max_tokens": 6})
    before = clips_of(data)
    assert clips_of(data.replace(num_frames=33)) == before
    file.write_text('{"path": "2.mp4", "cap": ""}')
    assert clips_of(data) != before
    (tmp_path / "index.json").write_text("{}")
    assert clips_of(data.replace(encoded=str(tmp_path))) not in (before, clips_of(data))
