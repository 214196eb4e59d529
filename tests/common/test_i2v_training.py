"""What is shown in training: by the schedule, whatever the ranks, and how a model begins from another."""

from collections import ChainMap

import numpy as np
import pytest

from common.checkpoint import save_weights, shapes_of
from common.condition_layers import LET_IN, add_condition_layers, begins_conditions, fresh_transformer
from common.i2v_training import ConditionNoiseConfig, Draw, I2VConfig, MaskStage, check_conditions, show
from common.masks import MASKED
from common.runs import ModelSource, check_pair
from tests.tiny import tiny_transformer_config, tiny_vae_config

STRIDE = (4, 8, 8)
CLIPS = np.random.default_rng(0).uniform(-0.9, 0.9, (6, 3, 9, 16, 16)).astype(np.float32)
MIXED = MaskStage(video={"t2iv": 1, "i2v": 1, "transition": 1, "random_temporal": 1})


def shown(places, noise=None, step=5, clips=CLIPS, keep=None, seed=2, masks=MIXED):
    config = I2VConfig(stages=(MIXED,), noise=noise)
    return show(config, masks, clips, keep, STRIDE, Draw(seed, step, places))


def test_the_stage_of_a_step():
    config = I2VConfig(stages=({"from_step": 0}, {"from_step": 10}, {"from_step": 30}))
    assert [config.stage(step).from_step for step in (0, 9, 10, 29, 30, 1000)] == [0, 0, 10, 10, 30, 30]


@pytest.mark.parametrize("steps", [(), (5,), (0, 0), (0, 20, 10)])
def test_stages_begin_at_zero_and_go_up(steps):
    with pytest.raises(ValueError, match="stages begin at"):
        I2VConfig(stages=tuple({"from_step": step} for step in steps))


def test_how_clips_are_shared_among_ranks_does_not_matter():
    noise = ConditionNoiseConfig()
    whole = shown(range(6), noise)
    halves = [shown(range(r, 6, 2), noise, clips=CLIPS[r::2]) for r in (0, 1)]
    for r in (0, 1):
        for ours, part in zip(whole, halves[r]):
            np.testing.assert_array_equal(ours[r::2], part)
    assert (whole.given_BT != shown(range(6), noise, step=6).given_BT).any()
    assert (whole.given_BT != shown(range(6), noise, seed=3).given_BT).any()


def test_what_is_shown_without_noise_is_the_clip_or_nothing():
    found = shown(range(6))
    assert len({tuple(row) for row in found.given_BT}) > 2  # several tasks in one batch
    given = np.broadcast_to(found.given_BT[:, None, :, None, None], CLIPS.shape)
    np.testing.assert_array_equal(found.x_BCTHW[given], CLIPS[given])
    assert (found.x_BCTHW[~given] == MASKED).all()
    first_row = found.mask_BMTHW[:, :, 0, 0, 0]
    np.testing.assert_array_equal(first_row, np.repeat(~found.given_BT[:, :1], 4, axis=1))


def test_noise_has_the_strength_its_distribution_says():
    noise = ConditionNoiseConfig(mean=-2.0, std=0.0, noiseless_ratio=0.0)
    found, clean = shown(range(6), noise), shown(range(6))
    given = np.broadcast_to(found.given_BT[:, None, :, None, None], CLIPS.shape)
    difference = (found.x_BCTHW - clean.x_BCTHW)[given]
    assert abs(difference.std() / np.exp(-2.0) - 1) < 0.05
    assert (found.x_BCTHW[~given] == MASKED).all()
    np.testing.assert_array_equal(shown(range(6), noise.replace(noiseless_ratio=1.0)).x_BCTHW, clean.x_BCTHW)


def padded():
    """Six clips of which the lower half is padding, and every second is a single frame."""
    keep = np.ones((6, 3, 2, 2), bool)
    keep[:, :, 1] = False
    keep[1::2, 1:] = False
    clips = CLIPS.copy()
    clips[..., 8:, :] = 0
    clips[1::2, :, 1:] = 0
    return clips, keep


def test_padding_is_neither_shown_nor_generated_and_gets_no_noise():
    clips, keep = padded()
    noise = ConditionNoiseConfig(noiseless_ratio=0.0)
    found = shown(
        range(6), noise, clips=clips, keep=keep, masks=MaskStage(video={"clear": 1}, image={"clear": 1})
    )
    assert (found.x_BCTHW[..., 8:, :] == 0).all()
    assert (found.x_BCTHW[1::2, :, 1:] == 0).all()
    assert (found.x_BCTHW[..., :8, :] != clips[..., :8, :]).any(axis=(1, 2, 3, 4)).all()
    assert not found.mask_BMTHW.any()


def test_tasks_are_drawn_for_the_length_a_clip_has():
    """A picture among videos has the ratios of pictures; the last frame is the clip's own."""
    clips, keep = padded()
    keep[:, 2] = False  # videos end after five of nine frames
    masks = MaskStage(video={"transition": 1}, image={"t2iv": 1})
    found = shown(range(6), clips=clips, keep=keep, masks=masks)
    assert [np.flatnonzero(row).tolist() for row in found.given_BT] == [[0, 4], []] * 3


@pytest.mark.parametrize(
    ("conditions", "mask_channels", "message"),
    [(I2VConfig(), None, "vae_scale_factor_t to the VAE"), (None, 4, "conditions is missing")],
)
def test_conditions_go_with_a_model_that_takes_them(conditions, mask_channels, message):
    with pytest.raises(ValueError, match=message):
        check_conditions(conditions, tiny_transformer_config(vae_scale_factor_t=mask_channels))


def test_the_mask_has_as_many_channels_as_a_latent_frame_has_frames():
    with pytest.raises(ValueError, match="vae_scale_factor_t is 8, the VAE has 4"):
        check_pair(tiny_vae_config(), tiny_transformer_config(vae_scale_factor_t=8))


def test_an_image_model_begins_as_the_text_model_it_was(tmp_path):
    shapes = {
        "pos_embed.proj.weight": (24, 4, 2, 2),
        "pos_embed.proj.bias": (24,),
        "proj_out.weight": (16, 24),
    }
    text_model = fresh_transformer(shapes, 3)
    save_weights(tmp_path, text_model, {})
    source = ModelSource(path=str(tmp_path))
    config = tiny_transformer_config(vae_scale_factor_t=4)
    assert begins_conditions(source, config)
    assert not begins_conditions(source, tiny_transformer_config())
    wanted = shapes | {
        "pos_embed_masked_hidden_states.0.proj.weight": (24, 4, 2, 2),
        "pos_embed_masked_hidden_states.0.proj.bias": (24,),
        "pos_embed_masked_hidden_states.1.weight": (24, 24),
        "pos_embed_mask.0.proj.weight": (24, 4, 2, 2),
        "pos_embed_mask.0.proj.bias": (24,),
        "pos_embed_mask.1.weight": (24, 24),
    }
    grown = add_condition_layers(text_model, wanted)
    assert shapes_of(grown) == wanted
    assert all(not grown[name].any() for name in LET_IN)
    np.testing.assert_array_equal(
        grown["pos_embed_masked_hidden_states.0.proj.weight"], text_model["pos_embed.proj.weight"]
    )
    assert grown["pos_embed_mask.0.proj.weight"].any()
    np.testing.assert_array_equal(grown["proj_out.weight"], text_model["proj_out.weight"])
    assert add_condition_layers(grown, wanted) is grown  # one that has them is taken as it is


def test_half_a_set_of_condition_layers_is_not_completed():
    stored = {"pos_embed_mask.1.weight": np.ones((24, 24), np.float32)}
    wanted = {"pos_embed_mask.1.weight": (24, 24), "pos_embed_mask.0.proj.bias": (24,)}
    assert add_condition_layers(stored, wanted) is stored  # the loader then names what is missing


def test_shapes_of_layers_in_front_of_others():
    front, behind = {"a": np.zeros((2,))}, {"a": np.zeros((3,)), "b": np.zeros((4,))}
    assert shapes_of(ChainMap(front, behind)) == {"a": (2,), "b": (4,)}
