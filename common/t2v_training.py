"""What `python -m ms.train` and `python -m pt.train` share: the config, and the arrays of a step.

Everything random is a function of (seed, step, place of the sample in the batch of all ranks), so it does not
matter how many ranks there are or where a run resumed.

Shapes: B samples of a rank, C latent channels, T frames, H height, W width (latent cells); S tokens in native
order, F values of a patch; L text tokens, E text width.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import model_validator

from .conditions import grid_inputs
from .config import Config, free_keys, key
from .data.buckets import Bucket
from .data.encoded import EncodedLoader
from .data.t2v import T2VLoader
from .data.t2v_config import T2VDataConfig
from .diffusion import DiffusionConfig, mixture, told, with_offset
from .errors import InputError
from .fingerprint import fingerprint
from .given import Given, GivenConfig, check_given, read_given
from .i2v_training import I2VConfig
from .latents import draw_latents
from .masks import Condition
from .model_record import training_defaults
from .models import TransformerConfig, VAEConfig
from .noise import index_of, normal
from .optim import OptimConfig
from .parallel import Mesh
from .rope import timestep_features
from .runs import Device, DType, ModelSource, SamplerConfig, SequenceConfig, latent_size
from .sharing import check_tokens, describe_traffic
from .skiparse import padded_length, to_patches
from .text import TextConfig
from .training.loop import LoopConfig


class T2VValidationConfig(GivenConfig):
    """What a model in training is judged by: the loss on clips it is not trained on, and videos it makes. An
    image-to-video model makes them from what is given.
    """

    data: T2VDataConfig | None = key(None)  # clips of the loss; none: no loss, and no model counts as best
    batches: int = key(8, ge=1)
    prompts: tuple[str, ...] = key(())  # a video each, shown in TensorBoard
    negative_prompt: str = key("")
    sampler: SamplerConfig = key(SamplerConfig())


class ParallelConfig(SequenceConfig):
    """How ranks share the work. What is left after `sequence` is data parallel."""

    # ranks share: 1 the optimizer's state, 2 gradients too, 3 parameters too
    zero: Literal[0, 1, 2, 3] = key(0)


class T2VTrainConfig(Config):
    """`python -m ms.train` / `python -m pt.train`: the transformer from clips with captions."""

    # a config with random_seed starts anew, a path continues from its weights
    transformer: ModelSource = key()
    vae: ModelSource = key()
    text: TextConfig = key()
    data: T2VDataConfig = key()
    diffusion: DiffusionConfig = key(DiffusionConfig())
    conditions: I2VConfig | None = key(None)  # what an image-to-video model is shown of its clips
    validation: T2VValidationConfig | None = key(None, affects_result=False)
    global_batch_size: int = key(1, ge=1)  # clips of an update, of all ranks together
    # parts a rank's clips are cut into, to fit into memory
    accumulate: int = key(1, ge=1, affects_result=False)
    optimizer: OptimConfig = key(OptimConfig(eps=1e-15))
    ema_decay: float = key(0.9999, ge=0, lt=1)  # of the weights that are judged and kept; 0: none
    # the average is kept in the host's memory, and made there
    ema_on_host: bool = key(False, affects_result=False)
    # every n-th block forgets its activations; 0: none, 1: all
    recompute: int = key(0, ge=0, affects_result=False)
    parallel: ParallelConfig = key(ParallelConfig(), affects_result=False)
    dtype: DType = key("float32")  # of activations; weights and their updates are float32
    vae_dtype: DType = key("float32")
    # pixel frames encoded at a time after the first; 0: all
    vae_chunk_frames: int = key(0, ge=0, affects_result=False)
    # VAE and text encoder rest in the host's memory between uses
    encoders_on_host: bool = key(False, affects_result=False)
    seed: int = key(0, ge=0)
    device: Device = key("auto", affects_result=False)
    # on Ascend, of what has no aclnn kernel; false: prebuilt kernels (docs/ascend.md)
    op_compile: bool = key(True, affects_result=False)
    loop: LoopConfig = key(affects_result=False)
    output: str = key("outputs/train", affects_result=False)

    @model_validator(mode="before")
    @classmethod
    def _take_defaults(cls, data: Any) -> Any:
        return training_defaults(data)

    @model_validator(mode="after")
    def _check(self) -> "T2VTrainConfig":
        if (self.validation is None) != (not self.loop.validate_every):
            raise InputError("validation and loop.validate_every go together: give both, or neither")
        if self.ema_on_host and self.parallel.zero:
            raise InputError(
                "ema_on_host keeps the whole average on each rank; with parallel.zero ranks share it "
                "already; leave ema_on_host out"
            )
        if self.conditions is not None and self.data.encoded is not None:
            self.conditions.check_one_stage()
        if self.parallel.sequence > 1 and not self.data.group:
            raise InputError("parallel.sequence wants samples of one size: leave out data.group=false")
        return self

    @property
    def dtypes(self) -> dict[str, str]:
        """The precisions that a device must have, by their keys."""
        return {"dtype": self.dtype, "vae_dtype": self.vae_dtype, "text.dtype": self.text.dtype}

    @property
    def free_keys(self) -> tuple[str, ...]:
        """What may change when a run goes on: where it runs and how it fits there."""
        return free_keys(type(self))

    def samples_mesh(self, mesh: Mesh) -> Mesh:
        """Which share of the samples a rank has: those that share a sequence have the same.

        Raises:
            InputError: ranks or batch do not divide.
        """
        own = self.parallel.samples_mesh(mesh)
        if self.global_batch_size % (own.size * self.accumulate):
            raise InputError(
                f"global_batch_size: got {self.global_batch_size}, wanted a multiple of {own.size} "
                f"(data parallel) x accumulate={self.accumulate}"
            )
        return own


def open_loader(
    config: T2VTrainConfig, data: T2VDataConfig, batch_size: int, seed: int, mesh: Mesh
) -> T2VLoader | EncodedLoader:
    """Batches of one rank of a run, from the cache if there is one.

    Raises:
        InputError: nothing to read, or a cache made with something else.
    """
    if data.encoded is None:
        return T2VLoader(data, batch_size, seed, mesh)
    made_with = fingerprint(config.vae, config.text, data, config.conditions)
    return EncodedLoader(data, made_with, batch_size, seed, mesh)


def validation_given(config: T2VTrainConfig, vae: VAEConfig, model: TransformerConfig) -> list[Given]:
    """What is given of each video that a validation makes.

    Raises:
        InputError: it cannot be read, the model takes nothing, a sampler or a size of videos that cannot be.
    """
    validation = config.validation
    if validation is None:
        return []
    given = read_given(validation, max(1, len(validation.prompts)))
    check_given(given, model)
    if not validation.prompts and any(entry.indices for entry in given):
        raise InputError("validation: got image or video without prompts, wanted a prompt for each video")
    if not validation.prompts:
        return []
    validation.sampler.table()  # as it will be made
    for entry in given:
        latent_size(Bucket(validation.num_frames, *entry.size), vae, model)
    return given


class Samples(NamedTuple):
    """What is known of a rank's samples before noise: clean latents, text, and what is shown."""

    moments_BZTHW: np.ndarray
    keep_BTHW: np.ndarray | None  # latent cells that hold video; None: all
    text_BLE: np.ndarray
    keep_BL: np.ndarray
    shown_BZTHW: np.ndarray | None = None  # moments of what an image-to-video model is shown
    mask_BMTHW: np.ndarray | None = None  # and where it has to generate

    def take(self, rows: np.ndarray) -> "Samples":
        """Some of them."""
        parts: Any = (None if part is None else part[rows] for part in self)
        return Samples(*parts)


def sample_latents(
    moments_BZTHW: np.ndarray,
    config: VAEConfig,
    seed: int,
    step: int,
    places: Sequence[int],
    kind: str = "posterior",
) -> np.ndarray:
    """The transformer's latents (B,C,T,H,W): a draw from the posterior, scaled."""
    B, two_Z, T, H, W = moments_BZTHW.shape
    noise = draws(kind, (two_Z // 2, T, H, W), seed, step, places)
    return draw_latents(moments_BZTHW, noise, config)


def sample_condition(
    samples: Samples, config: VAEConfig, seed: int, step: int, places: Sequence[int]
) -> Condition | None:
    """What an image-to-video model is shown; None for a text-to-video model."""
    if samples.shown_BZTHW is None:
        return None
    assert samples.mask_BMTHW is not None
    latent = sample_latents(samples.shown_BZTHW, config, seed, step, places, "posterior of condition")
    return Condition(latent, samples.mask_BMTHW)


def draws(kind: str, shape: tuple, seed: int, step: int, places: Sequence[int]) -> np.ndarray:
    """Standard normal noise (B, *shape), one draw for each place in the batch of all ranks."""
    return np.stack([normal(shape, seed, index_of(f"{kind} {step} {place}")) for place in places])


def step_inputs(
    config: DiffusionConfig,
    model: TransformerConfig,
    latent_BCTHW: np.ndarray,
    samples: Samples,
    timesteps_B: np.ndarray,
    noise_BCTHW: np.ndarray,
    condition: Condition | None = None,
    kept_cells: float | None = None,
    dtype: str = "float32",
) -> tuple:
    """The arguments of DiffusionLoss but the last: NumPy arrays, None, or a tuple of arrays.

    Args:
        dtype: of the tokens.
        kept_cells: latent cells that hold video, averaged over all that share the mean; None: this batch's.
    """
    B, C, T, H, W = latent_BCTHW.shape
    patch, stride = model.patch_size, model.skip_stride
    keep = samples.keep_BTHW
    grid = grid_inputs(model, (T, H, W), B, keep, dtype)
    return (
        to_patches(latent_BCTHW, patch, stride),
        to_patches(noise_BCTHW, patch, stride),
        shares(keep, (B, C, T, H, W), patch, stride, kept_cells),
        mixture(config, timesteps_B).rows(),
        timestep_features(told(config, timesteps_B)),
        samples.text_BLE,
        samples.keep_BL[:, None, None, :],
        grid.cos_S13P,
        grid.sin_S13P,
        grid.keep_video,
        condition and condition.patches(model),
    )


def shares(
    keep_BTHW: np.ndarray | None, shape: tuple, patch: int, stride: int, kept_cells: float | None
) -> np.ndarray:
    """What each value of the patches counts in the mean, (S,B,F), or (S,1,1) where all samples are whole."""
    B, C, T, H, W = shape
    if keep_BTHW is not None:
        cells = keep_BTHW.sum() if kept_cells is None else kept_cells
        keep = np.broadcast_to(keep_BTHW[:, None], shape).astype(np.float32)
        return to_patches(keep / np.float32(cells * C), patch, stride)
    num_tokens = T * H * W // patch**2
    share = np.zeros((padded_length(num_tokens, stride), 1, 1), np.float32)
    share[:] = to_patches(np.ones((1, 1, T, H, W), np.float32), patch, stride)[:, :, :1]
    return share / np.float32(B * C * T * H * W)


def noise_for(
    config: DiffusionConfig, shape: tuple, seed: int, step: int, places: Sequence[int]
) -> np.ndarray:
    """The diffusion's noise (B,C,T,H,W), with its offset."""
    noise = draws("noise", shape, seed, step, places)
    if config.noise_offset:
        noise = with_offset(config, noise, draws("noise offset", (shape[0], 1, 1, 1), seed, step, places))
    return noise


def announce(config: T2VTrainConfig, model: TransformerConfig, tokens: Sequence[int], batch: int) -> str:
    """How many graphs of the step a run compiles, one per number of tokens; and what ranks send each other.

    Args:
        tokens: of a clip of each bucket, padding to one size included.
        batch: samples that share a forward pass.

    Raises:
        InputError: ranks cannot share the tokens of a bucket.
    """
    for count in tokens:
        check_tokens(config.parallel.sequence, model, count)
    lengths = [padded_length(count, model.skip_stride) for count in tokens]
    graphs = {(length, length == count) for length, count in zip(lengths, tokens)}  # padding has masks
    lines = [f"{len(tokens)} buckets, {len(graphs)} graphs"]
    parallel = config.parallel
    if parallel.sequence > 1:
        bytes_each = 4 if config.dtype == "float32" else 2
        sizes = (parallel.sequence, max(lengths), batch, bytes_each)
        lines.append(describe_traffic(model, parallel.kind, *sizes))
    return "\n".join(lines)
