"""Which process this is among several: the mesh object handed to whatever can be spread over ranks."""

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

from .errors import InputError

Item = TypeVar("Item")


class Mesh(NamedTuple):
    """The identity on one process. `torchrun` and `msrun` start the others and number them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on this host: which of its accelerators is ours

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This rank's items, every size-th: all ranks together have each exactly once."""
        return list(items[self.rank :: self.size])


def mesh_from_environment() -> Mesh:
    """What `torchrun` (RANK, WORLD_SIZE, LOCAL_RANK) or `msrun` (RANK_ID, MS_WORKER_NUM, DEVICE_ID) said;
    one process without a launcher.
    """
    env = os.environ
    rank = env.get("RANK", env.get("RANK_ID", "0"))
    size = env.get("WORLD_SIZE", env.get("MS_WORKER_NUM", "1"))
    local_rank = env.get("LOCAL_RANK", env.get("DEVICE_ID", "0"))
    mesh = Mesh(int(rank), int(size), int(local_rank))
    if not 0 <= mesh.rank < mesh.size:
        raise InputError(
            f"launch: rank {mesh.rank} of {mesh.size} processes; start them with torchrun or msrun"
        )
    return mesh


class AgreedStop(SystemExit):
    """The end of the program on which all ranks agreed, with its exit code."""


class Member(Protocol):
    """This process among those of a run, as far as its coming and going is concerned."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def lost(self, error: BaseException) -> bool: ...
    def leave(self) -> None: ...


Met = TypeVar("Met", bound=Member)


@contextlib.contextmanager
def meeting(ranks: Met) -> Iterator[Met]:
    """Inside, the ranks of a run are met; afterwards each leaves in order.

    Groups are taken apart after success only, and after a stop that all agreed on: where a rank failed, or
    was told to stop at once, the others wait in a collective, and taking groups apart would wait for them.
    There the process ends without the interpreter's own shutdown, in which threads of a group abort it
    (pytorch/pytorch#179291).

    Raises:
        ConnectionAbortedError: another rank is gone.
    """
    try:
        yield ranks
    except AgreedStop:
        ranks.leave()
        raise
    except BaseException as error:
        if ranks.size > 1:
            _exit_without_shutdown(_exit_code(error))
        if ranks.lost(error):
            raise ConnectionAbortedError(
                f"rank {ranks.rank}: another rank is gone ({str(error).splitlines()[0]}), so this one ends "
                "too; look at the other's log and at the system's (out of memory?)"
            ) from None
        raise
    ranks.leave()


def _exit_code(error: BaseException) -> int:
    """What the process ends with once an error is told."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, InputError | OSError) else 1


def _exit_without_shutdown(code: int) -> None:
    """End the process, once its error is told, without taking the interpreter down."""

    def end() -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)

    atexit.register(end)
