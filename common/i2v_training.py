"""What an image-to-video model is shown of its clips in training: the tasks, by a schedule, and noise on what
is given. All is a function of (seed, step, place of the clip in the batch of all ranks).

Shapes: B clips, C channels, T frames, H height, W width of pixels; M mask channels, with T H W of latents.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from pydantic import model_validator

from .config import Config, key
from .errors import InputError
from .masks import MaskConfig, add_noise, compress_mask, draw_given, generate_mask, masked, pixels_of
from .models import TransformerConfig
from .noise import generator, index_of


class MaskStage(MaskConfig):
    """The tasks from one step on."""

    from_step: int = key(0, ge=0)


class ConditionNoiseConfig(Config):
    """Noise on given frames, of a standard deviation that is exp(mean + std * normal draw), in pixels of
    [-1, 1] (CogVideoX, arXiv:2408.06072, section 3.3).
    """

    mean: float = key(-3.0)
    std: float = key(0.5, ge=0)
    noiseless_ratio: float = key(0.05, ge=0, le=1)  # of the clips: they get none


class I2VConfig(Config):
    """The `conditions` section of a run that trains an image-to-video model."""

    stages: tuple[MaskStage, ...] = key((MaskStage(),))  # each until the next begins
    noise: ConditionNoiseConfig | None = key(ConditionNoiseConfig())

    @model_validator(mode="after")
    def _in_order(self) -> "I2VConfig":
        steps = [stage.from_step for stage in self.stages]
        if not steps or steps[0] != 0 or any(a >= b for a, b in pairwise(steps)):
            raise InputError(f"stages begin at steps {steps}: the first must be 0, each later than the last")
        return self

    def stage(self, step: int) -> MaskStage:
        """The tasks of a step."""
        return [stage for stage in self.stages if stage.from_step <= step][-1]

    def check_one_stage(self) -> None:
        """Refuse a schedule where there can be none.

        Raises:
            InputError: several stages.
        """
        if len(self.stages) > 1:
            raise InputError(
                f"conditions: got {len(self.stages)} stages, wanted one: what a cache shows of its clips is "
                "drawn when they are encoded; make a cache and a run for each stage, or train from the clips"
            )


class Shown(NamedTuple):
    """Clips as the model is shown them, before the VAE."""

    x_BCTHW: np.ndarray
    given_BT: np.ndarray
    mask_BMTHW: np.ndarray  # in the size of latents


class Draw(NamedTuple):
    """What decides all random numbers of a batch."""

    seed: int
    step: int
    places: Sequence[int]  # of its clips in the batch of all ranks


def show(
    config: I2VConfig,
    masks: MaskConfig,
    x_BCTHW: np.ndarray,
    keep_BTHW: np.ndarray | None,
    stride_thw: tuple[int, int, int],
    draw: Draw,
) -> Shown:
    """Choose a task for every clip, take away what it has to generate, and put noise on the rest.

    Args:
        keep_BTHW: latent cells that hold video; None: all.
    """
    B, C, T, H, W = x_BCTHW.shape
    inside = None if keep_BTHW is None else pixels_of(keep_BTHW, stride_thw)
    lengths = [T] * B if inside is None else inside.any(axis=(2, 3)).sum(axis=1).tolist()
    streams = [generator(draw.seed, index_of(f"condition {draw.step} {place}")) for place in draw.places]
    given_BT = np.zeros((B, T), bool)
    for given_T, length, rng in zip(given_BT, lengths, streams, strict=True):
        given_T[:length] = draw_given(masks, length, rng)
    generate_B1THW = generate_mask(given_BT, inside, H, W)
    shown_BCTHW = masked(x_BCTHW, generate_B1THW)
    if config.noise is not None:
        noise_BCTHW, sigma_B = _noise(config.noise, x_BCTHW.shape, given_BT, inside, streams)
        shown_BCTHW = add_noise(shown_BCTHW, generate_B1THW, noise_BCTHW, sigma_B)
    return Shown(shown_BCTHW, given_BT, compress_mask(generate_B1THW, stride_thw))


def _noise(
    config: ConditionNoiseConfig,
    shape: tuple,
    given_BT: np.ndarray,
    inside_BTHW: np.ndarray | None,
    streams: Sequence[np.random.Generator],
) -> tuple[np.ndarray, np.ndarray]:
    """Noise (B,C,T,H,W), drawn for given frames only and zero elsewhere, and its standard deviation (B,)."""
    B, C, _, H, W = shape
    noise_BCTHW, sigma_B = np.zeros(shape, np.float32), np.zeros(B, np.float32)
    for b, rng in enumerate(streams):
        if rng.random() >= config.noiseless_ratio:
            sigma_B[b] = np.exp(config.mean + config.std * rng.standard_normal())
            num_given = int(given_BT[b].sum())
            noise_BCTHW[b][:, given_BT[b]] = rng.standard_normal((C, num_given, H, W), dtype=np.float32)
    if inside_BTHW is not None:
        noise_BCTHW *= inside_BTHW[:, None]
    return noise_BCTHW, sigma_B


def check_conditions(config: I2VConfig | None, model: TransformerConfig) -> None:
    """Refuse conditions for a model that takes none, and a model that takes them without.

    Raises:
        InputError: only one of the two is there.
    """
    if config is not None and not model.mask_channels:
        raise InputError(
            "conditions: the transformer is a text-to-video model; to begin an image-to-video model from it "
            "set transformer.overrides.vae_scale_factor_t to the VAE's frames per latent frame (4), or "
            "leave conditions out"
        )
    if config is None and model.mask_channels:
        raise InputError(
            "conditions is missing, wanted the tasks of an image-to-video model; {} takes the usual ones"
        )
