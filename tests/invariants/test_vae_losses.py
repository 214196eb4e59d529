"""The VAE's loss beyond what the recordings pin."""

import numpy as np
import pytest

from common.vae_training import VAELossConfig
from tests.tiny import tiny_vae_config


@pytest.mark.parametrize("tree", [pytest.param("pt", marks=pytest.mark.pt)], indirect=True)
def test_a_learned_logvar_moves_towards_the_logarithm_of_the_error(tree):
    """d/dlogvar of error * exp(-logvar) + values * logvar, which the surrogate has to carry."""
    vae = tree.vae.WFVAE(tiny_vae_config(use_attention=False))
    tree.loading.initialize(vae, 0)
    config = VAELossConfig(learn_logvar=True, wavelet_weight=0, kl_weight=0)
    loss = tree.vae_losses.GeneratorLoss(config, vae, None, None, tree.parallel.Mean(1), "float32")
    logvar = 0.3
    tree.runtime.overwrite({"logvar": loss.logvar}, {"logvar": np.float32(logvar)})
    rng = np.random.default_rng(0)
    x = tree.tensor(rng.standard_normal((1, 3, 5, 32, 32)).astype(np.float32))
    noise = tree.tensor(rng.standard_normal((1, vae.config.latent_dim, 2, 4, 4)).astype(np.float32))
    one = tree.tensor(np.float32(1))
    values, (grad,) = tree.runtime.gradients(loss, [loss.logvar])(x, noise, one, one)
    terms = dict(zip(loss.terms, tree.numpy(values[1]), strict=True))
    size = 3 * 32 * 32
    expected = size - terms["pixel"] * size * np.exp(-logvar)
    assert float(tree.numpy(grad)) == pytest.approx(expected, rel=1e-4)
