"""WF-VAE (arXiv:2411.17459): wavelet bands of the clip flow past the trunk of encoder and decoder.

Encoder and decoder run a clip whole, or as a stream of chunks whose causal state is a tuple of tensors handed
from call to call (see vae_blocks); with LayerNorm both give the same numbers for every length.

Shapes: B batch, C channels, T frames, H height, W width; Z latent channels.
"""

from torch import Tensor, nn

from common.errors import InputError
from common.models import CausalVAEConfig, VAEConfig
from common.runs import check_chunks

from . import ops, runtime
from .layers import batch_to_frames, frames_to_batch, normalize
from .posterior import posterior_sample
from .resample import Downsample, Spatial2xTime2x3DDownsample, Spatial2xTime2x3DUpsample, Upsample
from .vae_blocks import (
    ATTENTIONS,
    FrameConv2d,
    ResnetBlock2D,
    ResnetBlock3D,
    conv3x3x3,
    count_pasts,
    stream,
)
from .wavelet import WAVELETS, HaarWaveletTransform3D, InverseHaarWaveletTransform3D


def portions(past: tuple, counts: tuple) -> tuple:
    """Cut the state of a chunk into the shares of consecutive parts; empty shares at the start of a clip."""
    shares = ()
    start = 0
    for count in counts:
        shares = (*shares, past[start : start + count])
        start = start + count
    return shares


class Encoder(nn.Module):
    """Pixels (B,3,T,H,W) in [-1, 1] -> moments (B,2Z,T',H/8,W/8): means, then log variances."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        base, flow, norm = config.base_channels, config.encoder_energy_flow_hidden_size, config.norm_type
        blocks = range(config.encoder_num_resblocks)
        halve_l1 = Spatial2xTime2x3DDownsample if config.l1_is_3d else Downsample
        self.wavelet_transform_in = HaarWaveletTransform3D()
        self.wavelet_transform_l1 = WAVELETS[config.l1_downsample_wavelet]()
        self.wavelet_transform_l2 = WAVELETS[config.l2_downsample_wavelet]()
        self.connect_l1 = FrameConv2d(24 if config.l1_is_3d else 12, flow)
        self.connect_l2 = FrameConv2d(24, flow)
        self.down1 = nn.ModuleList(
            [FrameConv2d(24, base), *[ResnetBlock2D(base, base, norm) for _ in blocks], halve_l1(base, base)]
        )
        self.down2 = nn.ModuleList(
            [
                FrameConv2d(base + flow, 2 * base),
                *[ResnetBlock3D(2 * base, 2 * base, norm) for _ in blocks],
                Spatial2xTime2x3DDownsample(2 * base, 2 * base),
            ]
        )
        attention = [ATTENTIONS[config.attention_type](4 * base, norm)] if config.use_attention else []
        self.mid = nn.ModuleList(
            [
                ResnetBlock3D(2 * base + flow, 4 * base, norm),
                *attention,
                ResnetBlock3D(4 * base, 4 * base, norm),
            ]
        )
        self.norm_out = normalize(4 * base, norm)
        self.conv_out = conv3x3x3(4 * base, 2 * config.latent_dim)
        self.counts = (
            count_pasts(self.down1),
            count_pasts(self.down2),
            count_pasts(self.mid),
            self.conv_out.num_pasts,
        )

    def forward(self, x_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
        past1, past2, past_mid, past_out = portions(past, self.counts)
        coeffs, l1_coeffs, l2_coeffs = self.bands(x_BCTHW, first)

        h, future1 = stream(self.down1, coeffs, past1, first, last)
        h = ops.cat((h, self.connect_l1(l1_coeffs)), 1)
        h, future2 = stream(self.down2, h, past2, first, last)
        h = ops.cat((h, self.connect_l2(l2_coeffs)), 1)
        h, future_mid = stream(self.mid, h, past_mid, first, last)
        moments, future_out = self.conv_out(ops.silu(self.norm_out(h)), past_out, first, last)
        return moments, future1 + future2 + future_mid + future_out

    def bands(self, x_BCTHW: Tensor, first: bool) -> tuple:
        """Wavelet coefficients of the pixels, of their low band, and of the low band of that."""
        coeffs = self.wavelet_transform_in(x_BCTHW, first)
        l1_coeffs = self.wavelet_transform_l1(coeffs[:, :3], first)
        return coeffs, l1_coeffs, self.wavelet_transform_l2(l1_coeffs[:, :3], first)


class Decoder(nn.Module):
    """Latents (B,Z,T,H,W) -> pixels (B,3,T',8H,8W), in the scale of the encoder's input."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        base, flow, norm = config.base_channels, config.decoder_energy_flow_hidden_size, config.norm_type
        blocks = range(config.decoder_num_resblocks)
        self.flow = flow
        self.conv_in = conv3x3x3(config.latent_dim, 4 * base)
        attention = [ATTENTIONS[config.attention_type](4 * base, norm)] if config.use_attention else []
        self.mid = nn.ModuleList(
            [
                ResnetBlock3D(4 * base, 4 * base, norm),
                *attention,
                ResnetBlock3D(4 * base, 4 * base + flow, norm),
            ]
        )
        double_l2 = Spatial2xTime2x3DUpsample(4 * base, 4 * base, config.t_interpolation)
        self.up2 = nn.ModuleList(
            [
                *[ResnetBlock3D(4 * base, 4 * base, norm) for _ in blocks],
                double_l2,
                ResnetBlock3D(4 * base, 4 * base + flow, norm),
            ]
        )
        if config.l1_is_3d:
            double_l1 = Spatial2xTime2x3DUpsample(2 * base, 2 * base, config.t_interpolation)
        else:
            double_l1 = Upsample(2 * base, 2 * base)
        self.up1 = nn.ModuleList(
            [
                *[ResnetBlock3D((2 if i else 4) * base, 2 * base, norm) for i in blocks],
                double_l1,
                ResnetBlock3D(2 * base, 2 * base, norm),
            ]
        )
        self.layer = nn.ModuleList([ResnetBlock3D(2 * base, base, norm), ResnetBlock3D(base, base, norm)])
        depth = range(config.connect_res_layer_num)
        self.connect_l1 = nn.ModuleList(
            [
                *[ResnetBlock3D(flow, flow, norm) for _ in depth],
                FrameConv2d(flow, 24 if config.l1_is_3d else 12),
            ]
        )
        self.connect_l2 = nn.ModuleList(
            [*[ResnetBlock3D(flow, flow, norm) for _ in depth], FrameConv2d(flow, 24)]
        )
        self.norm_out = normalize(base, norm)
        self.conv_out = FrameConv2d(base, 24)
        self.inverse_wavelet_transform_l1 = WAVELETS[config.l1_upsample_wavelet]()
        self.inverse_wavelet_transform_l2 = WAVELETS[config.l2_upsample_wavelet]()
        self.inverse_wavelet_transform_out = InverseHaarWaveletTransform3D()
        self.delay_l2: int = double_l2.delay
        self.delay_l1: int = self.delay_l2 if config.l1_is_3d else 0
        self.counts = (
            self.conv_in.num_pasts,
            count_pasts(self.mid),
            count_pasts(self.connect_l2),
            self.delay_l2,
            count_pasts(self.up2),
            count_pasts(self.connect_l1),
            self.delay_l1,
            count_pasts(self.up1),
            count_pasts(self.layer),
        )

    def forward(self, z_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
        h, low, _, future = self.trunk(z_BCTHW, past, first, last)
        return self.head(h, low, first), future

    def trunk(self, z_BCTHW: Tensor, past: tuple, first: bool, last: bool) -> tuple:
        """All but the last convolution: its input, the low band beside it, the coefficients of both levels as
        the encoder's `bands` has them, and the state.
        """
        p_in, p_mid, p_con2, p_held2, p_up2, p_con1, p_held1, p_up1, p_layer = portions(past, self.counts)
        h, f_in = self.conv_in(z_BCTHW, p_in, first, last)
        h, f_mid = stream(self.mid, h, p_mid, first, last)

        l2_coeffs, f_con2 = stream(self.connect_l2, h[:, -self.flow :], p_con2, first, last)
        l2 = self.inverse_wavelet_transform_l2(l2_coeffs, first)
        l2, f_held2 = hold(l2, p_held2, self.delay_l2, first, last)

        h, f_up2 = stream(self.up2, h[:, : -self.flow], p_up2, first, last)
        l1_coeffs, f_con1 = stream(self.connect_l1, h[:, -self.flow :], p_con1, first, last)
        l1_coeffs = add_to_low_band(l1_coeffs, l2)
        l1 = self.inverse_wavelet_transform_l1(l1_coeffs, first)
        l1, f_held1 = hold(l1, p_held1, self.delay_l1, first, last)

        h, f_up1 = stream(self.up1, h[:, : -self.flow], p_up1, first, last)
        h, f_layer = stream(self.layer, h, p_layer, first, last)
        future = f_in + f_mid + f_con2 + f_held2 + f_up2 + f_con1 + f_held1 + f_up1 + f_layer
        return ops.silu(self.norm_out(h)), l1, (l1_coeffs, l2_coeffs), future

    def head(self, h_BCTHW: Tensor, low_BCTHW: Tensor, first: bool) -> Tensor:
        """Pixels of what `trunk` returned."""
        coeffs = add_to_low_band(self.conv_out(h_BCTHW), low_BCTHW)
        return self.inverse_wavelet_transform_out(coeffs, first)

    def last_pixels(self, weight: Tensor, h_BCTHW: Tensor) -> Tensor:
        """What the last convolution would add to the pixels of a whole clip with another weight."""
        coeffs = self.conv_out.conv2d(frames_to_batch(h_BCTHW), weight, None, 1, 1)
        return self.inverse_wavelet_transform_out(batch_to_frames(coeffs, h_BCTHW.shape[0]), True)


def add_to_low_band(coeffs_BCTHW: Tensor, low_BCTHW: Tensor) -> Tensor:
    """Add to the first three channels, the low band of a wavelet transform of RGB."""
    return ops.cat((coeffs_BCTHW[:, :3] + low_BCTHW, coeffs_BCTHW[:, 3:]), 1)


def hold(x_BCTHW: Tensor, past: tuple, delay: int, first: bool, last: bool) -> tuple:
    """Keep `delay` frames back until the next chunk: this path runs beside a delayed upsampler."""
    if delay == 0:
        return x_BCTHW, ()
    if not first:
        x_BCTHW = ops.cat((past[0], x_BCTHW), 2)
    if last:
        return x_BCTHW, ()
    return x_BCTHW[:, :, :-delay], (ops.tail(x_BCTHW, delay),)


class WFVAE(nn.Module):
    """The video VAE: `encode` to moments, `decode` latents, whole or in chunks of time."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def forward(self, x_BCTHW: Tensor, noise_BCTHW: Tensor) -> tuple:
        """Reconstruction from a posterior sample, and the moments."""
        moments, _ = self.encoder(x_BCTHW, (), True, True)
        x_BCTHW, _ = self.decoder(posterior_sample(moments, noise_BCTHW), (), True, True)
        return x_BCTHW, moments

    def unrolled(self, x_BCTHW: Tensor, noise_BCTHW: Tensor) -> tuple:
        """What training needs of a posterior sample: moments (float32), then the decoder's `trunk`."""
        moments = ops.to_float32(self.encoder(x_BCTHW, (), True, True)[0])
        z_BCTHW = ops.cast_like(posterior_sample(moments, noise_BCTHW), x_BCTHW)
        h, low, bands, _ = self.decoder.trunk(z_BCTHW, (), True, True)
        return moments, h, low, bands

    def encode(self, x_BCTHW: Tensor, chunk_frames: int = 0) -> Tensor:
        """Moments (B,2Z,T',H/8,W/8) of pixels in [-1, 1]; T must be a multiple of the time stride plus one.

        Args:
            chunk_frames: pixel frames per chunk after the first, which holds one more; 0: the whole clip.
        """
        check_clip(self.config, x_BCTHW.shape)
        return run_chunks(
            self.encoder, x_BCTHW, chunk_frames, self.config.stride_thw[0], self.config.norm_type
        )

    def decode(self, z_BCTHW: Tensor, chunk_frames: int = 0) -> Tensor:
        """Pixels of latents.

        Args:
            chunk_frames: latent frames per chunk after the first, which holds one more; 0: the whole clip.
        """
        return run_chunks(self.decoder, z_BCTHW, chunk_frames, 1, self.config.norm_type)


def run_chunks(coder: nn.Module, x_BCTHW: Tensor, chunk_frames: int, multiple: int, norm_type: str) -> Tensor:
    """Feed a clip through encoder or decoder, whole (chunk_frames 0) or as a stream, and join the parts."""
    T = x_BCTHW.shape[2]
    if chunk_frames == 0 or 1 + chunk_frames >= T:
        return coder(x_BCTHW, (), True, True)[0]
    check_chunks(norm_type, chunk_frames, multiple)
    parts, past, start = [], (), 0
    for end in [*range(1 + chunk_frames, T, chunk_frames), T]:
        part, past = coder(x_BCTHW[:, :, start:end], runtime.varying(past), start == 0, end == T)
        parts.append(part)
        start = end
    return runtime.compiled(join_frames)(runtime.varying(tuple(parts)))


def join_frames(parts: tuple) -> Tensor:
    """Chunks of a clip as one; as a graph, since MindSpore's eager Concat fails on float16 results of one."""
    return ops.cat(parts, 2)


def check_clip(config: VAEConfig | CausalVAEConfig, shape: tuple) -> None:
    """Refuse a clip the VAE cannot encode, before any work is done."""
    stride_t, stride_h, stride_w = config.stride_thw
    _, C, T, H, W = shape
    if C != 3:
        raise InputError(f"vae: expected RGB clips (B,3,T,H,W), got {tuple(shape)}")
    if (T - 1) % stride_t:
        nearest = (T - 1) // stride_t * stride_t + 1
        raise InputError(
            f"vae: {T} frames; it must be a multiple of {stride_t} plus 1, for example {nearest}"
        )
    if H % stride_h or W % stride_w:
        raise InputError(
            f"vae: frames of {H}x{W}; height and width must be multiples of {stride_h} and {stride_w}"
        )
