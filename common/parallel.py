"""Which process this is among several: the mesh object handed to whatever can be spread over ranks."""

import os
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")


class Mesh(NamedTuple):
    """The identity on one process. `torchrun` and `msrun` start the others and number them."""

    rank: int = 0
    size: int = 1

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This rank's items, every size-th: all ranks together have each exactly once."""
        return list(items[self.rank :: self.size])


def mesh_from_environment() -> Mesh:
    """The mesh that `torchrun` (RANK, WORLD_SIZE) or `msrun` (RANK_ID, MS_WORKER_NUM) announced; else one
    process.
    """
    env = os.environ
    rank = env.get("RANK", env.get("RANK_ID", "0"))
    size = env.get("WORLD_SIZE", env.get("MS_WORKER_NUM", "1"))
    mesh = Mesh(int(rank), int(size))
    if not 0 <= mesh.rank < mesh.size:
        raise ValueError(
            f"launch: rank {mesh.rank} of {mesh.size} processes; start them with torchrun or msrun"
        )
    return mesh
