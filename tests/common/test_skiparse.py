"""The native token order is exactly the reference's rearrangement, seen as views."""

import numpy as np
import pytest

from common.conditions import grid_inputs, text_inputs
from common.models import TransformerConfig
from common.skiparse import FULL, GROUP, SINGLE, keep_masks, layer_plan, native_order, padded_length


def attend(q, k, v, keep):
    """Plain attention over axis 0 of (tokens, width) in float64."""
    logits = q @ k.T / np.sqrt(q.shape[1])
    logits[:, ~keep] = -np.inf
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True) @ v


def members(length, stride, arrangement):
    """Sub-sequences as the paper defines them, token by token."""
    i = np.arange(length)
    key = {SINGLE: i % stride, GROUP: i // stride % stride, FULL: 0 * i}[arrangement]
    return [i[key == value] for value in np.unique(key)]


@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("num_tokens", [1, 5, 16, 45, 64, 144])
@pytest.mark.parametrize("arrangement", [SINGLE, GROUP])
def test_views_of_the_native_order_are_the_sub_sequences(stride, num_tokens, arrangement):
    rng = np.random.default_rng(0)
    S = padded_length(num_tokens, stride)
    q, k, v = (np.pad(rng.standard_normal((num_tokens, 6)), ((0, S - num_tokens), (0, 0))) for _ in range(3))
    real = np.arange(S) < num_tokens

    expected = np.zeros((S, 6))
    for tokens in members(S, stride, arrangement):
        if real[tokens].any():
            expected[tokens] = attend(q[tokens], k[tokens], v[tokens], real[tokens])

    order = native_order(num_tokens, stride)
    masks = keep_masks(num_tokens, stride, 1, 1)
    shape = (S // stride, stride, 6) if arrangement == SINGLE else (stride, S // stride, 6)
    views = [x[order].reshape(shape) for x in (q, k, v)]
    batched = [x.transpose(1, 0, 2) for x in views] if arrangement == SINGLE else views
    keep = np.ones((stride, S // stride), bool) if masks is None else masks.of(arrangement)[:, 0, 0]
    y = np.stack([attend(*(x[i] for x in batched), keep[i]) for i in range(stride)])
    assert np.isfinite(y).all()
    y = (y.transpose(1, 0, 2) if arrangement == SINGLE else y).reshape(S, 6)[np.argsort(order)]
    np.testing.assert_allclose(y[:num_tokens], expected[:num_tokens], atol=1e-14)


def test_plan_is_the_references_at_32_layers():
    plan = layer_plan(32, 4)
    assert [i for i, kind in enumerate(plan) if kind == FULL] == [0, 1, 30, 31]
    assert all(kind == (GROUP if i % 2 else SINGLE) for i, kind in enumerate(plan) if 1 < i < 30)
    assert layer_plan(32, 1) == (FULL,) * 32
    assert layer_plan(3, 4) == (FULL,) * 3


def test_no_masks_unless_something_is_padded():
    assert keep_masks(32, 4, 2, 3) is None
    assert keep_masks(32, 4, 2, 3, np.ones((2, 32), bool)) is None
    masks = keep_masks(33, 4, 2, 3)
    assert [m.shape for m in masks] == [(1, 1, 1, 48), (8, 1, 1, 12), (4, 1, 1, 12)]


def test_per_sample_masks_follow_the_folded_axes():
    keep_BS = np.ones((2, 32), bool)
    keep_BS[1, 20:] = False
    masks = keep_masks(32, 4, 2, 3, keep_BS)
    assert [m.shape for m in masks] == [(2, 1, 1, 32), (8, 1, 1, 8), (4, 6, 1, 8)]
    assert masks.single[0::2].all()  # (j b): sample 0 keeps everything
    assert masks.group[:, :3].all()  # (b h)
    assert not masks.group[:, 3:].all()


def test_no_row_is_without_keys():
    masks = keep_masks(3, 4, 1, 1)  # 13 of 16 are padding: whole sub-sequences are
    assert all(mask.any(axis=-1).all() for mask in masks)


@pytest.mark.parametrize("latent_frames", [8, 12, 16, 20, 24])  # 29, 45, 61, 77, 93 frames
@pytest.mark.parametrize(("height", "width"), [(256, 256), (352, 640), (640, 640), (288, 512)])
def test_advised_sizes_never_pad(latent_frames, height, width):
    config = TransformerConfig()
    assert grid_inputs(config, (latent_frames, height // 8, width // 8), 1).keep_video is None


def test_a_patch_counts_if_any_of_its_cells_does():
    config = TransformerConfig(sparse1d=False)
    keep = np.zeros((1, 1, 4, 4), bool)
    keep[0, 0, 1, 1] = True  # in the first patch only
    assert grid_inputs(config, (1, 4, 4), 1, keep).keep_video.full[0, 0, 0].tolist() == [
        True,
        False,
        False,
        False,
    ]


def test_latents_that_do_not_cut_into_patches():
    with pytest.raises(
        ValueError, match="5x4 cells do not cut into patches of 2; use multiples of 16 pixels"
    ):
        grid_inputs(TransformerConfig(), (1, 5, 4), 1)


def test_text_is_cut_to_its_used_length_in_steps_of_64():
    states, keep = np.zeros((2, 512, 3)), np.zeros((2, 512), bool)
    keep[0, :70], keep[1, :5] = True, True
    cut, mask = text_inputs(states, keep)
    assert cut.shape == (2, 128, 3)
    assert mask.shape == (2, 1, 1, 128)
    assert mask.sum() == 75
    assert text_inputs(states[:, :64], np.ones((2, 64), bool))[1] is None
