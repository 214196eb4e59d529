"""Configs of the networks that judge videos: LPIPS, the VAE's discriminator, and I3D."""

from typing import Literal

from pydantic import Field, model_validator

from .errors import InputError
from .models import HubConfig

VGG16_CONVS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


class LPIPSConfig(HubConfig):
    """The perceptual distance LPIPS v0.1 with VGG16 (arXiv:1801.03924). Other widths are for tests."""

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)  # channels between two pools

    @model_validator(mode="after")
    def _check(self) -> "LPIPSConfig":
        if len(self.widths) != len(VGG16_CONVS) or min(self.widths) < 1:
            raise InputError(f"widths={self.widths} must be {len(VGG16_CONVS)} numbers of at least 1")
        return self


class DiscriminatorConfig(HubConfig):
    """The patch discriminator that trains the video VAE. Defaults are the reference's."""

    input_nc: int = Field(default=3, ge=1)
    ndf: int = Field(default=64, ge=1)  # channels after the first convolution; each next one doubles them
    n_layers: int = Field(default=3, ge=2)


INCEPTION_STEM = (64, 64, 192)  # I3D's convolutions 1a, 2b and 2c
INCEPTION_MIXED = {  # the widths of its branches 0a, 1a, 1b, 2a, 2b and 3b
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}


class I3DConfig(HubConfig):
    """The video classifier I3D (arXiv:1705.07750), whose logits FVD compares."""

    num_classes: int = Field(default=400, ge=1)  # of Kinetics-400
    width_divisor: Literal[1, 2, 4, 8] = 1  # narrower networks are for tests

    @property
    def stem(self) -> tuple[int, ...]:
        return tuple(width // self.width_divisor for width in INCEPTION_STEM)

    @property
    def mixed(self) -> dict[str, tuple[int, ...]]:
        return {
            name: tuple(w // self.width_divisor for w in widths) for name, widths in INCEPTION_MIXED.items()
        }

    @property
    def mixed_outputs(self) -> dict[str, int]:
        """Channels after each module: the last convolution of every branch."""
        return {name: w[0] + w[2] + w[4] + w[5] for name, w in self.mixed.items()}
