"""Which process this is among several: the mesh object handed to whatever can be spread over ranks."""

import atexit
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

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


def exit_without_shutdown(error: BaseException) -> None:
    """End the process, once its error is told, with the exit code that it has anyway, without taking the
    interpreter down.
    """
    code = 2 if isinstance(error, InputError | OSError) else 1
    if isinstance(error, KeyboardInterrupt):
        code = 130

    def end() -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)

    atexit.register(end)
