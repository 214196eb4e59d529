"""What ranks do together: averages that carry gradients, and agreement between their processes."""

import torch
from torch import Tensor, distributed, nn

from common.parallel import Mesh


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
            distributed.init_process_group("nccl" if device == "cuda" else "gloo")
        self.mean = Mean(mesh.size)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return float(self.mean(torch.tensor([float(flag)], device=self.device))) > 0

    def average(self, x: float) -> float:
        """The mean of a number over ranks."""
        return float(self.mean(torch.tensor([x], device=self.device)))
