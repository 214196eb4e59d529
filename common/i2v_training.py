"""What an image-to-video model is shown of its clips in training: the tasks, by a schedule, and noise on what
is given. All is a function of (seed, step, place of the clip in the batch of all ranks).

Shapes: B clips, C channels, T frames, H height, W width of pixels; M mask channels, t h w of latents.
"""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from .checkpoint import StoredWeights
from .config import Config
from .masks import MaskConfig, compress_mask, draw_given, generate_mask, masked, pixels_of
from .models import TransformerConfig
from .noise import fresh_transformer, generator, index_of
from .runs import ModelSource

CONDITION_LAYERS = ("pos_embed_masked_hidden_states.", "pos_embed_mask.")


class MaskStage(MaskConfig):
    """The tasks from one step on."""

    from_step: int = Field(default=0, ge=0)


class ConditionNoiseConfig(Config):
    """Noise on given frames, of a standard deviation that is exp(mean + std * normal draw), in pixels of
    [-1, 1] (CogVideoX, arXiv:2408.06072, section 3.3).
    """

    mean: float = -3.0
    std: float = Field(default=0.5, ge=0)
    clear_ratio: float = Field(default=0.05, ge=0, le=1)  # of the clips: they get none


class I2VConfig(Config):
    """The `conditions` section of a run that trains an image-to-video model."""

    stages: tuple[MaskStage, ...] = (MaskStage(),)  # each until the next begins
    noise: ConditionNoiseConfig | None = ConditionNoiseConfig()

    @model_validator(mode="after")
    def _in_order(self) -> "I2VConfig":
        steps = [stage.from_step for stage in self.stages]
        if not steps or steps[0] != 0 or any(a >= b for a, b in pairwise(steps)):
            raise ValueError(
                f"stages begin at steps {steps}: the first must be 0, and each later than the last"
            )
        return self

    def stage(self, step: int) -> MaskStage:
        """The tasks of a step."""
        return [stage for stage in self.stages if stage.from_step <= step][-1]


class Shown(NamedTuple):
    """Clips as the model is shown them, before the VAE."""

    x_BCTHW: np.ndarray
    given_BT: np.ndarray
    mask_BMthw: np.ndarray


def show(
    config: I2VConfig,
    masks: MaskConfig,
    x_BCTHW: np.ndarray,
    keep_BTHW: np.ndarray | None,
    stride_thw: tuple[int, int, int],
    seed: int,
    step: int,
    places: Sequence[int],
) -> Shown:
    """Choose a task for every clip, take away what it has to generate, and put noise on the rest.

    Args:
        keep_BTHW: latent cells that hold video; None: all.
    """
    B, C, T, H, W = x_BCTHW.shape
    streams = [generator(seed, index_of(f"condition {step} {place}")) for place in places]
    given_BT = np.stack([draw_given(masks, T, rng) for rng in streams])
    inside = None if keep_BTHW is None else pixels_of(keep_BTHW, stride_thw)
    generate_B1THW = generate_mask(given_BT, inside, H, W)
    shown_BCTHW = masked(x_BCTHW, generate_B1THW)
    if config.noise is not None:
        for clip_CTHW, given_T, rng in zip(shown_BCTHW, given_BT, streams, strict=True):
            _disturb(config.noise, clip_CTHW, given_T, rng)
    return Shown(shown_BCTHW, given_BT, compress_mask(generate_B1THW, stride_thw))


def _disturb(
    config: ConditionNoiseConfig, clip_CTHW: np.ndarray, given_T: np.ndarray, rng: np.random.Generator
) -> None:
    """Noise on the given frames of a clip, in place; none is drawn for the others."""
    if rng.random() < config.clear_ratio:
        return
    sigma = np.exp(config.mean + config.std * rng.standard_normal())
    given_CTHW = clip_CTHW[:, given_T]
    clip_CTHW[:, given_T] = given_CTHW + np.float32(sigma) * rng.standard_normal(
        given_CTHW.shape, dtype=np.float32
    )


def check_conditions(config: I2VConfig | None, model: TransformerConfig) -> None:
    """Refuse conditions for a model that takes none, and a model that takes them without.

    Raises:
        ValueError: only one of the two is there.
    """
    if config is not None and not model.mask_channels:
        raise ValueError(
            "conditions: the transformer is a text-to-video model; set "
            "transformer.overrides.vae_scale_factor_t=4 to begin an image-to-video model from it, or leave "
            "conditions out"
        )
    if config is None and model.mask_channels:
        raise ValueError(
            "conditions is missing, wanted the tasks of an image-to-video model; {} takes the usual ones"
        )


def begins_conditions(source: ModelSource, model: TransformerConfig) -> bool:
    """Whether an image-to-video model begins from a text-to-video model's weights."""
    if source.path is None or not model.mask_channels:
        return False
    return not any(name.startswith(CONDITION_LAYERS) for name in StoredWeights(source.path))


def add_condition_layers(
    stored: Mapping[str, np.ndarray], shapes: dict[str, tuple[int, ...]]
) -> Mapping[str, np.ndarray]:
    """A text-to-video model's weights with the layers that an image-to-video model has beside them.

    What is shown is embedded as the video itself is; the layers that let it in are zero, so the model begins
    as the one it was.

    Args:
        shapes: of the wanted model.
    """
    missing = {name: shape for name, shape in shapes.items() if name.startswith(CONDITION_LAYERS)}
    if not missing or any(name in stored for name in missing):
        return stored
    added = fresh_transformer(missing, seed=0)
    for part in ("weight", "bias"):
        if f"pos_embed.proj.{part}" in stored:
            added[f"pos_embed_masked_hidden_states.0.proj.{part}"] = stored[f"pos_embed.proj.{part}"]
    both: list[Any] = [added, stored]
    return ChainMap(*both)  # what is stored is read when asked for
