"""What a model is made of: the configs of the VAE and of the transformer, under the reference's own field
names.

The released `config.json` files load as they are; names with a leading underscore (`_class_name`) are
ignored.
"""

import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from .checkpoint import models_inside
from .config import Config, build
from .errors import InputError
from .files import read_json
from .skiparse import layer_plan

# diffusers' EMAModel writes its own settings into the config.json of averaged weights
EMA_BOOKKEEPING = {
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
}


OD_VAE = "CausalVAEModel"  # how its config.json calls it


class HubConfig(Config):
    """A config that also accepts the bookkeeping keys diffusers writes into `config.json`."""

    bookkeeping: ClassVar[set[str]] = EMA_BOOKKEEPING

    @model_validator(mode="before")
    @classmethod
    def _drop_bookkeeping(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {k: v for k, v in data.items() if not str(k).startswith("_") and k not in cls.bookkeeping}
        return data


class VAEConfig(HubConfig):
    """WF-VAE (arXiv:2411.17459). Defaults are the reference's."""

    latent_dim: int = 8
    base_channels: int = 128
    encoder_num_resblocks: int = 2
    encoder_energy_flow_hidden_size: int = 64
    decoder_num_resblocks: int = 2
    decoder_energy_flow_hidden_size: int = 128
    attention_type: Literal["AttnBlock3DFix", "AttnBlock3D"] = "AttnBlock3DFix"
    use_attention: bool = True
    dropout: float = 0.0
    norm_type: Literal["groupnorm", "layernorm"] = "groupnorm"
    t_interpolation: Literal["nearest", "trilinear"] = "nearest"
    connect_res_layer_num: int = 1
    # "dowmsample" is how the released config.json spells it
    l1_dowmsample_block: Literal["Downsample", "Spatial2xTime2x3DDownsample"] = "Downsample"
    l1_downsample_wavelet: Literal["HaarWaveletTransform2D", "HaarWaveletTransform3D"] = (
        "HaarWaveletTransform2D"
    )
    l2_dowmsample_block: Literal["Spatial2xTime2x3DDownsample"] = "Spatial2xTime2x3DDownsample"
    l2_downsample_wavelet: Literal["HaarWaveletTransform3D"] = "HaarWaveletTransform3D"
    l1_upsample_block: Literal["Upsample", "Spatial2xTime2x3DUpsample"] = "Upsample"
    l1_upsample_wavelet: Literal["InverseHaarWaveletTransform2D", "InverseHaarWaveletTransform3D"] = (
        "InverseHaarWaveletTransform2D"
    )
    l2_upsample_block: Literal["Spatial2xTime2x3DUpsample"] = "Spatial2xTime2x3DUpsample"
    l2_upsample_wavelet: Literal["InverseHaarWaveletTransform3D"] = "InverseHaarWaveletTransform3D"
    scale: tuple[float, ...] = (0.18215,)  # one per latent channel, or one for all
    shift: tuple[float, ...] = (0.0,)

    @model_validator(mode="before")
    @classmethod
    def _no_od_vae(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("_class_name") == OD_VAE:
            raise InputError(
                "this is OD-VAE of v1.2, wanted a WF-VAE; reconstruct and evaluate_vae take both, the "
                "transformer of v1.3 knows the latents of WF-VAE alone"
            )
        return data

    @model_validator(mode="after")
    def _check(self) -> "VAEConfig":
        flows = ("encoder_energy_flow_hidden_size", "decoder_energy_flow_hidden_size")
        for name in ("latent_dim", "base_channels", *flows):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("scale", "shift"):
            if len(getattr(self, name)) not in (1, self.latent_dim):
                raise InputError(f"{name} needs 1 or latent_dim={self.latent_dim} values")
        blocks_3d = (self.l1_dowmsample_block != "Downsample", self.l1_upsample_block != "Upsample")
        wavelets_3d = (self.l1_downsample_wavelet[-2:] == "3D", self.l1_upsample_wavelet[-2:] == "3D")
        if len({*blocks_3d, *wavelets_3d}) != 1:
            raise InputError("l1 blocks and l1 wavelets must be all 2D (4x8x8) or all 3D (8x8x8)")
        if self.norm_type == "groupnorm" and self.base_channels % 32:
            raise InputError(
                f"groupnorm has 32 groups, so base_channels={self.base_channels} must be a multiple of 32"
            )
        return self

    @property
    def l1_is_3d(self) -> bool:
        return self.l1_dowmsample_block != "Downsample"

    @property
    def stride_thw(self) -> tuple[int, int, int]:
        """Pixels per latent cell in time, height and width."""
        return (8 if self.l1_is_3d else 4, 8, 8)


Resnet = Literal["ResnetBlock2D", "ResnetBlock3D"]


class CausalVAEConfig(HubConfig):
    """OD-VAE of Open-Sora Plan v1.2 (arXiv:2409.01199). Defaults are the released model's.

    Lists have one entry per level, from the pixels inwards; "" leaves a resampler out.
    """

    bookkeeping = EMA_BOOKKEEPING | {"lr", "loss_type", "loss_params"}  # of its trainer

    hidden_size: int = 128
    z_channels: int = 4
    hidden_size_mult: tuple[int, ...] = (1, 2, 4, 4)
    attn_resolutions: tuple[()] = ()
    dropout: float = 0.0
    resolution: int = 256
    double_z: Literal[True] = True
    embed_dim: int = 4
    num_res_blocks: int = 2
    q_conv: Literal["CausalConv3d"] = "CausalConv3d"
    encoder_conv_in: Literal["Conv2d", "CausalConv3d"] = "Conv2d"
    encoder_conv_out: Literal["CausalConv3d"] = "CausalConv3d"
    encoder_attention: Literal["AttnBlock3DFix"] = "AttnBlock3DFix"
    encoder_resnet_blocks: tuple[Resnet, ...] = (
        "ResnetBlock2D",
        "ResnetBlock2D",
        "ResnetBlock3D",
        "ResnetBlock3D",
    )
    encoder_spatial_downsample: tuple[Literal["", "Downsample", "SpatialDownsample2x"], ...] = (
        "Downsample",
        "Downsample",
        "Downsample",
        "",
    )
    encoder_temporal_downsample: tuple[Literal["", "TimeDownsample2x", "TimeDownsampleRes2x"], ...] = (
        "",
        "TimeDownsampleRes2x",
        "TimeDownsampleRes2x",
        "",
    )
    encoder_mid_resnet: Literal["ResnetBlock3D"] = "ResnetBlock3D"
    decoder_conv_in: Literal["CausalConv3d"] = "CausalConv3d"
    decoder_conv_out: Literal["CausalConv3d"] = "CausalConv3d"
    decoder_attention: Literal["AttnBlock3DFix"] = "AttnBlock3DFix"
    decoder_resnet_blocks: tuple[Resnet, ...] = ("ResnetBlock3D",) * 4
    decoder_spatial_upsample: tuple[Literal["", "Upsample", "SpatialUpsample2x"], ...] = (
        "",
        "SpatialUpsample2x",
        "SpatialUpsample2x",
        "SpatialUpsample2x",
    )
    decoder_temporal_upsample: tuple[Literal["", "TimeUpsample2x", "TimeUpsampleRes2x"], ...] = (
        "",
        "",
        "TimeUpsampleRes2x",
        "TimeUpsampleRes2x",
    )
    decoder_mid_resnet: Literal["ResnetBlock3D"] = "ResnetBlock3D"
    use_quant_layer: bool = True
    norm_type: Literal["groupnorm", "layernorm"] = "groupnorm"

    @model_validator(mode="after")
    def _check(self) -> "CausalVAEConfig":
        levels = len(self.hidden_size_mult)
        for name, values in self.model_dump().items():
            if (
                name.startswith(("encoder_", "decoder_"))
                and isinstance(values, tuple)
                and len(values) != levels
            ):
                raise InputError(
                    f"{name} has {len(values)} entries, hidden_size_mult has {levels}; one per level"
                )
        return self

    @property
    def latent_dim(self) -> int:
        """Latent channels."""
        return self.embed_dim if self.use_quant_layer else self.z_channels

    @property
    def stride_thw(self) -> tuple[int, int, int]:
        """Pixels per latent cell in time, height and width."""
        space = 2 ** sum(map(bool, self.encoder_spatial_downsample))
        return (2 ** sum(map(bool, self.encoder_temporal_downsample)), space, space)


class TransformerConfig(HubConfig):
    """The Skiparse diffusion transformer of Open-Sora Plan v1.3 (arXiv:2412.00131). Defaults are the released
    model's.
    """

    num_attention_heads: int = 24
    attention_head_dim: int = 96
    in_channels: int = 8
    out_channels: int = 8
    num_layers: int = 32
    dropout: float = 0.0
    cross_attention_dim: int = 2304
    attention_bias: Literal[True] = True
    sample_size_h: int = 80  # latent cells the model was trained on; any size runs
    sample_size_w: int = 80
    sample_size_t: int = 24
    patch_size: int = 2
    patch_size_t: Literal[1] = 1
    activation_fn: Literal["gelu-approximate"] = "gelu-approximate"
    norm_elementwise_affine: Literal[False] = False
    norm_eps: float = 1e-6
    only_cross_attention: Literal[False] = False
    double_self_attention: Literal[False] = False
    upcast_attention: bool = False  # softmax is in float32 in any case
    caption_channels: int = 4096
    interpolation_scale_h: float = 1.0
    interpolation_scale_w: float = 1.0
    interpolation_scale_t: float = 1.0
    sparse1d: bool = True
    sparse_n: int = 4
    vae_scale_factor_t: int | None = None  # mask channels of an image-to-video model; None: text-to-video
    # ours, absent from released files
    num_dense_ends: int = (
        2  # dense blocks at each end; 2 at 32 layers is the reference's "blocks 2..29 are sparse"
    )
    rope_precision: Literal["float32", "reference"] = (
        "float32"  # "reference" rounds angles to the tokens' dtype
    )

    @model_validator(mode="after")
    def _check(self) -> "TransformerConfig":
        if self.attention_head_dim % 6:
            raise InputError(
                f"attention_head_dim={self.attention_head_dim} must be a multiple of 6: RoPE gives a third "
                "to each of t, h, w and rotates channels in pairs"
            )
        if self.cross_attention_dim != self.width:
            raise InputError(
                f"cross_attention_dim={self.cross_attention_dim} must equal heads * head_dim = {self.width}: "
                "captions are projected to the model's width before they are attended to"
            )
        counts = (
            "num_attention_heads",
            "num_layers",
            "in_channels",
            "out_channels",
            "patch_size",
            "sparse_n",
        )
        for name in (*counts, "caption_channels"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        if self.vae_scale_factor_t is not None and self.vae_scale_factor_t < 1:
            raise InputError(
                f"vae_scale_factor_t={self.vae_scale_factor_t} must be the VAE's frames per latent frame, or "
                "null"
            )
        return self

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def mask_channels(self) -> int:
        """Of the mask that tells an image-to-video model what to generate; 0: it is a text-to-video model."""
        return self.vae_scale_factor_t or 0

    @property
    def skip_stride(self) -> int:
        """K: 1 means that every block is dense."""
        return self.sparse_n if self.sparse1d else 1

    def hub_dict(self) -> dict[str, Any]:
        """What a `config.json` holds."""
        values = self.model_dump(exclude_none=True)
        return {"_class_name": f"OpenSora{'Inpaint' if self.mask_channels else 'T2V'}_v1_3", **values}

    @property
    def plan(self) -> tuple[str, ...]:
        """The Skiparse arrangement of every block."""
        return layer_plan(self.num_layers, self.skip_stride, self.num_dense_ends)

    @property
    def interpolation_scale_thw(self) -> tuple[float, float, float]:
        return (self.interpolation_scale_t, self.interpolation_scale_h, self.interpolation_scale_w)


def read_hub_config(cls: type[HubConfig], folder: str | Path) -> Any:
    """`config.json` of a model directory in the layout of the Hugging Face hub, as `cls`.

    Keys that are not ours are passed over with a warning: other versions of upstream's code and of diffusers
    write some, and what would change the model shows in the names and shapes of its weights.

    Raises:
        InputError: no such file, or values that are not ours.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        inside = ", ".join(map(str, models_inside(Path(folder))))
        advice = f"the models inside are {inside}: give one of them" if inside else "check the path"
        raise InputError(
            f"model directory {folder}: no config.json; expected the layout of the Hugging Face hub; {advice}"
        )
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: wanted a model's config, got {type(content).__name__}")
    kept = cls.bookkeeping | cls.model_fields.keys()
    foreign = tuple(key for key in content if key not in kept and not key.startswith("_"))
    if foreign:
        _warn_of_foreign_keys(path, foreign)
    return build(cls, {key: value for key, value in content.items() if key not in foreign}, where=str(path))


@lru_cache
def _warn_of_foreign_keys(path: Path, keys: tuple[str, ...]) -> None:
    """Once for each file."""
    print(
        f"warning: {path}: keys that are not known here are passed over: {', '.join(keys)}", file=sys.stderr
    )
