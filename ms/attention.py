"""Attention of the Skiparse transformer (arXiv:2412.00131): every arrangement is a view of the native token
order.

Tokens lie in the order (m, n, j) of common/skiparse.py and stay there in every block, forward and backward.

Shapes: S video tokens (padded), L text tokens, B batch, E width = N*D, N heads, D head width, P = D/6
rotation pairs, K skip stride.
"""

from mindspore import Tensor, nn

from common.skiparse import GROUP, SINGLE

from . import ops
from .kernels import kernel
from .layers import Linear
from .sequence import Sequence


class SelfAttention(nn.Cell):
    """Attention among video tokens: all of them (full), those of equal j (single) or of equal m (group)."""

    def __init__(self, num_heads: int, head_dim: int, arrangement: str, sequence: Sequence):
        super().__init__()
        width = num_heads * head_dim
        self.num_heads = num_heads
        self.arrangement = arrangement
        self.sequence = sequence
        self.stride = sequence.local_stride(arrangement)
        self.to_heads = sequence.to_heads_in(arrangement)
        self.heads_here = num_heads // sequence.size if self.to_heads else num_heads
        self.to_q = Linear(width, width)
        self.to_k = Linear(width, width)
        self.to_v = Linear(width, width)
        self.to_out = nn.CellList([Linear(width, width)])
        self.attend = kernel("attention")

    def construct(self, x_SBE: Tensor, cos_S13P: Tensor, sin_S13P: Tensor, keep: Tensor | None) -> Tensor:
        q = rotate(self.to_q(x_SBE), cos_S13P, sin_S13P, self.num_heads)
        k = rotate(self.to_k(x_SBE), cos_S13P, sin_S13P, self.num_heads)
        v = self.to_v(x_SBE)
        if self.to_heads:
            q, k, v = self.sequence.to_heads(q), self.sequence.to_heads(k), self.sequence.to_heads(v)
        y = self.attend_arranged(q, k, v, keep)
        if self.to_heads:
            y = self.sequence.to_tokens(y)
        return self.to_out[0](y)

    def attend_arranged(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> Tensor:
        """Attention of each query in its sub-sequence, (S,B,E)."""
        S, B, E = q.shape
        if self.arrangement == SINGLE:  # "(r j) b e -> r (j b) e" with r = (m n)
            shape = (S // self.stride, self.stride * B, E)
            y = self.attend(
                q.reshape(shape), k.reshape(shape), v.reshape(shape), keep, self.heads_here, "SBH"
            )
        elif self.arrangement == GROUP:  # "(m r) b e -> m r (b e)" with r = (n j)
            shape = (self.stride, S // self.stride, B * E)
            y = self.attend(
                q.reshape(shape), k.reshape(shape), v.reshape(shape), keep, B * self.heads_here, "BSH"
            )
        else:
            y = self.attend(q, k, v, keep, self.heads_here, "SBH")
        return y.reshape(S, B, E)


class CrossAttention(nn.Cell):
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
        self.to_out = nn.CellList([Linear(width, width)])
        self.attend = kernel("attention")

    def construct(
        self, x_SBE: Tensor, key_LBE: Tensor, value_LBE: Tensor, keep_B11L: Tensor | None
    ) -> Tensor:
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
