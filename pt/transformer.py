"""The Skiparse diffusion transformer of Open-Sora Plan v1.3 (arXiv:2412.00131, section 3.2).

    patchify -> [self-attention, cross-attention, feed-forward] x layers -> unpatchify

Text is projected to keys and values by `TextProjection`, once per prompt; the denoiser takes them as inputs.
An image-to-video model is the same with two more patch embeddings: what is given of a video is projected by
`ConditionProjection`, once per video, and added to its tokens.
What depends on the grid only (rotary tables, masks) and the timestep's sinusoids come from common/ as inputs
too, so no position is a constant of the graph.

Shapes: B batch, C channels, T frames, H height, W width (latent cells); S video tokens (padded), L text
tokens, E width, F timestep features or values of a patch, P rotation pairs, K skip stride.
"""

from typing import Any

from torch import Tensor, nn

from common.errors import InputError
from common.models import TransformerConfig

from . import ops
from .attention import CrossAttention, SelfAttention
from .kernels import kernel
from .layers import LayerNorm, Linear
from .sequence import Sequence

NUM_TIME_FEATURES = 256


class PatchEmbed2D(nn.Module):
    """A p x p convolution of stride p, over patches (S,B,F) that were cut before: F is "(p q c)"."""

    def __init__(self, in_channels: int, width: int, patch: int):
        super().__init__()
        self.proj = PatchProjection(in_channels, width, patch)

    def forward(self, x_SBF: Tensor) -> Tensor:
        return self.proj(x_SBF)


class PatchProjection(nn.Module):
    """The convolution's weight (E,C,p,p), applied as a matrix to patches that do not overlap."""

    def __init__(self, in_channels: int, width: int, patch: int):
        super().__init__()
        self.weight = ops.parameter((width, in_channels, patch, patch))
        self.bias = ops.parameter((width,))

    def forward(self, x_SBF: Tensor) -> Tensor:
        weight_EF = self.weight.permute(0, 2, 3, 1).reshape(self.weight.shape[0], -1)
        return ops.linear(x_SBF, ops.cast_like(weight_EF, x_SBF), ops.cast_like(self.bias, x_SBF))


class TimestepEmbedding(nn.Module):
    """Two linear layers with silu between."""

    def __init__(self, width: int):
        super().__init__()
        self.linear_1 = Linear(NUM_TIME_FEATURES, width)
        self.linear_2 = Linear(width, width)

    def forward(self, features_BF: Tensor) -> Tensor:
        return self.linear_2(ops.silu(self.linear_1(features_BF)))


class TimestepEmbedder(nn.Module):
    """The name the checkpoint has for it: emb.timestep_embedder."""

    def __init__(self, width: int):
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(width)

    def forward(self, features_BF: Tensor) -> Tensor:
        return self.timestep_embedder(features_BF)


class AdaLayerNormSingle(nn.Module):
    """One modulation for all blocks (PixArt-alpha, arXiv:2310.00426): (6,B,E), and the embedding it came
    from.
    """

    def __init__(self, width: int):
        super().__init__()
        self.emb = TimestepEmbedder(width)
        self.linear = Linear(width, 6 * width)

    def forward(self, features_BF: Tensor) -> tuple:
        embedded_BE = self.emb(features_BF)
        B, E = embedded_BE.shape
        modulation = self.linear(ops.silu(embedded_BE)).reshape(B, 6, E).permute(1, 0, 2)
        return modulation, embedded_BE


class CaptionProjection(nn.Module):
    """Text states to the model's width: linear, gelu, linear."""

    def __init__(self, caption_channels: int, width: int):
        super().__init__()
        self.linear_1 = Linear(caption_channels, width)
        self.linear_2 = Linear(width, width)
        self.gelu = kernel("gelu")

    def forward(self, text: Tensor) -> Tensor:
        return self.linear_2(self.gelu(self.linear_1(text)))


class GELU(nn.Module):
    """Linear, then gelu."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.proj = Linear(width, hidden)
        self.gelu = kernel("gelu")

    def forward(self, x: Tensor) -> Tensor:
        return self.gelu(self.proj(x))


class Nothing(nn.Module):
    """The place of dropout, so that the next layer keeps its index in the checkpoint."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class FeedForward(nn.Module):
    """Four times wider, gelu, and back."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.ModuleList([GELU(width, 4 * width), Nothing(), Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class Block(nn.Module):
    """Self-attention and feed-forward modulated by the timestep, cross-attention between them not."""

    def __init__(self, num_heads: int, head_dim: int, arrangement: str, sequence: Sequence, eps: float):
        super().__init__()
        width = num_heads * head_dim
        self.scale_shift_table = ops.parameter((6, width))
        self.norm1 = LayerNorm(width, eps, False)
        self.attn1 = SelfAttention(num_heads, head_dim, arrangement, sequence)
        self.attn2 = CrossAttention(num_heads, head_dim)
        self.norm2 = LayerNorm(width, eps, False)
        self.ff = FeedForward(width)

    def forward(
        self,
        x_SBE: Tensor,
        modulation_6BE: Tensor,
        key_LBE: Tensor,
        value_LBE: Tensor,
        keep_text_B11L: Tensor | None,
        cos_S13P: Tensor,
        sin_S13P: Tensor,
        keep_video: Tensor | None,
    ) -> Tensor:
        m = ops.cast_like(self.scale_shift_table[:, None] + modulation_6BE, x_SBE)
        shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff = m[0], m[1], m[2], m[3], m[4], m[5]

        h_SBE = self.norm1(x_SBE) * (1 + scale_attn) + shift_attn
        x_SBE = x_SBE + gate_attn * self.attn1(h_SBE, cos_S13P, sin_S13P, keep_video)
        x_SBE = x_SBE + self.attn2(x_SBE, key_LBE, value_LBE, keep_text_B11L)
        h_SBE = self.norm2(x_SBE) * (1 + scale_ff) + shift_ff
        return x_SBE + gate_ff * self.ff(h_SBE)


class Transformer(nn.Module):
    """Predicts noise, velocity or clean latents, as it was trained, from latents, timestep and text."""

    def __init__(self, config: TransformerConfig, sequence: Sequence | None = None):
        """
        Args:
            sequence: how ranks share the tokens; none: this one has them all.
        """
        super().__init__()
        width = config.width
        self.config = config
        self.plan = config.plan
        self.stride = config.skip_stride
        self.sequence = sequence or Sequence(config.skip_stride)
        self.moves = self.sequence.moves(config.plan)
        self.patch = config.patch_size
        self.pos_embed = PatchEmbed2D(config.in_channels, width, config.patch_size)
        self.takes_condition = config.mask_channels > 0
        if self.takes_condition:
            self.pos_embed_masked_hidden_states = condition_embedding(
                config.in_channels, width, config.patch_size
            )
            self.pos_embed_mask = condition_embedding(config.mask_channels, width, config.patch_size)
        self.adaln_single = AdaLayerNormSingle(width)
        self.caption_projection = CaptionProjection(config.caption_channels, width)
        self.transformer_blocks = nn.ModuleList(
            [
                Block(
                    config.num_attention_heads,
                    config.attention_head_dim,
                    arrangement,
                    self.sequence,
                    config.norm_eps,
                )
                for arrangement in config.plan
            ]
        )
        self.norm_out = LayerNorm(width, config.norm_eps, False)
        self.scale_shift_table = ops.parameter((2, width))
        self.proj_out = Linear(width, config.out_channels * config.patch_size**2)

    def forward(
        self,
        x_BCTHW: Tensor,
        features_BF: Tensor,
        text_kv: tuple,
        keep_text_B11L: Tensor | None,
        cos_S13P: Tensor,
        sin_S13P: Tensor,
        keep_video: tuple | None,
        condition_sBE: Tensor | None,
    ) -> Tensor:
        """Prediction (B,C,T,H,W).

        Args:
            features_BF: common.rope.timestep_features of the timesteps.
            text_kv: what TextProjection returned: key and value (L,B,E) of every block, one after the other.
            keep_text_B11L: True where there is text; None when nothing is padded.
            cos_S13P, sin_S13P: rotary tables in native order (common.conditions.grid_inputs).
            keep_video: masks (full, single, group); None when nothing is padded.
            condition_sBE: what ConditionProjection returned; None for a text-to-video model.
        """
        B, C, T, H, W = x_BCTHW.shape
        x_SBF = to_native(frames_to_patches(x_BCTHW, self.patch), cos_S13P.shape[0], self.stride)
        y_sBF = self.denoise(
            x_SBF, features_BF, text_kv, keep_text_B11L, cos_S13P, sin_S13P, keep_video, condition_sBE
        )
        y_SBF = self.sequence.whole(y_sBF)
        num_tokens = T * (H // self.patch) * (W // self.patch)
        return patches_to_frames(to_raster(y_SBF, num_tokens, self.stride), T, H, W, self.patch)

    def denoise(
        self,
        x_SBF: Tensor,
        features_BF: Tensor,
        text_kv: tuple,
        keep_text_B11L: Tensor | None,
        cos_S13P: Tensor,
        sin_S13P: Tensor,
        keep_video: tuple | None,
        condition_sBE: Tensor | None,
    ) -> Tensor:
        """The same for patches in native order; only their number is in the graph, not the size of frames.
        Where ranks share a sequence, all are given the whole, and each returns its own tokens' prediction.
        """
        modulation_6BE, embedded_BE = self.adaln_single(ops.cast_like(features_BF, self.scale_shift_table))
        x_SBE = self.pos_embed(self.sequence.share(x_SBF))
        if condition_sBE is not None:
            x_SBE = x_SBE + condition_sBE
        for i, block in enumerate(self.transformer_blocks):
            keep = None if keep_video is None else arrangement_mask(keep_video, self.plan[i])
            x_SBE = block(
                self.sequence.move(x_SBE, self.moves[i]),
                modulation_6BE,
                text_kv[2 * i],
                text_kv[2 * i + 1],
                keep_text_B11L,
                self.sequence.table(cos_S13P, self.plan[i]),
                self.sequence.table(sin_S13P, self.plan[i]),
                None if keep is None else self.sequence.keep(keep, self.plan[i]),
            )
        return self.project_out(self.sequence.move(x_SBE, self.moves[len(self.plan)]), embedded_BE)

    def units(self) -> list:
        """Modules that are called as a whole, inner ones first: what can be brought together one by one."""
        units, blocks = [self.caption_projection], list[Any](self.transformer_blocks)
        if self.takes_condition:
            units += [*self.pos_embed_masked_hidden_states, *self.pos_embed_mask]
        for block in blocks:
            units += [block.attn2.to_k, block.attn2.to_v, block]
        return units

    def project_out(self, x_SBE: Tensor, embedded_BE: Tensor) -> Tensor:
        """The final modulation and projection to patches (S,B,F), F being "(p q c)"."""
        modulation = ops.cast_like(self.scale_shift_table[:, None] + embedded_BE[None], x_SBE)
        x_SBE = self.norm_out(x_SBE) * (1 + modulation[1]) + modulation[0]
        return self.proj_out(x_SBE)


def condition_embedding(in_channels: int, width: int, patch: int) -> nn.ModuleList:
    """A patch embedding, and the linear layer that lets it in: zero when training starts."""
    return nn.ModuleList([PatchEmbed2D(in_channels, width, patch), Linear(width, width, bias=False)])


def frames_to_patches(x_BCTHW: Tensor, patch: int) -> Tensor:
    """ "b c t (h p) (w q) -> (t h w) b (p q c)"."""
    B, C, T, H, W = x_BCTHW.shape
    x = x_BCTHW.reshape(B, C, T, H // patch, patch, W // patch, patch).permute(2, 3, 5, 0, 4, 6, 1)
    return x.reshape(T * H * W // (patch * patch), B, patch * patch * C)


def patches_to_frames(y_SBF: Tensor, T: int, H: int, W: int, patch: int) -> Tensor:
    """ "(t h w) b (p q c) -> b c t (h p) (w q)"."""
    B = y_SBF.shape[1]
    y = y_SBF.reshape(T, H // patch, W // patch, B, patch, patch, -1)
    return y.permute(3, 6, 0, 1, 4, 2, 5).reshape(B, -1, T, H, W)


def arrangement_mask(keep_video: tuple, arrangement: str) -> Tensor:
    """The mask of one arrangement out of (full, single, group)."""
    return keep_video[("full", "single", "group").index(arrangement)]


def to_native(x_SBE: Tensor, length: int, stride: int) -> Tensor:
    """Pad raster tokens with zeros to `length`, store them natively: "(n m j) b e -> (m n j) b e"."""
    S, B, E = x_SBE.shape
    if stride == 1:
        return x_SBE
    x_SBE = ops.pad_to(x_SBE, length)
    return x_SBE.reshape(-1, stride, stride, B * E).permute(1, 0, 2, 3).reshape(length, B, E)


def to_raster(x_SBE: Tensor, num_tokens: int, stride: int) -> Tensor:
    """Undo `to_native`: "(m n j) b e -> (n m j) b e", without the padding."""
    S, B, E = x_SBE.shape
    if stride == 1:
        return x_SBE
    return x_SBE.reshape(stride, -1, stride, B * E).permute(1, 0, 2, 3).reshape(S, B, E)[:num_tokens]


class TextProjection(nn.Module):
    """Text states (B,L,C) -> key and value (L,B,E) of every block, with a transformer's own weights."""

    def __init__(self, transformer: Transformer):
        super().__init__()
        self.caption_projection = transformer.caption_projection
        self.blocks: Any = transformer.transformer_blocks

    def forward(self, text_BLC: Tensor) -> tuple:
        text_LBE = self.caption_projection(text_BLC).permute(1, 0, 2)
        text_kv = ()
        for block in self.blocks:
            text_kv = (*text_kv, block.attn2.to_k(text_LBE), block.attn2.to_v(text_LBE))
        return text_kv


class ConditionProjection(nn.Module):
    """What is given of a video (S,B,F), F as in common.masks.Condition -> what is added to this rank's tokens
    (s,B,E), with a transformer's own weights.
    """

    def __init__(self, transformer: Transformer):
        """
        Raises:
            InputError: it is a text-to-video model.
        """
        super().__init__()
        if not transformer.takes_condition:
            raise InputError(
                "transformer: got a text-to-video model, wanted one that takes images or video: its config "
                "has vae_scale_factor_t"
            )
        self.sequence = transformer.sequence
        self.num_latent_values = transformer.config.in_channels * transformer.patch**2
        self.masked: Any = transformer.pos_embed_masked_hidden_states
        self.mask: Any = transformer.pos_embed_mask

    def forward(self, condition_SBF: Tensor) -> Tensor:
        own_sBF = self.sequence.share(condition_SBF)
        masked_sBF = own_sBF[:, :, : self.num_latent_values]
        mask_sBF = own_sBF[:, :, self.num_latent_values :]
        return self.masked[1](self.masked[0](masked_sBF)) + self.mask[1](self.mask[0](mask_sBF))
