"""The exchanges of sequence parallelism: how many, and the share of Ulysses that the release claims."""

import pytest

from common.models import TransformerConfig
from common.sharing import (
    STAY,
    TO_J,
    TO_M,
    check_sharing,
    check_tokens,
    describe_traffic,
    moves,
    to_heads,
    traffic,
)
from common.skiparse import FULL

RELEASED = TransformerConfig()


def test_tokens_move_between_single_and_group_blocks_only():
    plan = ("full", "full", "single", "group", "single", "full")
    assert moves(plan, "skiparse", 2) == (STAY, STAY, TO_J, TO_M, TO_J, TO_M, STAY)
    assert set(moves(plan, "ulysses", 2)) == set(moves(plan, "skiparse", 1)) == {STAY}
    assert [to_heads(a, "skiparse", 2) for a in plan] == [True, True, False, False, False, True]


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_released_model_sends_a_quarter_between_sparse_blocks(ranks):
    ours, ulysses = (traffic(RELEASED, kind, ranks, 24 * 40 * 40, 1) for kind in ("skiparse", "ulysses"))
    sparse = [i for i, arrangement in enumerate(RELEASED.plan) if arrangement != FULL]
    assert len(sparse) == 28
    for i in sparse:
        assert ours.blocks[i] <= 0.26 * ulysses.blocks[i]
    assert 0 < ours.total <= 0.35 * ulysses.total
    assert "0.344 of Ulysses" in describe_traffic(RELEASED, "skiparse", ranks, 38400, 1, 2)


def test_one_rank_sends_nothing():
    assert traffic(RELEASED, "skiparse", 1, 1600, 2).total == 0


@pytest.mark.parametrize(
    ("kind", "ranks", "message"),
    [
        ("skiparse", 3, "wanted a divisor of the skip stride 4"),
        ("ulysses", 5, "divisor of 24 attention heads"),
    ],
)
def test_ranks_that_cannot_share_are_refused(kind, ranks, message):
    with pytest.raises(ValueError, match=message):
        check_sharing(kind, ranks, RELEASED)


def test_tokens_that_do_not_divide_are_refused():
    dense = RELEASED.replace(sparse1d=False, sparse_n=1)
    check_tokens(4, RELEASED, 9)  # padded to 16
    with pytest.raises(ValueError, match="got 2 ranks for 9 tokens"):
        check_tokens(2, dense, 9)
