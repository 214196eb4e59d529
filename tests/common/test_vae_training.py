"""The config of the VAE's training."""

import pytest

from common.parallel import Mesh
from common.vae_training import VAETrainConfig


def config(**keys):
    data = {"sources": [{"generated": True}], "num_frames": 5, "height": 32, "width": 32}
    return VAETrainConfig(vae={"path": "v"}, data=data, loop={"steps": 1}, **keys)


def test_ranks_and_parts_share_a_batch_evenly():
    assert config(global_batch_size=8).per_rank(Mesh()) == 8
    assert config(global_batch_size=8, accumulate=2).per_rank(Mesh(1, 4)) == 2
    with pytest.raises(ValueError, match=r"global_batch_size: got 8, wanted a multiple of 3 ranks"):
        config(global_batch_size=8).per_rank(Mesh(0, 3))
    with pytest.raises(ValueError, match="accumulate=4"):
        config(global_batch_size=8, accumulate=4).per_rank(Mesh(0, 4))
