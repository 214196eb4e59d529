"""How ranks share the optimizer's work and memory (ZeRO, arXiv:1910.02054), on the long vectors that
parameters are joined to.

Stage 0 keeps everything on every rank. Stage 1 cuts moments, averages and the update into a part for each
rank; stage 2 cuts the sums of gradients that accumulate as well; for stage 3 see fsdp.py.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from . import ops, runtime
from .fsdp import owned
from .parallel import Gather, Mean, MeanPart, Ranks


class Shards(nn.Module):
    """What ranks share of long vectors, and what all stages below 3 do alike."""

    stage: int
    mean: Any  # of a tensor over ranks

    def mean_part(self, x: Tensor) -> Tensor:
        """What this rank updates of the mean over ranks of a vector."""
        raise NotImplementedError

    def part(self, x: Tensor) -> Tensor:
        """What this rank updates of a vector that is the same on all."""
        raise NotImplementedError

    def whole(self, part: Tensor, length: int) -> Tensor:
        """The vector of so many elements, from all ranks' parts."""
        raise NotImplementedError

    def total(self, x: Tensor) -> Tensor:
        """The sum over parts of a number."""
        raise NotImplementedError

    def arrays(self, vector: Tensor, params: Sequence) -> list:
        """The whole array of each parameter that was joined; all ranks ask together."""
        ends = np.cumsum([np.prod(param.shape, dtype=int) for param in params])
        parts = np.split(runtime.to_numpy(self.whole(vector, int(ends[-1]))), ends[:-1])
        return [part.reshape(tuple(param.shape)) for part, param in zip(parts, params, strict=True)]

    def vector(self, arrays: Sequence, params: Sequence) -> np.ndarray:
        """This rank's part of the joined arrays."""
        joined = np.concatenate([array.reshape(-1) for array in arrays])
        return runtime.to_numpy(self.part(runtime.to_tensor(joined, "cpu")))


class Replicated(Shards):
    """Stage 0: every rank does the same update of everything."""

    stage = 0

    def __init__(self, mean: Mean):
        super().__init__()
        self.mean = mean

    def mean_part(self, x: Tensor) -> Tensor:
        return self.mean(x)

    def part(self, x: Tensor) -> Tensor:
        return x

    def whole(self, part: Tensor, length: int) -> Tensor:
        return part

    def total(self, x: Tensor) -> Tensor:
        return x


class Sharded(Shards):
    """Stages 1 and 2: every rank updates its part, and all of them exchange the result."""

    def __init__(self, ranks: Ranks, stage: int):
        super().__init__()
        group = ranks.everyone()
        self.stage = stage
        self.size, self.rank = group.size, group.rank
        self.mean = Mean(group.size)
        self.scatter = MeanPart(group)
        self.gather = Gather(group)

    def mean_part(self, x: Tensor) -> Tensor:
        return self.scatter(self.padded(x))

    def part(self, x: Tensor) -> Tensor:
        x = self.padded(x)
        length = x.shape[0] // self.size
        return x[self.rank * length : (self.rank + 1) * length]

    def whole(self, part: Tensor, length: int) -> Tensor:
        return self.gather(part)[:length]

    def total(self, x: Tensor) -> Tensor:
        return self.mean(x) * self.size

    def padded(self, x: Tensor) -> Tensor:
        """Filled up with zeros to equal parts."""
        missing = -x.shape[0] % self.size
        return ops.cat((x, ops.zeros((missing,), x)), 0) if missing else x


def sharding(ranks: Ranks, stage: int) -> Shards:
    """For a stage, which is 0 where there is one rank."""
    if stage == 3 and ranks.size > 1:
        return owned(ranks)
    return Sharded(ranks, stage) if stage and ranks.size > 1 else Replicated(ranks.mean)
