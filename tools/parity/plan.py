"""The config of a dump: which stages, models, sizes and precision. One YAML for both machines."""

from typing import Literal

from pydantic import Field

from common.config import Config
from common.models import TransformerConfig, VAEConfig
from common.optim import AdamWConfig
from common.runs import Device, ModelSource, SamplerConfig, latent_size
from common.text import TextConfig

Stage = Literal["op", "block", "vae", "dit", "text", "sampler", "train-step", "pipeline"]
STAGES: tuple[Stage, ...] = ("op", "block", "vae", "dit", "text", "sampler", "train-step", "pipeline")


class DumpConfig(Config):
    """What `python -m tools.parity dump` computes. Inputs are drawn by name from `seed`."""

    stages: list[Stage] = Field(default_factory=lambda: list(STAGES), min_length=1)
    transformer: ModelSource
    vae: ModelSource
    text: TextConfig | None = None  # needed by the stages text and pipeline
    prompts: list[str] = Field(default_factory=lambda: ["a red ball", "a blue box moves left"])
    sampler: SamplerConfig = SamplerConfig(num_steps=4)
    optimizer: AdamWConfig = AdamWConfig(lr=1e-3)
    num_train_steps: int = Field(default=3, ge=1)
    batch: int = Field(default=2, ge=1)
    num_frames: int = Field(default=9, ge=1)
    height: int = Field(default=48, ge=16)  # 3 x 5 patches: a grid that needs padding
    width: int = Field(default=80, ge=16)
    text_length: int = Field(default=7, ge=1)
    gradients: bool = True  # of every parameter; a released model's would fill as much memory as its weights
    seed: int = Field(default=0, ge=0)
    device: Device = "auto"
    dtype: Literal["float32", "float16", "bfloat16", "float64"] = "float32"  # float64: pt only, as an oracle

    def transformer_config(self) -> TransformerConfig:
        return self.transformer.resolve(TransformerConfig, "transformer")

    def vae_config(self) -> VAEConfig:
        return self.vae.resolve(VAEConfig, "vae")

    def latent_shape(self) -> tuple[int, int, int, int, int]:
        """(B, C, T, H, W) of the latents.

        Raises:
            InputError: a size the models cannot make.
        """
        vae, transformer = self.vae_config(), self.transformer_config()
        return (self.batch, vae.latent_dim, *latent_size(self, vae, transformer))
