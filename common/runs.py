"""The configs of the command lines that use a trained model, and what both trees do with them before a tensor
exists.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import AfterValidator, Field, model_validator

from .checkpoint import weight_files
from .config import Config, build, key
from .errors import InputError
from .files import read_json
from .fvd import MIN_FRAMES
from .given import GivenConfig
from .guidance import Guidance
from .model_record import sampling_defaults
from .models import (
    OD_VAE,
    CausalVAEConfig,
    HubConfig,
    TransformerConfig,
    VAEConfig,
    read_hub_config,
)
from .outputs import Overwrite
from .parallel import Mesh
from .samplers import SamplerTable, sampler_table
from .schedules import Prediction, ScheduleConfig, Spacing
from .sharing import Kind
from .text import DType, TextConfig
from .tiling import TilingConfig


def _check_device(device: str) -> str:
    if re.fullmatch(r"auto|(cpu|cuda|ascend)(:\d+)?", device) is None:
        raise InputError("wanted auto, cpu, cuda or ascend, with a number where there are several: cuda:1")
    return device


Device = Annotated[str, AfterValidator(_check_device)]


class ModelSource(Config):
    """Where a model comes from: a directory as on the Hugging Face hub, or a config with random weights."""

    path: str | None = key(None, affects_result=False)
    overrides: dict[str, Any] = key(default_factory=dict)  # fields to change in the directory's config.json
    config: dict[str, Any] | None = key(None)
    random_seed: int | None = key(None)  # draw weights by name from this seed instead of reading them

    @model_validator(mode="after")
    def _one_source(self) -> "ModelSource":
        if (self.path is None) == (self.config is None):
            raise InputError("give either path (a model directory) or config (with random_seed)")
        if (self.config is None) != (self.random_seed is None):
            raise InputError(
                "random_seed draws weights for a config; with path it would ignore the checkpoint: "
                "set random_seed=null beside path, or give config and random_seed"
            )
        return self

    def resolve(self, cls: type[HubConfig], where: str) -> Any:
        """The model's config, validated as `cls`."""
        if self.config is not None:
            return build(cls, {**self.config, **self.overrides}, where=f"{where}.config")
        assert self.path is not None
        config = read_hub_config(cls, self.path)
        if not self.overrides:
            return config
        return build(cls, {**config.model_dump(), **self.overrides}, where=f"{where}.overrides")

    def check_files(self) -> None:
        """Refuse, before anything is loaded, a directory without weights or with several.

        Raises:
            InputError: as weight_files.
        """
        if self.path is not None:
            weight_files(self.path)


def check_chunks(norm_type: str, chunk_frames: int, multiple: int = 1) -> None:
    """Refuse to cut a clip into chunks that would not give what the whole gives.

    Args:
        norm_type: of the VAE's part that sees the chunks.
        chunk_frames: frames of every chunk but the first, which has one more.
        multiple: what they must be a multiple of: the frames of one latent frame for an encoder.

    Raises:
        InputError: with the remedy.
    """
    if norm_type == "groupnorm":
        raise InputError(
            "vae: GroupNorm's statistics span time, so a clip in chunks differs from the whole; "
            "set chunk_frames to 0, or use a VAE with norm_type: layernorm"
        )
    if chunk_frames % multiple:
        raise InputError(f"vae: chunk_frames is {chunk_frames}; it must be a multiple of {multiple}")


def resolve_vae(source: ModelSource) -> VAEConfig | CausalVAEConfig:
    """The config of either VAE; `_class_name` says which it is."""
    found = source.config
    if found is None:
        assert source.path is not None
        found = read_json(Path(source.path) / "config.json")
    return source.resolve(CausalVAEConfig if found.get("_class_name") == OD_VAE else VAEConfig, "vae")


class VideoSize(Protocol):
    """Any config that asks for a video of a size."""

    @property
    def num_frames(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...


class SamplerConfig(Config):
    """How latents are drawn. The defaults are the released models' recommended setting."""

    name: str = key("EulerAncestralDiscrete")
    num_steps: int = key(100)
    prediction_type: Prediction = key("v_prediction")
    guidance_scale: float = key(7.5, ge=0)  # 1 and less turn guidance off and halve the work
    # scales under 1 guide too, mostly by the negative prompt; 0 by it alone
    guidance_below_one: bool = key(False)
    guidance_rescale: float = key(0.0, ge=0, le=1)  # arXiv:2305.08891, section 3.4
    timestep_spacing: Spacing | None = key(None)
    steps_offset: int = key(0)
    schedule: ScheduleConfig = key(ScheduleConfig(rescale_betas_zero_snr=True))

    def guidance(self) -> Guidance:
        return Guidance(self.guidance_scale, self.guidance_rescale, self.guidance_below_one)

    def table(self) -> SamplerTable:
        return sampler_table(
            self.name,
            self.num_steps,
            self.schedule,
            self.prediction_type,
            self.timestep_spacing,
            self.steps_offset,
        )


class SequenceConfig(Config):
    """How ranks share the tokens of one video."""

    sequence: int = key(1, ge=1)  # ranks in a row that share a sequence
    kind: Kind = key("skiparse")  # how they share it (common/sharing.py)

    def samples_mesh(self, mesh: Mesh) -> Mesh:
        """Which share of the samples a rank has: those that share a sequence have the same.

        Raises:
            InputError: the ranks do not divide.
        """
        if mesh.size % self.sequence:
            raise InputError(f"parallel.sequence: got {self.sequence}, wanted a divisor of {mesh.size} ranks")
        return Mesh(mesh.rank // self.sequence, mesh.size // self.sequence, mesh.local_rank)


class SampleConfig(GivenConfig):
    """`python -m ms.sample` / `python -m pt.sample`: videos (or, with one frame, images) from prompts, and by
    an image-to-video model from pictures or video.
    """

    transformer: ModelSource
    vae: ModelSource
    text: TextConfig
    sampler: SamplerConfig = SamplerConfig()
    prompt: str | list[str]  # one, several, or the path of a .txt file with one per line
    prompt_template: str = "{}"
    negative_prompt: str = ""
    window_frames: int = Field(default=0, ge=0)  # that an image-to-video model makes at once; 0: as trained
    overlap_frames: int = Field(default=0, ge=0)  # of a window, known from the one before; 0: a quarter
    fps: float = Field(default=16, gt=0, le=1000)  # of the written video
    num_samples: int = Field(default=1, ge=1)  # per prompt
    batch_size: int = Field(default=1, ge=1)  # videos denoised together
    seed: int = Field(default=0, ge=0)  # video i uses seed + i
    parallel: SequenceConfig = SequenceConfig()
    device: Device = "auto"
    op_compile: bool = (
        True  # on Ascend, of what has no aclnn kernel; false: prebuilt kernels (docs/ascend.md)
    )
    dtype: DType = "float32"  # of the transformer; latents stay in float32
    vae_dtype: DType = "float32"
    vae_chunk_frames: int = Field(default=0, ge=0)  # latent frames decoded at a time after the first; 0: all
    save_tensors: bool = False  # also write frames and latents as safetensors
    output: str = "outputs/sample"
    overwrite: Overwrite = (
        "number"  # of a name that is taken by other content: 0000_x_2, an error, or replace
    )

    @property
    def dtypes(self) -> dict[str, str]:
        """The precisions that a device must have, by their keys."""
        return {"dtype": self.dtype, "vae_dtype": self.vae_dtype, "text.dtype": self.text.dtype}

    @model_validator(mode="before")
    @classmethod
    def _take_defaults(cls, data: Any) -> Any:
        return sampling_defaults(data)

    @model_validator(mode="after")
    def _check(self) -> "SampleConfig":
        if self.prompt_template.count("{}") != 1:
            raise InputError(
                f"prompt_template {self.prompt_template!r} must contain {{}} once, where the prompt goes"
            )
        return self


class RoundTripConfig(Config):
    """What every run has that sends clips through a VAE and back."""

    vae: ModelSource
    input: str
    num_frames: int = Field(default=33, ge=1)
    stride: int = Field(default=1, ge=1)  # take every stride-th frame
    height: int = Field(default=256, ge=16)  # SSIM looks through windows of 11 pixels
    width: int = Field(default=256, ge=16)
    sample_posterior: bool = False
    seed: int = Field(default=0, ge=0)
    chunk_frames: int = Field(default=0, ge=0)  # pixel frames per chunk after the first; 0: the whole clip
    encode_tiling: TilingConfig | None = None  # of OD-VAE: how a clip that does not fit into memory is cut
    decode_tiling: TilingConfig | None = None
    device: Device = "auto"
    op_compile: bool = (
        True  # on Ascend, of what has no aclnn kernel; false: prebuilt kernels (docs/ascend.md)
    )
    vae_dtype: DType = "float32"

    def check_vae(self, vae: VAEConfig | CausalVAEConfig) -> None:
        """Refuse parts of a clip that the VAE cannot take.

        Raises:
            InputError: with the remedy.
        """
        if isinstance(vae, CausalVAEConfig):
            if self.chunk_frames:
                raise InputError(
                    "chunk_frames: OD-VAE's GroupNorm spans time, it cannot stream; set encode_tiling and "
                    "decode_tiling instead"
                )
            return
        if self.encode_tiling is not None or self.decode_tiling is not None:
            raise InputError("encode_tiling, decode_tiling: they are OD-VAE's; for WF-VAE set chunk_frames")
        if self.chunk_frames:
            check_chunks(vae.norm_type, self.chunk_frames, vae.stride_thw[0])


class ReconstructConfig(RoundTripConfig):
    """`python -m ms.reconstruct` / `python -m pt.reconstruct`: a clip through the VAE and back."""

    start: int = Field(default=0, ge=0)  # first frame taken
    save_tensors: bool = False  # also write the frames as safetensors
    output: str = "outputs/reconstruct"
    overwrite: Overwrite = "number"  # as in sample


class EvaluateVAEConfig(RoundTripConfig):
    """`python -m ms.evaluate_vae` / `python -m pt.evaluate_vae`: how well a VAE restores videos.

    `input` is a folder that is searched recursively, a video, or a .txt list of paths; `num_frames` is the
    length of a clip.
    """

    clips_per_video: int = Field(
        default=1, ge=0
    )  # consecutive, from the start; 0: as many as cover the video
    batch_size: int = Field(default=1, ge=1)  # clips that go through the VAE together
    lpips: str | None = None  # model directories that tools.convert made; null leaves a measure out
    i3d: str | None = None
    error_gain: float = Field(default=5, gt=0)  # how much brighter the picture shows errors
    output: str = "outputs/evaluate"
    overwrite: Overwrite = "number"  # as in sample

    @model_validator(mode="after")
    def _check(self) -> "EvaluateVAEConfig":
        if self.i3d is not None and self.num_frames < MIN_FRAMES:
            raise InputError(f"FVD wants num_frames of at least {MIN_FRAMES}; set more, or i3d=null")
        return self


def latent_size(config: VideoSize, vae: VAEConfig, transformer: TransformerConfig) -> tuple[int, int, int]:
    """Latent frames, height and width of the video a config asks for.

    Raises:
        InputError: a size or number of frames the models cannot make, with the nearest they can.
    """
    stride_t, stride_h, stride_w = vae.stride_thw
    if (config.num_frames - 1) % stride_t:
        low = (config.num_frames - 1) // stride_t * stride_t + 1
        raise InputError(
            f"num_frames: got {config.num_frames}, wanted a multiple of {stride_t} plus 1; "
            f"the nearest are {low} and {low + stride_t}"
        )
    for name, size, stride in (("height", config.height, stride_h), ("width", config.width, stride_w)):
        multiple = stride * transformer.patch_size
        if size % multiple:
            near = max(32, round(size / 32) * 32)
            raise InputError(
                f"{name}: got {size}, wanted a multiple of {multiple}; multiples of 32 never need padding, "
                f"the nearest is {near}"
            )
    check_pair(vae, transformer)
    return (config.num_frames - 1) // stride_t + 1, config.height // stride_h, config.width // stride_w


def check_pair(vae: VAEConfig, transformer: TransformerConfig) -> None:
    """Refuse a transformer that was not made for the latents of this VAE.

    Raises:
        InputError: their numbers of channels differ, or a mask has not one for each frame of a latent frame.
    """
    if transformer.in_channels != vae.latent_dim:
        raise InputError(
            f"transformer.in_channels is {transformer.in_channels}, vae.latent_dim is {vae.latent_dim}; "
            "they must be equal: these two models do not belong together"
        )
    if transformer.mask_channels not in (0, vae.stride_thw[0]):
        raise InputError(
            f"transformer.vae_scale_factor_t is {transformer.mask_channels}, the VAE has {vae.stride_thw[0]} "
            "frames to a latent frame; they must be equal: these two models do not belong together"
        )
