"""OD-VAE (arXiv:2409.01199), the video VAE of Open-Sora Plan v1.2: a causal 3D convolutional autoencoder.

Levels resample in space, then in time; the state of a stream of chunks is handed on as in vae_blocks.

Shapes: B batch, C channels, T frames, H height, W width; Z latent channels.
"""

from itertools import pairwise
from typing import Any

from mindspore import Tensor, nn

from common.models import CausalVAEConfig

from . import ops, resample, vae_blocks
from .layers import normalize
from .vae import check_clip, portions, run_chunks
from .vae_blocks import (
    AttnBlock3DFix,
    FrameConv2d,
    PointConv3d,
    ResnetBlock3D,
    conv3x3x3,
    count_pasts,
    stream,
)


class Mid(nn.Cell):
    """Residual block, attention within frames, residual block."""

    temporal = True

    def __init__(self, channels: int, norm_type: str, attention_norm: str):
        super().__init__()
        self.block_1 = ResnetBlock3D(channels, channels, norm_type)
        self.attn_1 = AttnBlock3DFix(channels, attention_norm)
        self.block_2 = ResnetBlock3D(channels, channels, norm_type)
        self.num_pasts = self.block_1.num_pasts + self.block_2.num_pasts

    def construct(self, x_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
        split = self.block_1.num_pasts
        x_BCTHW, future1 = self.block_1(x_BCTHW, past[:split], first, last)
        x_BCTHW, future2 = self.block_2(self.attn_1(x_BCTHW), past[split:], first, last)
        return x_BCTHW, future1 + future2


class Down(nn.Cell):
    """A level of the encoder: residual blocks, then half the space, then half the time."""

    temporal = True

    def __init__(self, blocks: nn.CellList, spatial: str, time: str, channels: int):
        super().__init__()
        self.block = blocks
        self.downsample = space_resampler(spatial, channels)
        self.time_downsample = time_resampler(time, channels)
        self.num_pasts = count_pasts([*blocks, *([self.time_downsample] if time else [])])

    def construct(self, x_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
        return run_level(self.block, self.downsample, self.time_downsample, x_BCTHW, past, first, last)


class Up(nn.Cell):
    """A level of the decoder: residual blocks, then twice the space, then twice the time."""

    temporal = True

    def __init__(self, blocks: nn.CellList, spatial: str, time: str, channels: int):
        super().__init__()
        self.block = blocks
        self.upsample = space_resampler(spatial, channels)
        self.time_upsample = time_resampler(time, channels)
        self.num_pasts = count_pasts([*blocks, *([self.time_upsample] if time else [])])

    def construct(self, x_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
        return run_level(self.block, self.upsample, self.time_upsample, x_BCTHW, past, first, last)


def run_level(
    blocks: nn.CellList, space: Any, time: Any, x_BCTHW: Tensor, past: tuple, first: bool, last: bool
) -> tuple:
    """Residual blocks, then the resamplers a level has; the one in time takes the last share of `past`."""
    x_BCTHW, future = stream(blocks, x_BCTHW, past, first, last)
    if space is not None:
        x_BCTHW = space(x_BCTHW)
    if time is not None:
        x_BCTHW, kept = time(x_BCTHW, past[len(past) - time.num_pasts :] if len(past) else (), first, last)
        future = future + kept
    return x_BCTHW, future


def space_resampler(name: str, channels: int) -> Any:
    """A resampler in space by the config's name, or None."""
    return getattr(resample, name)(channels, channels) if name else None


def time_resampler(name: str, channels: int) -> Any:
    """A resampler in time by the config's name, or None; the learned ones have channels."""
    if not name:
        return None
    cls = getattr(resample, name)
    return cls(channels, channels) if "Res" in name else cls()


def resnets(kind: str, widths: list, norm_type: str) -> nn.CellList:
    """Residual blocks from width to width."""
    cls = getattr(vae_blocks, kind)
    return nn.CellList([cls(a, b, norm_type) for a, b in pairwise(widths)])


class Encoder(nn.Cell):
    """Pixels (B,3,T,H,W) -> moments (B,2Z,T',H/8,W/8)."""

    def __init__(self, config: CausalVAEConfig):
        super().__init__()
        base, norm = config.hidden_size, config.norm_type
        self.conv_in = FrameConv2d(3, base) if config.encoder_conv_in == "Conv2d" else conv3x3x3(3, base)
        levels, width = [], base
        for i, multiple in enumerate(config.hidden_size_mult):
            widths = [width] + [base * multiple] * config.num_res_blocks
            width = widths[-1]
            blocks = resnets(config.encoder_resnet_blocks[i], widths, norm)
            spatial, time = config.encoder_spatial_downsample[i], config.encoder_temporal_downsample[i]
            levels.append(Down(blocks, spatial, time, width))
        self.down = nn.CellList(levels)
        self.mid = Mid(width, norm, "groupnorm")  # whatever norm_type says: released weights were trained so
        self.norm_out = normalize(width, norm)
        self.conv_out = conv3x3x3(width, 2 * config.z_channels)
        self.framewise_in = config.encoder_conv_in == "Conv2d"
        self.counts = (
            0 if self.framewise_in else self.conv_in.num_pasts,
            count_pasts(self.down),
            self.mid.num_pasts,
            self.conv_out.num_pasts,
        )

    def construct(self, x_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
        past_in, past_down, past_mid, past_out = portions(past, self.counts)
        future_in = ()
        if self.framewise_in:
            h = self.conv_in(x_BCTHW)
        else:
            h, future_in = self.conv_in(x_BCTHW, past_in, first, last)
        h, future_down = stream(self.down, h, past_down, first, last)
        h, future_mid = self.mid(h, past_mid, first, last)
        moments, future_out = self.conv_out(ops.silu(self.norm_out(h)), past_out, first, last)
        return moments, future_in + future_down + future_mid + future_out


class Decoder(nn.Cell):
    """Latents (B,Z,T,H,W) -> pixels (B,3,T',8H,8W). Levels are numbered from the pixels inwards."""

    def __init__(self, config: CausalVAEConfig):
        super().__init__()
        base, norm = config.hidden_size, config.norm_type
        width = base * config.hidden_size_mult[-1]
        self.conv_in = conv3x3x3(config.z_channels, width)
        self.mid = Mid(width, norm, norm)
        levels = []
        for i in reversed(range(len(config.hidden_size_mult))):
            widths = [width] + [base * config.hidden_size_mult[i]] * (config.num_res_blocks + 1)
            width = widths[-1]
            blocks = resnets(config.decoder_resnet_blocks[i], widths, norm)
            spatial, time = config.decoder_spatial_upsample[i], config.decoder_temporal_upsample[i]
            levels.append(Up(blocks, spatial, time, width))
        self.up = nn.CellList(levels[::-1])
        self.norm_out = normalize(width, norm)
        self.conv_out = conv3x3x3(width, 3)
        self.order = tuple(reversed(range(len(levels))))
        self.counts = (
            self.conv_in.num_pasts,
            self.mid.num_pasts,
            *[level.num_pasts for level in levels],
            self.conv_out.num_pasts,
        )

    def construct(self, z_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
        shares = portions(past, self.counts)
        h, future = self.conv_in(z_BCTHW, shares[0], first, last)
        h, kept = self.mid(h, shares[1], first, last)
        future = future + kept
        for i, level in enumerate(self.order):
            h, kept = self.up[level](h, shares[2 + i], first, last)
            future = future + kept
        x_BCTHW, kept = self.conv_out(ops.silu(self.norm_out(h)), shares[-1], first, last)
        return x_BCTHW, future + kept


class CausalVAE(nn.Cell):
    """OD-VAE: `encode` clips whole to moments, `decode` latents whole or (LayerNorm) in chunks of time."""

    def __init__(self, config: CausalVAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.has_quant = config.use_quant_layer
        if config.use_quant_layer:
            self.quant_conv = PointConv3d(2 * config.z_channels, 2 * config.embed_dim)
            self.post_quant_conv = PointConv3d(config.embed_dim, config.z_channels)

    def encode(self, x_BCTHW: Tensor, chunk_frames: int = 0) -> Tensor:
        """Moments of pixels in [-1, 1], whole: the encoder's attention always has GroupNorm."""
        check_clip(self.config, x_BCTHW.shape)
        moments = run_chunks(self.encoder, x_BCTHW, chunk_frames, self.config.stride_thw[0], "groupnorm")
        return self.quant_conv(moments) if self.has_quant else moments

    def decode(self, z_BCTHW: Tensor, chunk_frames: int = 0) -> Tensor:
        """Pixels of latents; chunk_frames as in WFVAE.decode."""
        z_BCTHW = self.post_quant_conv(z_BCTHW) if self.has_quant else z_BCTHW
        return run_chunks(self.decoder, z_BCTHW, chunk_frames, 1, self.config.norm_type)
