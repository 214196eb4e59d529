"""Settings of the optimizer both trees implement."""

from pydantic import Field

from .config import Config


class AdamWConfig(Config):
    """AdamW with bias correction and decoupled weight decay (arXiv:1711.05101)."""

    lr: float = Field(default=1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
