"""The VAE's loss beyond what the recordings pin."""

import numpy as np
import pytest

from common.optim import OptimConfig
from common.parallel import Mesh
from common.training.loop import NotFinite
from common.vae_training import VAELossConfig
from tests.conftest import PT_AND_SLOW_MS
from tests.tiny import tiny_vae_config


@PT_AND_SLOW_MS
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
    gradients = tree.runtime.compiled(tree.runtime.gradients(loss, [loss.logvar]), loss)
    values, (grad,) = gradients(x, noise, one, one)
    terms = dict(zip(loss.terms, tree.numpy(values[1]), strict=True))
    size = 3 * 32 * 32
    expected = size - terms["pixel"] * size * np.exp(-logvar)
    assert float(tree.numpy(grad)) == pytest.approx(expected, rel=1e-4)


@PT_AND_SLOW_MS
def test_a_loss_that_overflows_is_named_and_changes_nothing(tree):
    """Its gradients are signs, and finite."""
    vae = tree.vae.WFVAE(tiny_vae_config(use_attention=False))
    tree.loading.initialize(vae, 0)
    params = tree.runtime.trainable(vae)
    bias = params["decoder.conv_out.bias"]
    tree.runtime.overwrite({"bias": bias}, {"bias": np.full(bias.shape, 3e36, np.float32)})
    config, mean = VAELossConfig(), tree.parallel.Mean(1)
    loss = tree.vae_losses.GeneratorLoss(config, vae, None, None, mean, "float32")
    ranks = tree.parallel.Ranks(Mesh(), tree.device)
    trained = tree.training.Trained(loss, params, OptimConfig(), ranks, "float32", ema_decay=0.9)
    before = {name: array.copy() for name, array in trained.state().items()}
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 3, 5, 32, 32)).astype(np.float32)
    noise = rng.standard_normal((1, vae.config.latent_dim, 2, 4, 4)).astype(np.float32)
    with pytest.raises(NotFinite, match="loss, nll"):
        trained.step([(x, noise, np.float32(0))])
    for name, array in trained.state().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
