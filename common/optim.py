"""Settings of the optimizer both trees implement, and the numbers of each of its updates."""

import math

import numpy as np

from .config import Config, key


class AdamWConfig(Config):
    """AdamW with bias correction and decoupled weight decay (arXiv:1711.05101)."""

    lr: float = key(1e-4, gt=0)
    betas: tuple[float, float] = key((0.9, 0.999))
    eps: float = key(1e-8, gt=0)
    weight_decay: float = key(1e-2, ge=0)


class OptimConfig(AdamWConfig):
    """AdamW with the schedule of its learning rate, clipping, and the average of the weights it makes."""

    warmup_steps: int = key(0, ge=0)  # the rate grows linearly from lr / warmup_steps
    decay_steps: int = key(0, ge=0)  # then falls along a cosine until this step; 0: stays
    final_lr_share: float = key(0.0, ge=0, le=1)  # of lr, where the cosine ends
    max_grad_norm: float = key(1.0, gt=0)

    def rate(self, step: int) -> float:
        """The learning rate of update `step`, counted from 1."""
        if step < self.warmup_steps:
            return self.lr * step / self.warmup_steps
        if not self.decay_steps:
            return self.lr
        done = min(1.0, (step - self.warmup_steps) / max(1, self.decay_steps - self.warmup_steps))
        share = self.final_lr_share + (1 - self.final_lr_share) * 0.5 * (1 + math.cos(math.pi * done))
        return self.lr * share


# Where each number of `controls` stands. They enter the compiled step as one tensor, so that a changing
# learning rate does not make a new graph.
STEP_SIZE, SPREAD, SHRINK, EMA_DECAY, LOSS_SCALE = range(5)


def controls(
    config: AdamWConfig, step: int, lr: float, ema_decay: float = 0.0, loss_scale: float = 1.0
) -> np.ndarray:
    """What changes from one AdamW update to the next, float32 (5,), computed in float64.

    Args:
        step: of the update, counted from 1.
        loss_scale: what the gradients were multiplied with.
    """
    beta1, beta2 = config.betas
    values = [0.0] * 5
    values[STEP_SIZE] = lr / (1 - beta1**step)
    values[SPREAD] = 1 / math.sqrt(1 - beta2**step)
    values[SHRINK] = lr * config.weight_decay
    values[EMA_DECAY] = ema_decay
    values[LOSS_SCALE] = loss_scale
    return np.array(values, np.float32)


def warmed_ema_decay(decay: float, update: int) -> float:
    """The decay of a moving average at update number `update`, from 1: 0 at first, then (1+n)/(10+n) with
    n = update - 1, at most `decay`; so that the average forgets the random start (diffusers' EMAModel).
    """
    n = update - 1
    return min(decay, (1 + n) / (10 + n)) if n > 0 else 0.0


class LossScale:
    """Dynamic loss scaling (arXiv:1710.03740, section 3.2): float16 gradients are kept away from underflow.

    Halved when a gradient overflows, doubled after `patience` updates without; other dtypes have scale 1.
    """

    def __init__(self, dtype: str, patience: int = 1000):
        self.dynamic = dtype == "float16"
        self.value = 2.0**14 if self.dynamic else 1.0
        self.patience = patience
        self.calm = 0

    def overflowed(self) -> bool:
        """Take an overflow; whether a smaller scale may help."""
        self.calm = 0
        self.value /= 2
        return self.dynamic and self.value >= 2.0**-14

    def fitted(self) -> None:
        """Take an update that was finite."""
        self.calm += 1
        if self.dynamic and self.calm == self.patience:
            self.calm, self.value = 0, min(2 * self.value, 2.0**24)

    def state(self) -> np.ndarray:
        return np.array([self.value, self.calm])

    def restore(self, state: np.ndarray) -> None:
        self.value, self.calm = float(state[0]), int(state[1])
