"""ZeRO stage 3: the parameters themselves are shared by ranks and come together layer by layer."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from common.host import kind_of

from .parallel import Mean, Ranks


def owned(ranks: Ranks) -> Any:
    """What zero.Sharded is for stages 1 and 2: here vectors are joined from this rank's parts only.

    Raises:
        InputError: this tree has no stage 3.
    """
    return _Owned(ranks)


def shard_parameters(root: nn.Module, units: Sequence, ranks: Ranks) -> None:
    """Share the parameters of `root`; each unit, inner ones first, comes together while it runs.

    Raises:
        InputError: this tree has no stage 3.
    """
    mesh = init_device_mesh(kind_of(ranks.device), (ranks.size,))
    for unit in (*units, root):
        fully_shard(unit, mesh=mesh)


class _Owned(nn.Module):
    """The interface of zero.Shards."""

    stage = 3
    mean: Any

    def __init__(self, ranks: Ranks):
        super().__init__()
        self.mean = Mean(ranks.size)

    def mean_part(self, x: Tensor) -> Tensor:
        return x

    def part(self, x: Tensor) -> Tensor:
        return x

    def whole(self, part: Tensor, length: int) -> Tensor:
        return part

    def total(self, x: Tensor) -> Tensor:
        return self.mean(x) * self.mean.size

    def arrays(self, vector: Tensor, params: Sequence) -> list:
        parts = torch.split(vector.detach(), [param.to_local().numel() for param in params])
        return [_whole(part, param).cpu().numpy() for part, param in zip(parts, params, strict=True)]

    def vector(self, arrays: Sequence, params: Sequence) -> np.ndarray:
        parts = [_own(array, param).reshape(-1) for array, param in zip(arrays, params, strict=True)]
        return torch.cat(parts).cpu().numpy()


@contextlib.contextmanager
def _unsharded(root: nn.Module) -> Iterator[None]:
    shared = [module for module in root.modules() if isinstance(module, FSDPModule)]
    for module in shared:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in shared:
            module.reshard()
            module.set_reshard_after_forward(module is not root, recurse=False)


def together(root: nn.Module) -> Any:
    """A context in which all parameters are whole, to use parts of `root` on their own.

    Raises:
        InputError: this tree has no stage 3.
    """
    return _unsharded(root)


def _whole(part: Tensor, like: DTensor) -> Tensor:
    """The tensor whose part on this rank is given, shared as `like` is."""
    part = part.reshape(like.to_local().shape)
    shared = DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return shared.full_tensor()


def _own(array: np.ndarray, like: DTensor) -> Tensor:
    """This rank's part of an array, shared as `like` is."""
    whole = torch.from_numpy(np.asarray(array, order="C")).to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None).to_local()
