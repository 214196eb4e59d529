"""What ranks do together: averages that carry gradients, exchanges of tokens, and agreement between their
processes.
"""

import re
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from common.host import kind_of
from common.parallel import Mesh

PATIENCE = timedelta(hours=2)  # of a rank that waits for others; NCCL's own 10 minutes are too few


LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|tcpstore", re.IGNORECASE)


class Group(NamedTuple):
    """Some ranks that talk among themselves, and which of them this one is."""

    size: int = 1
    rank: int = 0
    handle: Any = None


ALONE = Group()


class Mean(nn.Module):
    """The mean of a tensor over ranks, elementwise; gradients are averaged likewise. One rank: identity."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return _AllReduce.apply(x) / self.size if self.size > 1 else x


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return _AllReduce.forward(ctx, grad.contiguous())


class Gather(nn.Module):
    """Every rank's tensor, one after the other along the first dim; no gradient passes."""

    def __init__(self, group: Group):
        super().__init__()
        self.group = group

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        whole = x.new_empty((self.group.size * x.shape[0], *x.shape[1:]))
        distributed.all_gather_into_tensor(whole, x.contiguous(), group=self.group.handle)
        return whole


class MeanPart(nn.Module):
    """This rank's part, along the first dim, of the mean over all ranks; no gradient passes."""

    def __init__(self, group: Group):
        super().__init__()
        self.group = group

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        part = x.new_empty((x.shape[0] // self.group.size, *x.shape[1:]))
        distributed.reduce_scatter_tensor(part, x.contiguous(), group=self.group.handle)
        return part / self.group.size


class Exchange(nn.Module):
    """Chunk i of the first dim goes to rank i, and comes back as chunk i of what rank i sends; gradients
    take the same way home.
    """

    def __init__(self, group: Group):
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        return _AllToAll.apply(x, self.group.handle)


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, handle: Any) -> Tensor:
        ctx.handle = handle
        swapped = torch.empty_like(x, memory_format=torch.contiguous_format)
        distributed.all_to_all_single(swapped, x.contiguous(), group=handle)
        return swapped

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        return _AllToAll.forward(ctx, grad, ctx.handle), None


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
            # ranks wait for one that samples or writes; one that died is noticed elsewhere (presence.py)
            distributed.init_process_group("nccl" if kind_of(device) == "cuda" else "gloo", timeout=PATIENCE)
        self.mean = Mean(mesh.size)

    def everyone(self) -> Group:
        """All ranks."""
        return Group(self.size, self.rank, distributed.group.WORLD) if self.size > 1 else ALONE

    def neighbours(self, size: int) -> Group:
        """This rank's group where every `size` ranks in a row are one; all ranks must ask."""
        if size == 1 or size == self.size:
            return self.everyone() if size > 1 else ALONE
        firsts = range(0, self.size, size)
        groups = [distributed.new_group(list(range(first, first + size))) for first in firsts]
        return Group(size, self.rank % size, groups[self.rank // size])

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return float(self.mean(torch.tensor([float(flag)], device=self.device))) > 0

    def average(self, x: float) -> float:
        """The mean of a number over ranks."""
        return float(self.mean(torch.tensor([x], device=self.device)))

    def lost(self, error: BaseException) -> bool:
        """Whether an error means that another rank is gone."""
        return self.size > 1 and isinstance(error, RuntimeError) and LOST.search(str(error)) is not None

    def leave(self) -> None:
        """Take the groups apart; all ranks do so after the last thing they did together."""
        if self.size > 1:
            distributed.barrier()
            distributed.destroy_process_group()
