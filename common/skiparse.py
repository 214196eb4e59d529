"""Skiparse attention (arXiv:2412.00131, section 3) as bookkeeping: which block skips how, and the native
token order.

Tokens in raster order have index s = n*K*K + m*K + j with m, j in [0, K). A `single` block attends among
tokens of equal j, a `group` block among tokens of equal m. Stored in the order (m, n, j), both arrangements
are views:

    single   (m n j) b e -> (m n) (j b) e          rows x batch x width
    group    (m n j) b e -> m (n j) (b e)          batch x rows x folded heads
    full     s b e

Shapes: S video tokens padded to a multiple of K*K, B batch, L text tokens, K skip stride.
"""

from typing import NamedTuple

import numpy as np

FULL, SINGLE, GROUP = "full", "single", "group"


def layer_plan(num_layers: int, stride: int, num_dense_ends: int = 2) -> tuple[str, ...]:
    """Blocks near both ends attend to everything; between them even blocks skip singly, odd ones in groups.

    >>> layer_plan(6, 4)
    ('full', 'full', 'single', 'group', 'full', 'full')
    """
    if stride == 1:
        return (FULL,) * num_layers
    sparse = range(num_dense_ends, num_layers - num_dense_ends)
    return tuple((GROUP if i % 2 else SINGLE) if i in sparse else FULL for i in range(num_layers))


def padded_length(num_tokens: int, stride: int) -> int:
    """The smallest multiple of stride**2 that holds num_tokens: group blocks need whole runs for every m."""
    block = stride * stride
    return -(-num_tokens // block) * block


def native_order(num_tokens: int, stride: int) -> np.ndarray:
    """Raster index of the token at each native position, (S,), S = padded_length: "(n m j) -> (m n j)"."""
    raster = np.arange(padded_length(num_tokens, stride))
    return raster.reshape(-1, stride, stride).transpose(1, 0, 2).reshape(-1)


def to_patches(x_BCTHW: np.ndarray, patch: int, stride: int) -> np.ndarray:
    """Latents cut into tokens in native order, zeros where there is none: (S, B, p*p*C), "(p q c)"."""
    B, C, T, H, W = x_BCTHW.shape
    x = x_BCTHW.reshape(B, C, T, H // patch, patch, W // patch, patch).transpose(2, 3, 5, 0, 4, 6, 1)
    x_SBF = x.reshape(-1, B, patch * patch * C)
    num_tokens = len(x_SBF)
    padded = np.pad(x_SBF, ((0, padded_length(num_tokens, stride) - num_tokens), (0, 0), (0, 0)))
    return padded[native_order(num_tokens, stride)]


def from_patches(x_SBF: np.ndarray, latent_thw: tuple[int, int, int], patch: int, stride: int) -> np.ndarray:
    """Undo `to_patches`: x_BCTHW."""
    T, H, W = latent_thw
    num_tokens = T * H * W // (patch * patch)
    raster = np.argsort(native_order(num_tokens, stride))[:num_tokens]
    x = x_SBF[raster].reshape(T, H // patch, W // patch, x_SBF.shape[1], patch, patch, -1)
    return np.ascontiguousarray(x.transpose(3, 6, 0, 1, 4, 2, 5)).reshape(x_SBF.shape[1], -1, T, H, W)


class Keep(NamedTuple):
    """Boolean attention masks, True = keep, one per arrangement; all broadcast to (batch, heads, queries,
    keys).
    """

    full: np.ndarray  # (1 or B, 1, 1, S)
    single: np.ndarray  # (K*B, 1, 1, S/K), batch in the order (j b)
    group: np.ndarray  # (K, 1 or B*N, 1, S/K), batch is m, heads in the order (b h)

    def of(self, arrangement: str) -> np.ndarray:
        return getattr(self, arrangement)


def keep_masks(num_tokens: int, stride: int, batch: int, num_heads: int, keep_BS: np.ndarray | None = None):
    """Masks for every arrangement, or None when nothing is padded.

    Args:
        num_tokens: real tokens of a sample, before padding to a multiple of K*K.
        batch: B; every (j b) pair of a single block needs its own row.
        num_heads: N; a per-sample mask in a group block is repeated over the folded heads.
        keep_BS: (B, num_tokens) in raster order, True where a token carries video; None when all do.

    A sub-sequence that would keep nothing keeps everything instead: it holds padding only, nobody reads its
    result, and a row without keys would be NaN.
    """
    length = padded_length(num_tokens, stride)
    if length == num_tokens and (keep_BS is None or keep_BS.all()):
        return None
    shared = keep_BS is None or bool((keep_BS == keep_BS[:1]).all())
    rows = np.ones((1, num_tokens), bool) if keep_BS is None else keep_BS[:1] if shared else keep_BS
    native = np.pad(rows, ((0, 0), (0, length - num_tokens)))[:, native_order(num_tokens, stride)]
    mnj = native.reshape(len(native), stride, -1, stride)  # b m n j
    single = mnj.transpose(3, 0, 1, 2).reshape(stride, len(native), -1)  # j b (m n)
    single = np.broadcast_to(single, (stride, batch, single.shape[-1])).reshape(stride * batch, 1, 1, -1)
    group = mnj.transpose(1, 0, 2, 3).reshape(stride, len(native), 1, -1)  # m b 1 (n j)
    if not shared:
        group = np.repeat(group, num_heads, axis=1)  # m (b h) 1 (n j)
    return Keep(*(_never_empty(mask) for mask in (native[:, None, None], single, group)))


def _never_empty(keep: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(keep | ~keep.any(axis=-1, keepdims=True))
