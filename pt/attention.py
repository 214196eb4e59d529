"""Attention of the Skiparse transformer (arXiv:2412.00131): every arrangement is a view of the native token
order.

Tokens lie in the order (m, n, j) of common/skiparse.py and stay there in every block, forward and backward.

Shapes: S video tokens (padded), L text tokens, B batch, E width = N*D, N heads, D head width, P = D/6
rotation pairs, K skip stride.
"""

from torch import Tensor, nn

from common.skiparse import GROUP, SINGLE

from . import ops
from .kernels import kernel
from .layers import Linear


class SelfAttention(nn.Module):
    """Attention among video tokens: all of them (full), those of equal j (single) or of equal m (group)."""

    def __init__(self, num_heads: int, head_dim: int, arrangement: str, stride: int):
        super().__init__()
        width = num_heads * head_dim
        self.num_heads = num_heads
        self.arrangement = arrangement
        self.stride = stride
        self.to_q = Linear(width, width)
        self.to_k = Linear(width, width)
        self.to_v = Linear(width, width)
        self.to_out = nn.ModuleList([Linear(width, width)])
        self.attend = kernel("attention")

    def forward(self, x_SBE: Tensor, cos_S13P: Tensor, sin_S13P: Tensor, keep: Tensor | None) -> Tensor:
        S, B, E = x_SBE.shape
        q = rotate(self.to_q(x_SBE), cos_S13P, sin_S13P, self.num_heads)
        k = rotate(self.to_k(x_SBE), cos_S13P, sin_S13P, self.num_heads)
        v = self.to_v(x_SBE)
        if self.arrangement == SINGLE:  # "(r j) b e -> r (j b) e" with r = (m n)
            shape = (S // self.stride, self.stride * B, E)
            y = self.attend(q.reshape(shape), k.reshape(shape), v.reshape(shape), keep, self.num_heads, "SBH")
        elif self.arrangement == GROUP:  # "(m r) b e -> m r (b e)" with r = (n j)
            shape = (self.stride, S // self.stride, B * E)
            y = self.attend(
                q.reshape(shape), k.reshape(shape), v.reshape(shape), keep, B * self.num_heads, "BSH"
            )
        else:
            y = self.attend(q, k, v, keep, self.num_heads, "SBH")
        return self.to_out[0](y.reshape(S, B, E))


class CrossAttention(nn.Module):
    """Attention from video to text. Every query sees the same text, so Skiparse has nothing to rearrange
    here.

    Keys and values do not depend on the timestep: `TextProjection` makes them with `to_k` and `to_v`, once
    per prompt, and hands them in.
    """

    def __init__(self, num_heads: int, head_dim: int):
        super().__init__()
        width = num_heads * head_dim
        self.num_heads = num_heads
        self.to_q = Linear(width, width)
        self.to_k = Linear(width, width)
        self.to_v = Linear(width, width)
        self.to_out = nn.ModuleList([Linear(width, width)])
        self.attend = kernel("attention")

    def forward(self, x_SBE: Tensor, key_LBE: Tensor, value_LBE: Tensor, keep_B11L: Tensor | None) -> Tensor:
        y_SBE = self.attend(self.to_q(x_SBE), key_LBE, value_LBE, keep_B11L, self.num_heads, "SBH")
        return self.to_out[0](y_SBE)


def rotate(x_SBE: Tensor, cos_S13P: Tensor, sin_S13P: Tensor, num_heads: int) -> Tensor:
    """Rotary embedding: each third of a head (t, h, w) is rotated by its halves, "s b (n 3 2 p)".

    The product is taken in the precision of the tables (float32), and the result returns to the tokens'
    dtype.
    """
    S, B, E = x_SBE.shape
    x = x_SBE.reshape(S, B * num_heads, 3, 2, E // num_heads // 6)
    x1, x2 = ops.unstack(x, 3)
    y = ops.stack((x1 * cos_S13P - x2 * sin_S13P, x2 * cos_S13P + x1 * sin_S13P), 3)
    return ops.cast_like(y.reshape(S, B, E), x_SBE)
