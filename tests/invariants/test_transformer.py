"""Promises of the transformer and the pipeline around it."""

import numpy as np
import pytest

from common.conditions import grid_inputs, text_inputs
from common.noise import normal
from common.rope import timestep_features
from common.runs import SamplerConfig
from common.samplers import SAMPLERS
from common.schedules import ScheduleConfig
from tests.conftest import ONLY_PT
from tests.tiny import build, tiny_transformer_config
from tools.parity.tree import Tree


def predict(tree, model, x, text, keep_BL=None, multiple=1, dtype="float32", keep_BTHW=None):
    """One prediction from NumPy inputs."""
    B = len(x)
    grid = grid_inputs(model.config, x.shape[2:], B, keep_BTHW, dtype)
    keep_BL = np.ones(text.shape[:2], bool) if keep_BL is None else keep_BL
    states, keep_text = text_inputs(text, keep_BL, multiple)
    keep_video = None if grid.keep_video is None else tuple(map(tree.tensor, grid.keep_video))
    features = tree.tensor(timestep_features(np.full(B, 500.0)))
    with tree.runtime.inference():
        text_kv = tree.transformer.TextProjection(model)(tree.runtime.to_tensor(states, "cpu", dtype))
        constants = tree.tensor(keep_text), tree.tensor(grid.cos_S13P), tree.tensor(grid.sin_S13P)
        x = tree.runtime.to_tensor(x, "cpu", dtype)
        return tree.numpy(model(x, features, text_kv, *constants, keep_video, None))


def inputs(shape=(1, 4, 2, 4, 6), text_length=5):
    return normal(shape, 0, 0), normal((shape[0], text_length, 16), 0, 1)


@ONLY_PT
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("num_layers", [1, 4, 7])
def test_any_number_of_layers_and_any_stride(tree, stride, num_layers):
    model = build(tree, "transformer", tiny_transformer_config(sparse_n=stride, num_layers=num_layers))
    y = predict(tree, model, *inputs())
    assert y.shape == (1, 4, 2, 4, 6)
    assert np.isfinite(y).all()


@ONLY_PT
def test_sparse_is_not_dense(tree):
    sparse, dense = (build(tree, "transformer", tiny_transformer_config(sparse_n=n)) for n in (2, 1))
    assert np.abs(predict(tree, sparse, *inputs()) - predict(tree, dense, *inputs())).max() > 1e-3


def test_padded_text_and_padded_video_change_nothing(tree):
    """Masked keys carry no weight: garbage behind the masks must not reach the result."""
    model = build(tree, "transformer", tiny_transformer_config(sparse_n=4, num_layers=6))
    x, text = inputs()  # 12 tokens, padded to 16: whole sub-sequences are padding
    expected = predict(tree, model, x, text)
    assert np.isfinite(expected).all()
    padded = np.concatenate([text, 100 * normal((1, 3, 16), 5, 5)], axis=1)
    keep = np.arange(8)[None] < 5
    np.testing.assert_allclose(predict(tree, model, x, padded, keep, multiple=8), expected, atol=1e-5)


@ONLY_PT
def test_masked_video_does_not_reach_the_rest(tree):
    model = build(tree, "transformer", tiny_transformer_config())
    x, text = inputs((2, 4, 2, 4, 8))
    keep = np.ones((2, 2, 4, 8), bool)
    keep[1, :, :, 4:] = False  # sample 1 is half as wide
    garbage = x.copy()
    garbage[1, :, :, :, 4:] = 50.0
    a, b = (predict(tree, model, v, text, keep_BTHW=keep) for v in (x, garbage))
    np.testing.assert_allclose(a[0], b[0], atol=1e-5)
    np.testing.assert_allclose(a[1, ..., :4], b[1, ..., :4], atol=1e-5)
    assert (
        np.abs(predict(tree, model, garbage, text) - predict(tree, model, x, text))[1, ..., :4].max() > 1e-3
    )


@ONLY_PT
def test_samples_of_a_batch_do_not_mix(tree):
    model = build(tree, "transformer", tiny_transformer_config())
    x, text = inputs((2, 4, 3, 4, 6))
    together = predict(tree, model, x, text)
    for i in range(2):
        np.testing.assert_allclose(
            together[i : i + 1], predict(tree, model, x[i : i + 1], text[i : i + 1]), atol=1e-5
        )


def test_half_precision_is_close_and_rope_precision_is_visible(tree):
    x, text = inputs((1, 4, 5, 8, 8))
    full = predict(tree, build(tree, "transformer", tiny_transformer_config()), x, text)
    exact, rounded = (
        predict(
            tree,
            build(tree, "transformer", tiny_transformer_config(rope_precision=precision), dtype="float16"),
            x,
            text,
            dtype="float16",
        )
        for precision in ("float32", "reference")
    )
    assert np.abs(exact - full).max() < 0.02 * np.abs(full).max()
    assert np.abs(rounded - full).max() < 0.05 * np.abs(full).max()
    assert (exact != rounded).any()


@pytest.mark.ms
@pytest.mark.pt
def test_same_names_and_numbers_in_both_trees():
    trees = Tree("ms"), Tree("pt")
    config = tiny_transformer_config(sparse_n=4)
    models = [build(tree, "transformer", config) for tree in trees]
    names = [{n: tuple(p.shape) for n, p in t.runtime.parameters(m).items()} for t, m in zip(trees, models)]
    assert names[0] == names[1]
    outputs = [predict(tree, model, *inputs((2, 4, 3, 6, 10))) for tree, model in zip(trees, models)]
    np.testing.assert_allclose(*outputs, atol=3e-5)


def denoise(tree, model, seeds, text, keep, sampler, callback=None):
    shape = (len(seeds), 4, 2, 4, 6)
    draw = tree.pipeline.LatentSampler(model, sampler.table(), sampler.guidance())
    return tree.numpy(draw(text, keep, shape, tree.pipeline.seeded_noise(shape, seeds), callback))


def test_how_videos_are_batched_does_not_change_them(tree):
    model = build(tree, "transformer", tiny_transformer_config(num_layers=5))
    sampler = SamplerConfig(num_steps=3)
    text = normal((3, 5, 16), 0, 1)  # negative, prompt a, prompt b
    keep = np.arange(5)[None] < np.array([[3], [5], [4]])
    rows = [0, 0, 1, 2]
    together = denoise(tree, model, [7, 8], text[rows], keep[rows], sampler)
    for i, prompt in enumerate((1, 2)):
        alone = denoise(tree, model, [7 + i], text[[0, prompt]], keep[[0, prompt]], sampler)
        np.testing.assert_allclose(together[i : i + 1], alone, atol=2e-3 * np.abs(alone).max())


@ONLY_PT
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "CogVideoX"])  # a table like DDIM's
def test_every_sampler_runs_as_its_table_says(tree, name):
    """The graph's step equals the table stepped in NumPy."""
    model = build(tree, "transformer", tiny_transformer_config(num_layers=2))
    offered = SAMPLERS[name]
    sampler = SamplerConfig(
        name=name,
        num_steps=6,
        prediction_type=offered.prediction_types[0],
        schedule=ScheduleConfig(rescale_betas_zero_snr=offered.zero_snr),
        guidance_scale=1,
    )
    table, steps = sampler.table(), []
    text, keep = normal((1, 5, 16), 0, 1), np.ones((1, 5), bool)
    latents = denoise(tree, model, [3], text, keep, sampler, steps.append)
    draw = tree.pipeline.seeded_noise((1, 4, 2, 4, 6), [3])
    x, state = table.init_noise_sigma * draw(0), (None, ())
    for row, step in enumerate(steps):
        x, state = table.step_numpy(row, x, tree.numpy(step.output_GCTHW), state, draw(row + 1))
    np.testing.assert_allclose(latents, x, atol=1e-3 * np.abs(x).max())
    assert [step.timestep for step in steps] == list(table.timesteps_R)


@ONLY_PT
def test_guidance_needs_both_halves(tree):
    model = build(tree, "transformer", tiny_transformer_config(num_layers=1))
    with pytest.raises(ValueError, match="got 1 rows of text, wanted 2 for 1 videos"):
        denoise(tree, model, [0], normal((1, 5, 16), 0, 1), np.ones((1, 5), bool), SamplerConfig(num_steps=2))


def test_guidance_of_at_most_one_is_off_unless_asked_for(tree):
    """Off: one row of text, the prompt's, at any scale. Asked for: between the negative prompt and it."""
    model = build(tree, "transformer", tiny_transformer_config(num_layers=1))
    text, keep = normal((2, 5, 16), 0, 1), np.ones((2, 5), bool)
    sampler, steps = SamplerConfig(name="DDIM", num_steps=2), []
    off = [
        denoise(tree, model, [3], text[1:], keep[1:], sampler.replace(guidance_scale=scale))
        for scale in (0, 0.5, 1)
    ]
    np.testing.assert_array_equal(off[0], off[2])
    np.testing.assert_array_equal(off[1], off[2])

    asked = sampler.replace(guidance_scale=0.5, guidance_below_one=True)
    latents = denoise(tree, model, [3], text, keep, asked, steps.append)
    table = asked.table()
    x, state = table.init_noise_sigma * tree.pipeline.seeded_noise((1, 4, 2, 4, 6), [3])(0), (None, ())
    for row, step in enumerate(steps):
        empty, prompt = np.split(tree.numpy(step.output_GCTHW), 2)
        x, state = table.step_numpy(row, x, (empty + prompt) / 2, state)
    np.testing.assert_allclose(latents, x, atol=1e-4 * np.abs(x).max())
    assert np.abs(latents - off[2]).max() > 1e-2 * np.abs(x).max()
