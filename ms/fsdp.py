"""ZeRO stage 3: the parameters themselves are shared by ranks and come together layer by layer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from .parallel import Ranks

MISSING = (
    "parallel.zero: got 3, wanted at most 2: sharing the parameters themselves is PyTorch's FSDP; use zero=2 "
    "with recompute and ema_on_host, or the pt tree"
)


class Owned(nn.Cell):
    """What zero.Sharded is for stages 1 and 2: here vectors are joined from this rank's parts only.

    Raises:
        ValueError: this tree has no stage 3.
    """

    stage = 3
    mean: Any

    def __init__(self, ranks: Ranks):
        super().__init__(auto_prefix=False)
        raise ValueError(MISSING)

    def mean_part(self, x: Tensor) -> Tensor:
        """The vector, which arrives averaged."""
        raise NotImplementedError(MISSING)

    def part(self, x: Tensor) -> Tensor:
        """The vector, which has this rank's part only."""
        raise NotImplementedError(MISSING)

    def whole(self, part: Tensor, length: int) -> Tensor:
        """The vector, which stays a part."""
        raise NotImplementedError(MISSING)

    def total(self, x: Tensor) -> Tensor:
        """The sum over parts of a number."""
        raise NotImplementedError(MISSING)

    def arrays(self, vector: Tensor, params: Sequence) -> list:
        """The whole array of each parameter that was joined; all ranks ask together."""
        raise NotImplementedError(MISSING)

    def vector(self, arrays: Sequence, params: Sequence) -> np.ndarray:
        """This rank's part of the joined arrays."""
        raise NotImplementedError(MISSING)


def shard_parameters(root: nn.Cell, units: Sequence, ranks: Ranks) -> None:
    """Share the parameters of `root`; each unit, inner ones first, comes together while it runs.

    Raises:
        ValueError: this tree has no stage 3.
    """
    raise ValueError(MISSING)


def together(root: nn.Cell) -> Any:
    """A context in which all parameters are whole, to use parts of `root` on their own."""
    raise ValueError(MISSING)
