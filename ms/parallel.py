"""What ranks do together: averages that carry gradients, and agreement between their processes."""

import mindspore
import numpy as np
from mindspore import Tensor, nn
from mindspore.communication import init

from common.parallel import Mesh


class Mean(nn.Cell):
    """The mean of a tensor over ranks, elementwise; gradients are averaged likewise. One rank: identity."""

    def __init__(self, size: int):
        super().__init__(auto_prefix=False)
        self.size = size
        if size > 1:
            self.all_reduce = mindspore.ops.AllReduce()

    def construct(self, x: Tensor) -> Tensor:
        return self.all_reduce(x) / self.size if self.size > 1 else x


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
            init("mccl" if device == "cpu" else "hccl")
        self.mean = Mean(mesh.size)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return float(self.mean(Tensor(np.array([flag], np.float32))).asnumpy()[0]) > 0

    def average(self, x: float) -> float:
        """The mean of a number over ranks."""
        return float(self.mean(Tensor(np.array([x], np.float32))).asnumpy()[0])
