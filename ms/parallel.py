"""What ranks do together: averages that carry gradients, exchanges of tokens, and agreement between their
processes.
"""

import re
from typing import Any, NamedTuple

import mindspore
import numpy as np
from mindspore import Tensor, nn
from mindspore.communication import GlobalComm, create_group, get_group_size, get_rank, init, release

from common.errors import InputError
from common.host import kind_of
from common.parallel import Mesh

from . import kernels

LOST = re.compile(r"mccl|hccl|collective|AllReduce|Connection (closed|reset|refused)", re.IGNORECASE)


class Group(NamedTuple):
    """Some ranks that talk among themselves, and which of them this one is."""

    size: int = 1
    rank: int = 0
    handle: Any = None


ALONE = Group()


class Mean(nn.Cell):
    """The mean of a tensor over ranks, elementwise; gradients are averaged likewise. One rank: identity."""

    def __init__(self, size: int):
        super().__init__(auto_prefix=False)
        self.size = size
        if size > 1:
            self.all_reduce = mindspore.ops.AllReduce()

    def construct(self, x: Tensor) -> Tensor:
        return self.all_reduce(x) / self.size if self.size > 1 else x


class Gather(nn.Cell):
    """Every rank's tensor, one after the other along the first dim; no gradient passes."""

    def __init__(self, group: Group):
        super().__init__(auto_prefix=False)
        self.size, self.rank = group.size, group.rank
        # AllGather on a CPU knows no groups but the whole; a sum of what is zero elsewhere is exact
        self.by_sum = kernels.device() == "cpu"
        operator = mindspore.ops.AllReduce if self.by_sum else mindspore.ops.AllGather
        self.communicate = operator(group=group.handle)

    def construct(self, x: Tensor) -> Tensor:
        if not self.by_sum:
            return self.communicate(x)
        parts, nothing = (), mindspore.ops.zeros_like(x)
        for i in range(self.size):
            parts = (*parts, x if i == self.rank else nothing)
        return self.communicate(mindspore.ops.cat(parts, 0))


class MeanPart(nn.Cell):
    """This rank's part, along the first dim, of the mean over all ranks; no gradient passes."""

    def __init__(self, group: Group):
        super().__init__(auto_prefix=False)
        self.size, self.rank = group.size, group.rank
        self.by_sum = kernels.device() == "cpu"  # which has no ReduceScatter
        operator = mindspore.ops.AllReduce if self.by_sum else mindspore.ops.ReduceScatter
        self.communicate = operator(group=group.handle)

    def construct(self, x: Tensor) -> Tensor:
        total = self.communicate(x)
        if self.by_sum:
            length = x.shape[0] // self.size
            total = total[self.rank * length : (self.rank + 1) * length]
        return total / self.size


class Exchange(nn.Cell):
    """Chunk i of the first dim goes to rank i, and comes back as chunk i of what rank i sends; gradients
    take the same way home.
    """

    def __init__(self, group: Group):
        super().__init__(auto_prefix=False)
        self.swap = _Swap(group)

    def construct(self, x: Tensor) -> Tensor:
        return self.swap(x)


class _Swap(nn.Cell):
    """The exchange with its gradient, which is the exchange again."""

    def __init__(self, group: Group):
        super().__init__(auto_prefix=False)
        self.swap = _SwapOnCPU(group) if kernels.device() == "cpu" else _alltoall(group)

    def construct(self, x: Tensor) -> Tensor:
        return self.swap(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple:
        return (self.swap(dout),)


def _alltoall(group: Group) -> Any:
    return mindspore.ops.AlltoAll(group.size, 0, 0, group=group.handle)


class _SwapOnCPU(nn.Cell):
    """A CPU has no AlltoAll: every rank gets everything and takes what is meant for it."""

    def __init__(self, group: Group):
        super().__init__(auto_prefix=False)
        self.rank = group.rank
        self.gather = Gather(group)

    def construct(self, x: Tensor) -> Tensor:
        return self.gather(x.reshape(1, *x.shape))[:, self.rank]


class Ranks:
    """The processes of a run."""

    def __init__(self, mesh: Mesh, device: str):
        """Meet the other ranks, which must do the same.

        Args:
            device: where tensors live, as `runtime.setup` said.
        """
        self.rank = mesh.rank
        self.size = mesh.size
        self.device = device
        if mesh.size > 1:
            init("mccl" if kind_of(device) == "cpu" else "hccl")
            if (get_rank(), get_group_size()) != (mesh.rank, mesh.size):
                raise InputError(
                    f"launch: the environment says rank {mesh.rank} of {mesh.size}, wanted {get_rank()} of "
                    f"{get_group_size()} as msrun counts; unset RANK and WORLD_SIZE, give msrun --node_rank"
                )
        self.mean = Mean(mesh.size)

    def everyone(self) -> Group:
        """All ranks."""
        return Group(self.size, self.rank, GlobalComm.WORLD_COMM_GROUP) if self.size > 1 else ALONE

    def neighbours(self, size: int) -> Group:
        """This rank's group where every `size` ranks in a row are one; all ranks must ask."""
        if size == 1 or size == self.size:
            return self.everyone() if size > 1 else ALONE
        first = self.rank // size * size
        name = f"ranks_{first}_to_{first + size - 1}"
        create_group(name, list(range(first, first + size)))
        return Group(size, self.rank - first, name)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return float(self.mean(Tensor(np.array([flag], np.float32))).asnumpy()[0]) > 0

    def average(self, x: float) -> float:
        """The mean of a number over ranks."""
        return float(self.mean(Tensor(np.array([x], np.float32))).asnumpy()[0])

    def lost(self, error: BaseException) -> bool:
        """Whether an error means that another rank is gone."""
        return self.size > 1 and isinstance(error, RuntimeError) and LOST.search(str(error)) is not None

    def leave(self) -> None:
        """Take the groups apart; all ranks do so after the last thing they did together."""
        if self.size > 1:
            self.any(False)  # nobody leaves while another is in a collective
            release()
