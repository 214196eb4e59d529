"""AdamW written out (arXiv:1711.05101), so that both trees take the same step."""

from mindspore import Tensor

from common.optim import AdamWConfig

from . import ops


def adamw(config: AdamWConfig, step: int, param: Tensor, grad: Tensor, mean: Tensor, var: Tensor) -> tuple:
    """(parameter, first moment, second moment) after update number `step`, which counts from 1."""
    beta1, beta2 = config.betas
    mean = beta1 * mean + (1 - beta1) * grad
    var = beta2 * var + (1 - beta2) * grad * grad
    scale = config.lr / (1 - beta1**step)
    spread = ops.sqrt(var) / (1 - beta2**step) ** 0.5 + config.eps
    return param * (1 - config.lr * config.weight_decay) - scale * mean / spread, mean, var
