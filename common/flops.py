"""Floating-point operations of the transformer, counted from its config: a multiply-add is two."""

from typing import NamedTuple

from .models import TransformerConfig
from .skiparse import FULL, padded_length


class Flops(NamedTuple):
    """Of one sample's forward pass."""

    projections: int  # everything linear in the number of tokens
    self_attention: int
    cross_attention: int

    @property
    def forward(self) -> int:
        return sum(self)

    @property
    def training(self) -> int:
        """Forward, and twice as much backward."""
        return 3 * self.forward


def transformer_flops(config: TransformerConfig, num_tokens: int, text_length: int) -> Flops:
    """Of one sample; a sparse block's query attends to S/K tokens."""
    S, L, E = padded_length(num_tokens, config.skip_stride), text_length, config.width
    patch = config.patch_size**2
    per_token = (4 + 2 + 8) * E * E  # q, k, v, out; q and out of cross-attention; feed-forward
    per_text = 2 * E * E  # k and v of cross-attention
    ends = S * E * patch * (config.in_channels + config.out_channels) + L * E * (config.caption_channels + E)
    keys = sum(S if arrangement == FULL else S // config.skip_stride for arrangement in config.plan)
    return Flops(
        projections=2 * (config.num_layers * (S * per_token + L * per_text) + ends),
        self_attention=2 * 2 * S * keys * E,
        cross_attention=2 * 2 * S * L * E * config.num_layers,
    )
