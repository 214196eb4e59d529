"""How ranks share the tokens of a sequence, block by block, and how much they send each other for it.

Tokens in native order (m, n, j) shared by m make group blocks local, shared by j single blocks. From one to
the other one tensor is exchanged. A block that attends to everything exchanges tokens for heads instead
(Ulysses, arXiv:2309.14509): q, k and v before, the result after.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from .errors import InputError
from .models import TransformerConfig
from .skiparse import FULL, SINGLE, padded_length

Kind = Literal["skiparse", "ulysses"]
STAY, TO_J, TO_M = "", "to_j", "to_m"
TENSORS_OF_ULYSSES = 4


def moves(plan: Sequence[str], kind: Kind, ranks: int) -> tuple[str, ...]:
    """What tokens do before each block, and after the last one, where they are shared by m again."""
    found, shared_by = [], TO_M
    for arrangement in (*plan, FULL):
        wanted = TO_J if arrangement == SINGLE and kind == "skiparse" and ranks > 1 else TO_M
        found.append(STAY if wanted == shared_by else wanted)
        shared_by = wanted
    return tuple(found)


def to_heads(arrangement: str, kind: Kind, ranks: int) -> bool:
    """Whether a block exchanges tokens for heads."""
    return ranks > 1 and (kind == "ulysses" or arrangement == FULL)


def check_sharing(kind: Kind, ranks: int, config: TransformerConfig) -> None:
    """Refuse what cannot be shared.

    Raises:
        InputError: the ranks do not divide K, or the heads.
    """
    if kind == "skiparse" and config.skip_stride % ranks:
        raise InputError(
            f"parallel.sequence: got {ranks} ranks, wanted a divisor of the skip stride {config.skip_stride} "
            "(sparse_n); more ranks can share by kind=ulysses, or take other samples (data parallel)"
        )
    if config.num_attention_heads % ranks:
        raise InputError(
            f"parallel.sequence: got {ranks} ranks, wanted a divisor of {config.num_attention_heads} "
            "attention heads: blocks that attend to everything exchange tokens for heads"
        )


def check_tokens(ranks: int, config: TransformerConfig, num_tokens: int) -> None:
    """Refuse a size whose tokens do not divide among the ranks.

    Raises:
        InputError: so many ranks cannot have equal shares.
    """
    length = padded_length(num_tokens, config.skip_stride)
    if length % ranks:
        raise InputError(
            f"parallel.sequence: got {ranks} ranks for {num_tokens} tokens (padded to {length}), wanted a "
            "divisor; choose another size or length of video, or fewer ranks"
        )


class Traffic(NamedTuple):
    """Elements one rank sends in a forward pass; as many again in the backward pass."""

    blocks: tuple[int, ...]  # what each block's attention and the move before it send; then the last move

    @property
    def total(self) -> int:
        return sum(self.blocks)


def traffic(config: TransformerConfig, kind: Kind, ranks: int, num_tokens: int, batch: int) -> Traffic:
    """What the exchanges of one forward pass send."""
    own = padded_length(num_tokens, config.skip_stride) // ranks * batch * config.width
    sent = own * (ranks - 1) // ranks  # a rank's own chunk stays
    *before, last = moves(config.plan, kind, ranks)
    tensors = [
        bool(move) + TENSORS_OF_ULYSSES * to_heads(arrangement, kind, ranks)
        for move, arrangement in zip(before, config.plan, strict=True)
    ]
    return Traffic(tuple(count * sent for count in (*tensors, bool(last))))


def describe_traffic(
    config: TransformerConfig, kind: Kind, ranks: int, num_tokens: int, batch: int, bytes_each: int
) -> str:
    """One line for the beginning of a run."""
    ours, ulysses = (traffic(config, k, ranks, num_tokens, batch).total for k in (kind, "ulysses"))
    return (
        f"sequence: {ranks} ranks ({kind}); each sends {ours * bytes_each / 2**20:.1f} MiB in a forward pass "
        f"of {num_tokens} tokens, {ours / ulysses:.3f} of Ulysses"
    )
