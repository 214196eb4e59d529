"""A sequence of tokens shared by several ranks, in the order of common/sharing.py.

Shapes: S tokens of all ranks, s of this one, B batch, E width, K skip stride, P ranks.
"""

from torch import Tensor, nn

from common import sharing
from common.sharing import TO_J, TO_M
from common.skiparse import FULL, SINGLE

from .parallel import ALONE, Exchange, Gather, Group


class Sequence(nn.Module):
    """Which tokens are this rank's, and their exchange. One rank: everything is the identity.

    Args:
        kind: "skiparse" shares by m and j in turn, for P that divide K; "ulysses" goes to heads in every
            block, for P that divide the number of heads.
    """

    def __init__(self, stride: int, kind: sharing.Kind = "skiparse", group: Group = ALONE):
        super().__init__()
        self.stride = stride
        self.kind: sharing.Kind = kind
        self.size, self.rank = group.size, group.rank
        self.skips = kind == "skiparse" and group.size > 1
        if group.size > 1:
            self.exchange = Exchange(group)
            self.collect = Gather(group)

    def to_heads_in(self, arrangement: str) -> bool:
        """Whether a block of this arrangement exchanges tokens for heads."""
        return sharing.to_heads(arrangement, self.kind, self.size)

    def local_stride(self, arrangement: str) -> int:
        """K of the view that a block's attention takes: of the rank's own m, or j."""
        return self.stride // self.size if self.skips and arrangement != FULL else self.stride

    def moves(self, plan: tuple) -> tuple:
        """How tokens move before each block, and after the last."""
        return sharing.moves(plan, self.kind, self.size)

    def move(self, x_sBE: Tensor, how: str) -> Tensor:
        """Change what the tokens are shared by."""
        if how == TO_J:
            return self.to_j(x_sBE)
        if how == TO_M:
            return self.to_m(x_sBE)
        return x_sBE

    def to_j(self, x_sBE: Tensor) -> Tensor:
        """Shared by m -> by j: "(r p j) b e -> p r (j b e)", exchange, "(p r j) b e"; r = (m n)."""
        s, B, E = x_sBE.shape
        P, rows = self.size, s // self.stride
        x = x_sBE.reshape(rows, P, s // rows // P * B * E).permute(1, 0, 2)
        return self.exchange(x).reshape(s, B, E)

    def to_m(self, x_sBE: Tensor) -> Tensor:
        """Shared by j -> by m: "(p r j) b e", exchange, "p r (j b e) -> (r p j) b e"; r = (m n)."""
        s, B, E = x_sBE.shape
        P, rows = self.size, s // self.stride
        x = self.exchange(x_sBE.reshape(P, rows, s // rows // P * B * E))
        return x.permute(1, 0, 2).reshape(s, B, E)

    def to_heads(self, x_sBE: Tensor) -> Tensor:
        """Own tokens, all heads -> all tokens, own heads: "s b (p e) -> p s b e", exchange, "(p s) b e"."""
        s, B, E = x_sBE.shape
        x = x_sBE.reshape(s, B, self.size, E // self.size).permute(2, 0, 1, 3)
        return self.exchange(x).reshape(self.size * s, B, E // self.size)

    def to_tokens(self, y_SBE: Tensor) -> Tensor:
        """Undo `to_heads`."""
        S, B, E = y_SBE.shape
        y = self.exchange(y_SBE.reshape(self.size, S // self.size, B, E))
        return y.permute(1, 2, 0, 3).reshape(S // self.size, B, E * self.size)

    def share(self, x: Tensor) -> Tensor:
        """This rank's tokens, by m, of a tensor whose first dim is all tokens, or 1 for all of them."""
        if self.size == 1 or x.shape[0] == 1:
            return x
        length = x.shape[0] // self.size
        return x[self.rank * length : (self.rank + 1) * length]

    def whole(self, x: Tensor) -> Tensor:
        """All tokens from the ranks' own, shared by m; no gradient passes."""
        return self.collect(x) if self.size > 1 else x

    def table(self, x_S13P: Tensor, arrangement: str) -> Tensor:
        """The rows of a rotary table that a block of this arrangement needs."""
        if self.size == 1:
            return x_S13P
        if self.skips and arrangement == SINGLE:
            S, one, three, pairs = x_S13P.shape
            columns = self.stride // self.size
            x = x_S13P.reshape(S // self.stride, self.size, columns * three * pairs)[:, self.rank]
            return x.reshape(S // self.size, one, three, pairs)
        return self.share(x_S13P)

    def keep(self, keep: Tensor, arrangement: str) -> Tensor:
        """The rows of a mask that a block of this arrangement needs."""
        if self.skips and arrangement != FULL:
            rows = keep.shape[0] // self.size
            return keep[self.rank * rows : (self.rank + 1) * rows]
        return keep
