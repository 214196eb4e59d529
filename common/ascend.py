"""Limits of FlashAttentionScore, Ascend's fused attention, looked at before anything loads."""

from .errors import InputError
from .host import kind_of
from .models import TransformerConfig

MAX_HEADS = 256  # head_num; a group block folds the batch into it
HEAD_DIM_MULTIPLE = 16


def check_attention(device: str, transformer: TransformerConfig, batch: int) -> None:
    """Refuse, for an Ascend, what the operator would refuse inside the first compiled graph.

    Args:
        batch: rows that the transformer sees at once, twice the videos under guidance.

    Raises:
        InputError: with the remedy.
    """
    if kind_of(device) != "ascend":
        return
    heads, head_dim = transformer.num_attention_heads, transformer.attention_head_dim
    if head_dim % HEAD_DIM_MULTIPLE:
        raise InputError(
            f"transformer.attention_head_dim: got {head_dim}, FlashAttentionScore wants a multiple of "
            f"{HEAD_DIM_MULTIPLE}; choose 48 or 96"
        )
    if transformer.skip_stride > 1 and batch * heads > MAX_HEADS:
        raise InputError(
            f"batch: a group block folds {batch} rows of {heads} heads into one, FlashAttentionScore takes "
            f"{MAX_HEADS} heads; at most {MAX_HEADS // heads} rows go together: lower batch_size, or "
            "raise accumulate"
        )
