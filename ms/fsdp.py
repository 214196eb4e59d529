"""ZeRO stage 3: the parameters themselves are shared by ranks and come together layer by layer."""

from collections.abc import Sequence
from typing import Any

from mindspore import nn

from common.errors import InputError

from .parallel import Ranks

MISSING = (
    "parallel.zero: got 3, wanted at most 2: sharing the parameters themselves is PyTorch's FSDP; use zero=2 "
    "with recompute, or the pt tree"
)


def owned(ranks: Ranks) -> Any:
    """What zero.Sharded is for stages 1 and 2: here vectors are joined from this rank's parts only.

    Raises:
        InputError: this tree has no stage 3.
    """
    raise InputError(MISSING)


def shard_parameters(root: nn.Cell, units: Sequence, ranks: Ranks) -> None:
    """Share the parameters of `root`; each unit, inner ones first, comes together while it runs.

    Raises:
        InputError: this tree has no stage 3.
    """
    raise InputError(MISSING)


def together(root: nn.Cell) -> Any:
    """A context in which all parameters are whole, to use parts of `root` on their own.

    Raises:
        InputError: this tree has no stage 3.
    """
    raise InputError(MISSING)
