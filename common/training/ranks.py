"""What the processes of a training run agree on. The trees hand in ranks that talk; the one here is alone."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from common.errors import InputError


class Ranks(Protocol):
    """The processes of a run. `any` is where they meet: all call it equally often and hear the same."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...

    def any(self, flag: bool) -> bool:
        """Whether any rank said True."""
        ...

    def lost(self, error: BaseException) -> bool:
        """Whether an error means that another rank is gone."""
        ...


class OneRank(NamedTuple):
    """The identity: one process."""

    rank: int = 0
    size: int = 1

    def any(self, flag: bool) -> bool:
        return flag

    def lost(self, error: BaseException) -> bool:
        return False


ONE_RANK = OneRank()


def together(ranks: Ranks, action: Callable[[], object]) -> None:
    """Run `action` on every rank; if it failed on one, every rank raises, so none waits for one that is gone.

    Raises:
        InputError, OSError: this rank's own failure, or that another rank had one.
    """
    failure: Exception | None = None
    try:
        action()
    except (InputError, OSError) as error:
        failure = error
    if ranks.any(failure is not None):
        raise failure or InputError(
            f"rank {ranks.rank}: stopped because another rank failed; see its message"
        )
