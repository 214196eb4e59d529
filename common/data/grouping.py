"""Which samples make up the batch of a step: all of one bucket, over all ranks, each sample once an epoch."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from common.noise import generator, index_of


class Epoch(NamedTuple):
    """The batches of an epoch: the group each is from, and the numbers of its samples."""

    group: np.ndarray  # (steps,)
    samples: np.ndarray  # (steps, batch)


def deal(groups: Sequence[np.ndarray], batch: int, permutation: Callable[[int], np.ndarray]) -> Epoch:
    """An epoch of batches in random order, each from one group.

    The last batch of a group is filled up from the group's beginning, so a few samples come twice and none is
    left out.

    Args:
        permutation: of so many, called for every group and then for the batches.
    """
    dealt, origin = [], []
    for number, members in enumerate(groups):
        steps = -(-len(members) // batch)
        dealt.append(np.resize(members[permutation(len(members))], (steps, batch)))
        origin.append(np.full(steps, number))
    order = permutation(sum(map(len, dealt)))
    return Epoch(np.concatenate(origin)[order], np.concatenate(dealt)[order])


class Dealer:
    """The batch of any step; a pure function of (groups, batch, seed, step)."""

    def __init__(self, groups: Sequence[np.ndarray], batch: int, seed: int):
        self.groups, self.batch, self.seed = groups, batch, seed
        self.steps_per_epoch = sum(-(-len(members) // batch) for members in groups)
        self._epoch = lru_cache(maxsize=2)(self._deal)

    def __call__(self, step: int) -> tuple[int, np.ndarray]:
        """The group, and the samples of all ranks together; rank r of P takes every P-th from the r-th on."""
        number, place = divmod(step, self.steps_per_epoch)
        epoch = self._epoch(number)
        return int(epoch.group[place]), epoch.samples[place]

    def _deal(self, number: int) -> Epoch:
        rng = generator(self.seed, index_of(f"epoch {number}"))
        return deal(self.groups, self.batch, rng.permutation)


def by_size(keys: np.ndarray) -> list[np.ndarray]:
    """Where each different row of `keys` stands: the largest group first, ties by first appearance."""
    _, first, inverse, counts = np.unique(
        keys, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    members = np.split(np.argsort(inverse.ravel(), kind="stable"), np.cumsum(counts)[:-1])
    return [members[group] for group in np.lexsort((first, -counts))]
