"""Promises of the VAE: causality, chunked equals whole, the right errors, and the same in both trees."""

import numpy as np
import pytest

from common.models import CausalVAEConfig
from common.noise import normal
from tests.conftest import ONLY_PT, PT_AND_SLOW_MS, SLOW_MS
from tests.tiny import build, tiny_vae_config
from tools.parity.tree import Tree


def clip(frames, seed=0, size=16):
    return np.tanh(normal((1, 3, frames, size, size), seed, 0))


def encode(tree, vae, x, chunk=0):
    with tree.runtime.inference():
        return tree.numpy(vae.encode(tree.tensor(x), chunk))


def decode(tree, vae, z, chunk=0):
    with tree.runtime.inference():
        return tree.numpy(vae.decode(tree.tensor(z), chunk))


@ONLY_PT
@pytest.mark.parametrize("interpolation", ["nearest", "trilinear"])
@pytest.mark.parametrize("l1", ["2D", "3D"])
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunked_equals_whole_for_every_length(tree, interpolation, l1, chunk):
    changes = {"t_interpolation": interpolation}
    if l1 == "3D":  # the 8x8x8 variant
        changes |= {
            "l1_dowmsample_block": "Spatial2xTime2x3DDownsample",
            "l1_downsample_wavelet": "HaarWaveletTransform3D",
            "l1_upsample_block": "Spatial2xTime2x3DUpsample",
            "l1_upsample_wavelet": "InverseHaarWaveletTransform3D",
        }
    config = tiny_vae_config(**changes)
    stride = config.stride_thw[0]
    vae = build(tree, "vae", config)
    for latent_frames in range(1, 9):
        x, z = clip(1 + stride * (latent_frames - 1)), normal((1, 4, latent_frames, 2, 2), 1, latent_frames)
        whole = encode(tree, vae, x)
        assert whole.shape == (1, 8, latent_frames, 2, 2)
        np.testing.assert_allclose(encode(tree, vae, x, chunk * stride), whole, atol=1e-4)
        whole = decode(tree, vae, z)
        assert whole.shape == (1, 3, x.shape[2], 16, 16)
        np.testing.assert_allclose(decode(tree, vae, z, chunk), whole, atol=1e-4)


@pytest.mark.parametrize("tree", [SLOW_MS], indirect=True)
def test_chunked_decode_equals_whole_in_graph_mode(tree):
    vae = build(tree, "vae", tiny_vae_config())
    for latent_frames in (2, 4, 6):  # 2 raises and even lengths are wrong in the reference
        z = normal((1, 4, latent_frames, 2, 2), 1, 0)
        np.testing.assert_allclose(decode(tree, vae, z, 1), decode(tree, vae, z), atol=2e-5)


@PT_AND_SLOW_MS
def test_ninety_three_frames_in_chunks(tree):
    """24 latent frames in chunks of two: the case in which the reference's last frames are wrong."""
    vae = build(tree, "vae", tiny_vae_config())
    z = normal((1, 4, 24, 2, 2), 1, 0)
    whole, chunked = decode(tree, vae, z), decode(tree, vae, z, 2)
    assert whole.shape[2] == 93
    np.testing.assert_allclose(chunked, whole, atol=2e-5)


@ONLY_PT
@pytest.mark.parametrize("learned", [False, True])
def test_od_vae_in_chunks_equals_whole(tree, learned):
    """The decoder of its LayerNorm form; the encoder always holds a GroupNorm, so it refuses chunks."""
    config = CausalVAEConfig(
        hidden_size=32,
        hidden_size_mult=(1, 1, 1, 1),
        num_res_blocks=1,
        norm_type="layernorm",
        encoder_temporal_downsample=(
            "",
            *(["TimeDownsampleRes2x" if learned else "TimeDownsample2x"] * 2),
            "",
        ),
        decoder_temporal_upsample=("", "", *(["TimeUpsampleRes2x" if learned else "TimeUpsample2x"] * 2)),
    )
    vae = tree.causal_vae.CausalVAE(config)
    tree.loading.initialize(vae, 0)
    tree.runtime.place(vae, tree.device)
    for latent_frames in range(2, 6):
        z = normal((1, 4, latent_frames, 2, 2), 1, latent_frames)
        whole = decode(tree, vae, z)
        assert whole.shape == (1, 3, 4 * latent_frames - 3, 16, 16)
        np.testing.assert_allclose(decode(tree, vae, z, 2), whole, atol=1e-4)
    with pytest.raises(ValueError, match="GroupNorm's statistics span time"):
        encode(tree, vae, clip(9), 4)


@ONLY_PT
def test_the_encoder_is_causal(tree):
    vae = build(tree, "vae", tiny_vae_config())
    x = clip(17)
    changed = x.copy()
    changed[:, :, 9:] = clip(8, seed=1)
    a, b = encode(tree, vae, x), encode(tree, vae, changed)
    np.testing.assert_array_equal(a[:, :, :3], b[:, :, :3])
    assert np.abs(a[:, :, 3] - b[:, :, 3]).max() > 1e-3


@ONLY_PT
def test_a_clips_first_latent_is_its_first_frame_encoded_alone(tree):
    vae = build(tree, "vae", tiny_vae_config())
    x = clip(9)
    np.testing.assert_allclose(encode(tree, vae, x)[:, :, :1], encode(tree, vae, x[:, :, :1]), atol=1e-6)


@ONLY_PT
def test_groupnorm_refuses_chunks_and_works_whole(tree):
    config = tiny_vae_config(
        base_channels=32,
        norm_type="groupnorm",
        encoder_energy_flow_hidden_size=32,
        decoder_energy_flow_hidden_size=32,
    )
    vae = build(tree, "vae", config)
    assert decode(tree, vae, normal((1, 4, 2, 2, 2), 0, 0)).shape == (1, 3, 5, 16, 16)
    with pytest.raises(ValueError, match=r"GroupNorm's statistics span time.*chunk_frames to 0"):
        encode(tree, vae, clip(9), 4)


@ONLY_PT
@pytest.mark.parametrize(
    ("shape", "chunk", "message"),
    [
        ((1, 3, 8, 16, 16), 0, "8 frames; it must be a multiple of 4 plus 1, for example 5"),
        ((1, 3, 9, 20, 16), 0, "frames of 20x16; height and width must be multiples of 8"),
        ((1, 1, 9, 16, 16), 0, "expected RGB clips"),
        ((1, 3, 9, 16, 16), 6, "chunk_frames is 6; it must be a multiple of 4"),
    ],
)
def test_clips_it_cannot_encode(tree, shape, chunk, message):
    vae = build(tree, "vae", tiny_vae_config())
    with pytest.raises(ValueError, match=message):
        encode(tree, vae, np.zeros(shape, np.float32), chunk)


@pytest.mark.ms
@pytest.mark.pt
def test_same_names_and_numbers_in_both_trees():
    trees = Tree("ms"), Tree("pt")
    config = tiny_vae_config(use_attention=False)
    vaes = [build(tree, "vae", config) for tree in trees]
    names = [{n: tuple(p.shape) for n, p in t.runtime.parameters(v).items()} for t, v in zip(trees, vaes)]
    assert names[0] == names[1]
    moments = [encode(tree, vae, clip(5)) for tree, vae in zip(trees, vaes)]
    np.testing.assert_allclose(*moments, atol=2e-5)
