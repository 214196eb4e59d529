"""Promises of OD-VAE in tiles: the whole's shape for every size, and the whole's numbers for one tile."""

from types import SimpleNamespace

import numpy as np
import pytest

from common.models import CausalVAEConfig
from common.noise import normal
from common.tiling import TilingConfig
from tests.conftest import ONLY_PT, SLOW_MS

SMALL = TilingConfig(window_frames=3, overlap_frames=1, tile_size=4, overlap_size=1)


def tiny(tree):
    config = CausalVAEConfig(
        hidden_size=32, hidden_size_mult=(1, 1, 1, 1), num_res_blocks=1, norm_type="groupnorm"
    )
    vae = tree.causal_vae.CausalVAE(config)
    tree.loading.initialize(vae, 0)
    return tree.runtime.place(vae, tree.device)


def pointwise(tree, dtype=None):
    """A VAE whose pixels depend on their own latent only: one tiling of it is as good as any other."""

    def encode(x_BCTHW):
        x = tree.numpy(x_BCTHW)
        return tree.runtime.to_tensor(x[:, :, ::4, ::8, ::8], "cpu", dtype)

    def decode(z_BCTHW):
        z = tree.numpy(z_BCTHW).repeat(8, 3).repeat(8, 4)
        return tree.runtime.to_tensor(
            np.concatenate([z[:, :, :1], z[:, :, 1:].repeat(4, 2)], 2), "cpu", dtype
        )

    return SimpleNamespace(config=CausalVAEConfig(), encode=encode, decode=decode)


def tiled(tree, vae, array, tiling, dtype=None):
    code = tree.tiling.encode_tiled if array.shape[1] == 3 else tree.tiling.decode_tiled
    with tree.runtime.inference():
        return tree.numpy(code(vae, tree.runtime.to_tensor(array, "cpu", dtype), tiling))


@pytest.mark.parametrize("thw", [(1, 1, 1), (4, 5, 3), (7, 6, 11)])
def test_tiles_of_a_pointwise_vae_are_the_whole(tree, thw):
    T, H, W = thw
    vae, z, x = pointwise(tree), normal((2, 4, *thw), 0, 0), normal((1, 3, 4 * T - 3, 8 * H, 8 * W), 0, 1)
    np.testing.assert_allclose(tiled(tree, vae, z, SMALL), tree.numpy(vae.decode(tree.tensor(z))), atol=1e-6)
    np.testing.assert_allclose(tiled(tree, vae, x, SMALL), x[:, :, ::4, ::8, ::8], atol=1e-6)


def test_half_precision_stays(tree):
    z = normal((1, 4, 4, 5, 6), 0, 0).astype(np.float16).astype(np.float32)
    vae = pointwise(tree, "float16")
    with tree.runtime.inference():
        y = tree.tiling.decode_tiled(vae, tree.runtime.to_tensor(z, "cpu", "float16"), SMALL)
    assert y.dtype == tree.runtime.DTYPES["float16"]
    whole = tree.numpy(vae.decode(tree.tensor(z)))
    np.testing.assert_allclose(tree.numpy(y), whole, atol=2e-3)


@pytest.mark.parametrize("tree", [SLOW_MS], indirect=True)
def test_half_precision_in_graph_mode(tree):
    """Results of graphs, which eager operators misread in float16."""
    vae, z = tiny(tree), normal((1, 4, 1, 3, 2), 0, 0)
    tiling = TilingConfig(tile_size=2, overlap_size=1)
    exact = tiled(tree, vae, z, tiling)
    half = tiled(tree, tree.runtime.cast(tiny(tree), "float16"), z, tiling, "float16")
    np.testing.assert_allclose(half, exact, atol=2e-2 * np.abs(exact).max())


def test_where_four_tiles_meet(tree):
    """Constant tiles, the upper right one 1: it fades in from its left before it fades out and once after, so
    its weight in the corner is no product of two ramps.
    """
    values = iter([0.0, 1.0, 0.0, 0.0])

    def decode(z_BCTHW):
        B, _, T, H, W = z_BCTHW.shape
        return tree.tensor(np.full((B, 3, 4 * T - 3, 8 * H, 8 * W), next(values), np.float32))

    vae = SimpleNamespace(config=CausalVAEConfig(), decode=decode)
    y = tiled(tree, vae, np.zeros((1, 4, 1, 6, 6), np.float32), SMALL)
    ramp = np.clip((np.arange(48) - 24) / 8, 0, 1)
    expected = np.outer(1 - ramp, ramp)
    expected[24:32, 24:32] = np.outer(1 - ramp, ramp**2)[24:32, 24:32]
    np.testing.assert_allclose(y[0, 0, 0], expected, atol=1e-6)


@ONLY_PT
@pytest.mark.parametrize("tiling", [TilingConfig(), TilingConfig(window_frames=0, tile_size=0)])
def test_one_tile_is_the_whole(tree, tiling):
    vae, x, z = tiny(tree), np.tanh(normal((1, 3, 9, 32, 40), 0, 0)), normal((1, 4, 3, 4, 5), 0, 1)
    with tree.runtime.inference():
        moments, pixels = (tree.numpy(f(tree.tensor(a))) for f, a in ((vae.encode, x), (vae.decode, z)))
    np.testing.assert_array_equal(tiled(tree, vae, x, tiling), moments)
    np.testing.assert_array_equal(tiled(tree, vae, z, tiling), pixels)


@ONLY_PT
@pytest.mark.parametrize("thw", [(1, 9, 4), (5, 6, 7)])
def test_tiles_have_the_shape_of_the_whole(tree, thw):
    """The reference's decoder crops nothing at its default sizes: 6x7 latents became 56x72 pixels."""
    T, H, W = thw
    vae = tiny(tree)
    x = np.tanh(normal((1, 3, 4 * T - 3, 8 * H, 8 * W), 0, 0))
    assert tiled(tree, vae, x, SMALL).shape == (1, 8, *thw)
    assert tiled(tree, vae, normal((1, 4, *thw), 0, 1), SMALL).shape == x.shape


@ONLY_PT
def test_the_first_window_and_a_tile_s_inside_are_coded_as_if_alone(tree):
    vae, z = tiny(tree), normal((1, 4, 5, 6, 6), 0, 0)
    y = tiled(tree, vae, z, SMALL)
    with tree.runtime.inference():
        first = tree.numpy(vae.decode(tree.tensor(z[:, :, :3, :4, :4])))
        last = tree.numpy(vae.decode(tree.tensor(z[:, :, 2:, 3:, 3:])))
    np.testing.assert_array_equal(y[:, :, :9, :24, :24], first[..., :24, :24])
    np.testing.assert_array_equal(y[:, :, 9:, 32:, 32:], last[:, :, 1:, 8:, 8:])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 8, 64, 64), "8 frames; it must be a multiple of 4 plus 1, for example 5"),
        ((1, 3, 9, 60, 64), "frames of 60x64; height and width must be multiples of 8"),
    ],
)
def test_clips_it_cannot_encode(tree, shape, message):
    with pytest.raises(ValueError, match=message):
        tiled(tree, pointwise(tree), np.zeros(shape, np.float32), SMALL)
