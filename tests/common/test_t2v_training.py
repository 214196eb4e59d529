"""What the transformer's training works out in NumPy before a step."""

import numpy as np
import pytest

from common.conditions import grid_inputs
from common.diffusion import DiffusionConfig
from common.models import TransformerConfig
from common.t2v_training import Samples, T2VTrainConfig, step_inputs, validation_given
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
