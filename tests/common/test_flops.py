"""Counted operations are those of the layers: weights times tokens, and attention's two products."""

import numpy as np

from common.flops import transformer_flops
from common.models import TransformerConfig
from tests.tiny import tiny_transformer_config

RELEASED = TransformerConfig()


def test_skiparse_divides_the_self_attention_of_sparse_blocks():
    dense = transformer_flops(RELEASED.replace(sparse1d=False, sparse_n=1), 24 * 40 * 40, 512)
    sparse = transformer_flops(RELEASED, 24 * 40 * 40, 512)
    np.testing.assert_allclose(sparse.self_attention / dense.self_attention, (4 + 28 / 4) / 32)
    assert sparse.projections == dense.projections
    assert sparse.training == 3 * sparse.forward


def test_projections_are_the_matrices():
    """By hand for one block of width 24 on 16 tokens and 4 words."""
    config = tiny_transformer_config(num_layers=1, sparse_n=1, sparse1d=False)
    block = 2 * (16 * (8 + 6) * 24 * 24 + 4 * 2 * 24 * 24)
    ends = 2 * (16 * 24 * 4 * 8 + 4 * 24 * (16 + 24))
    flops = transformer_flops(config, 16, 4)
    assert flops == (block + ends, 4 * 16 * 16 * 24, 4 * 16 * 4 * 24)
