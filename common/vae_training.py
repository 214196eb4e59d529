"""What `python -m ms.train_vae` and `python -m pt.train_vae` share: the config, and whose turn a step is."""

from typing import Literal

from pydantic import Field, model_validator

from .config import Config
from .data.clips import ClipsConfig
from .errors import InputError
from .judges import DiscriminatorConfig
from .optim import OptimConfig
from .parallel import Mesh
from .runs import Device, DType, ModelSource
from .training.loop import LoopConfig

# what may change when a run goes on: where it runs, how it fits there, and what it is judged by
FREE_KEYS = (
    *("output", "device", "op_compile", "data.workers", "data.prefetch", "data.max_bad_share", "validation"),
)


class VAELossConfig(Config):
    """Terms of the video VAE's loss (arXiv:2411.17459, section 3.4). Defaults are the reference's."""

    pixel: Literal["l1", "l2"] = "l1"
    kl_weight: float = Field(default=1e-6, ge=0)
    wavelet_weight: float = Field(default=0.1, ge=0)
    perceptual_weight: float = Field(default=1.0, ge=0)  # of LPIPS, when its weights are given
    disc_weight: float = Field(default=0.5, ge=0)  # of the adversarial term, after it was balanced
    disc_factor: float = Field(default=1.0, ge=0)
    disc_start: int = Field(default=0, ge=0)  # first step with an adversarial term
    disc_loss: Literal["hinge", "vanilla"] = "hinge"
    logvar_init: float = 0.0
    learn_logvar: bool = False  # the reference declares it a parameter, but never hands it to its optimizer


class VAEValidationConfig(Config):
    """Clips the VAE is judged on while it trains; the same ones every time."""

    data: ClipsConfig
    clips: int = Field(default=16, ge=1)  # or a few more, as batches are whole
    batch_size: int = Field(default=4, ge=1)


class VAETrainConfig(Config):
    """`python -m ms.train_vae` / `python -m pt.train_vae`: a WF-VAE from clips."""

    vae: ModelSource  # a config with random_seed starts anew, a path continues from its weights
    discriminator: DiscriminatorConfig | None = None  # none: no adversarial term
    lpips: str | None = None  # its model directory; none: no perceptual term
    loss: VAELossConfig = VAELossConfig()
    data: ClipsConfig
    validation: VAEValidationConfig | None = None
    global_batch_size: int = Field(default=1, ge=1)  # clips of an update, of all ranks together
    accumulate: int = Field(
        default=1, ge=1
    )  # parts that a rank's clips are cut into; a discriminator has statistics and a weight of each part
    optimizer: OptimConfig = OptimConfig(weight_decay=1e-4)
    disc_optimizer: OptimConfig = OptimConfig()
    ema_decay: float = Field(
        default=0.999, ge=0, lt=1
    )  # of the weights that are judged and kept; 0: no average
    dtype: DType = "float32"  # of activations; weights and their updates are float32
    seed: int = Field(default=0, ge=0)
    device: Device = "auto"
    op_compile: bool = (
        True  # on Ascend, of what has no aclnn kernel; false: prebuilt kernels (docs/ascend.md)
    )
    loop: LoopConfig
    output: str = "outputs/train_vae"

    @model_validator(mode="after")
    def _check(self) -> "VAETrainConfig":
        if self.validation is not None and not self.loop.validate_every:
            raise InputError(
                "validation is given, but loop.validate_every is 0; set it, or leave validation out"
            )
        if self.loop.validate_every and self.validation is None:
            raise InputError("loop.validate_every is set, but there is no validation section")
        return self

    @property
    def free_keys(self) -> tuple[str, ...]:
        """What may change when a run goes on. With a discriminator parts are not the whole."""
        return FREE_KEYS if self.discriminator is not None else (*FREE_KEYS, "accumulate")

    def per_rank(self, mesh: Mesh) -> int:
        """Clips of an update on one rank.

        Raises:
            InputError: the batch cannot be shared so.
        """
        if self.global_batch_size % (mesh.size * self.accumulate):
            raise InputError(
                f"global_batch_size: got {self.global_batch_size}, wanted a multiple of {mesh.size} ranks "
                f"times accumulate={self.accumulate}: it counts the clips of all ranks and parts together"
            )
        return self.global_batch_size // mesh.size

    def trains_discriminator(self, step: int) -> bool:
        """Whether the update with this index is the discriminator's: every second one from disc_start on."""
        return self.discriminator is not None and step >= self.loss.disc_start and step % 2 == 1
