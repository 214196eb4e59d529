"""What `python -m ms.train_vae` and `python -m pt.train_vae` share: the config, and whose turn a step is."""

from typing import Literal

from pydantic import model_validator

from .config import Config, free_keys, key
from .data.clips import ClipsConfig
from .errors import InputError
from .judges import DiscriminatorConfig
from .optim import OptimConfig
from .parallel import Mesh
from .runs import Device, DType, ModelSource
from .training.loop import LoopConfig


class VAELossConfig(Config):
    """Terms of the video VAE's loss (arXiv:2411.17459, section 3.4). Defaults are the reference's."""

    pixel: Literal["l1", "l2"] = key("l1")
    kl_weight: float = key(1e-6, ge=0)
    wavelet_weight: float = key(0.1, ge=0)
    perceptual_weight: float = key(1.0, ge=0)  # of LPIPS, when its weights are given
    disc_weight: float = key(0.5, ge=0)  # of the adversarial term, after it was balanced
    disc_factor: float = key(1.0, ge=0)
    disc_start: int = key(0, ge=0)  # first step with an adversarial term
    disc_loss: Literal["hinge", "vanilla"] = key("hinge")
    logvar_init: float = key(0.0)
    # the reference declares it a parameter, but never hands it to its optimizer
    learn_logvar: bool = key(False)


class VAEValidationConfig(Config):
    """Clips the VAE is judged on while it trains; the same ones every time."""

    data: ClipsConfig = key()
    clips: int = key(16, ge=1)  # or a few more, as batches are whole
    batch_size: int = key(4, ge=1)


class VAETrainConfig(Config):
    """`python -m ms.train_vae` / `python -m pt.train_vae`: a WF-VAE from clips."""

    vae: ModelSource = key()  # a config with random_seed starts anew, a path continues from its weights
    discriminator: DiscriminatorConfig | None = key(None)  # none: no adversarial term
    lpips: str | None = key(None)  # its model directory; none: no perceptual term
    loss: VAELossConfig = key(VAELossConfig())
    data: ClipsConfig = key()
    validation: VAEValidationConfig | None = key(None, affects_result=False)
    global_batch_size: int = key(1, ge=1)  # clips of an update, of all ranks together
    # parts that a rank's clips are cut into; a discriminator has statistics and a weight of each part
    accumulate: int = key(1, ge=1)
    optimizer: OptimConfig = key(OptimConfig(weight_decay=1e-4))
    disc_optimizer: OptimConfig = key(OptimConfig())
    ema_decay: float = key(0.999, ge=0, lt=1)  # of the weights that are judged and kept; 0: no average
    dtype: DType = key("float32")  # of activations; weights and their updates are float32
    seed: int = key(0, ge=0)
    device: Device = key("auto", affects_result=False)
    # on Ascend, of what has no aclnn kernel; false: prebuilt kernels (docs/ascend.md)
    op_compile: bool = key(True, affects_result=False)
    loop: LoopConfig = key(affects_result=False)
    output: str = key("outputs/train_vae", affects_result=False)

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
        free = free_keys(type(self))
        return free if self.discriminator is not None else (*free, "accumulate")

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
