"""Which frames are given, and what the model is shown of them."""

from collections import Counter

import numpy as np
import pytest

from common.masks import (
    MASKED,
    Condition,
    MaskConfig,
    add_noise,
    compress_mask,
    draw_given,
    generate_mask,
    given_frames,
    latent_mask,
    masked,
    pixels_of,
    shares_of,
)
from tests.tiny import tiny_transformer_config

STRIDE = (4, 8, 8)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("t2iv", []),
        ("i2v", [0]),
        ("transition", [0, 8]),
        ("clear", list(range(9))),
        ("continuation", [0, 1, 2]),
        ("random_temporal", [1, 4, 7]),
    ],
)
def test_each_task_gives_its_frames(kind, given):
    given_T = given_frames(kind, 9, lambda low, high: 3, lambda total, count: [7, 1, 4][:count])
    assert np.flatnonzero(given_T).tolist() == given


def test_the_number_of_given_frames_is_drawn_within_the_clear_ratios():
    asked = []
    given_frames("continuation", 17, lambda low, high: asked.append((low, high)) or low, list, (0.25, 0.5))
    assert asked == [(4, 9)]  # floor(4.25), ceil(8.5)


def test_tasks_are_drawn_as_often_as_their_ratios_say():
    config = MaskConfig(video={"i2v": 3, "transition": 1})
    kept = Counter(
        tuple(np.flatnonzero(draw_given(config, 9, np.random.default_rng(seed)))) for seed in range(400)
    )
    assert set(kept) == {(0,), (0, 8)}
    assert 0.68 < kept[(0,)] / 400 < 0.82


def test_the_order_of_the_ratios_does_not_matter():
    one, other = MaskConfig(video={"i2v": 1, "clear": 1}), MaskConfig(video={"clear": 1, "i2v": 1})
    for seed in range(20):
        drawn = [draw_given(config, 9, np.random.default_rng(seed)) for config in (one, other)]
        np.testing.assert_array_equal(*drawn)


def test_images_have_ratios_of_their_own():
    config = MaskConfig(video={"i2v": 1}, image={"t2iv": 1})
    assert not draw_given(config, 1, np.random.default_rng(0)).any()


def test_ratios_that_are_all_zero_count_alike():
    assert shares_of({"t2iv": 0, "clear": 0}) == {"t2iv": 0.5, "clear": 0.5}


@pytest.mark.parametrize(
    "wrong",
    [{"video": {}}, {"video": {"i2v": -1}}, {"video": {"sideways": 1}}, {"image": {"i2v": 1}}],
)
def test_ratios_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MaskConfig(**wrong)


def test_the_least_clear_ratio_is_not_above_the_largest():
    with pytest.raises(ValueError, match="min_clear_ratio"):
        MaskConfig(min_clear_ratio=0.6, max_clear_ratio=0.5)


def test_what_has_to_be_generated_is_masked_and_noise_comes_to_the_rest_only():
    x_BCTHW = np.random.default_rng(0).uniform(-1, 1, (2, 3, 5, 8, 8)).astype(np.float32)
    given_BT = np.array([[True, False, False, False, True], [False] * 5])
    generate_B1THW = generate_mask(given_BT, None, 8, 8)
    shown = masked(x_BCTHW, generate_B1THW)
    assert (shown[0, :, [0, 4]] == x_BCTHW[0, :, [0, 4]]).all()
    assert (shown[0, :, 1:4] == MASKED).all()
    assert (shown[1] == MASKED).all()
    noisy = add_noise(shown, generate_B1THW, np.ones_like(shown), np.array([0.5, 0.5]))
    np.testing.assert_allclose(noisy[0, :, [0, 4]], shown[0, :, [0, 4]] + 0.5)
    assert (noisy[:, :, 1:4] == MASKED).all()


def test_padding_is_not_to_be_generated_and_keeps_its_zeros():
    inside = np.zeros((1, 5, 16, 16), bool)
    inside[:, :, :8] = True
    generate_B1THW = generate_mask(np.zeros((1, 5), bool), inside, 16, 16)
    assert generate_B1THW[:, :, :, :8].all()
    assert not generate_B1THW[:, :, :, 8:].any()
    assert (masked(np.zeros((1, 3, 5, 16, 16), np.float32), generate_B1THW)[..., 8:, :] == 0).all()


def test_a_mask_in_the_size_of_latents():
    given_BT = np.array([[True] * 6 + [False] * 3])
    mask_BMTHW = latent_mask(given_BT, (2, 3), STRIDE)
    assert mask_BMTHW.shape == (1, 4, 3, 2, 3)
    assert mask_BMTHW[0, :, :, 0, 0].T.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1]]
    assert (mask_BMTHW == mask_BMTHW[..., :1, :1]).all()


def test_an_even_number_of_frames_repeats_nothing():
    frames = np.arange(8, dtype=np.float32).reshape(1, 1, 8, 1, 1)
    compressed = compress_mask(np.broadcast_to(frames, (1, 1, 8, 8, 8)), STRIDE)
    assert compressed[0, :, :, 0, 0].T.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_latent_cells_as_pixels():
    cells = np.zeros((1, 3, 2, 2), bool)
    cells[0, :2, 0, 0] = True
    pixels = pixels_of(cells, STRIDE)
    assert pixels.shape == (1, 9, 16, 16)
    assert pixels[0, :5, :8, :8].all()
    assert pixels.sum() == 5 * 64


def test_patches_of_a_condition_hold_latents_before_the_mask():
    config = tiny_transformer_config(vae_scale_factor_t=4, sparse_n=1)
    latent, mask = np.full((2, 4, 3, 4, 6), 2.0), np.full((2, 4, 3, 4, 6), 5.0)
    patches = Condition(latent, mask).patches(config)
    assert patches.shape == (3 * 2 * 3, 2, 32)
    assert patches.dtype == np.float32
    assert (patches[..., :16] == 2).all()
    assert (patches[..., 16:] == 5).all()
