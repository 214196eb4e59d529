"""The inputs of the transformer that follow from shapes alone, in NumPy: rotary tables and masks in native
token order.
"""

from typing import NamedTuple

import numpy as np

from .errors import InputError
from .models import TransformerConfig
from .rope import rope_table
from .skiparse import Keep, keep_masks, native_order

TEXT_MULTIPLE = 64  # text lengths are rounded up to this, so that few graphs are compiled


class GridInputs(NamedTuple):
    """What a (t, h, w) grid of tokens needs in every block."""

    cos_S13P: np.ndarray
    sin_S13P: np.ndarray
    keep_video: Keep | None


def grid_inputs(
    config: TransformerConfig,
    latent_thw: tuple[int, int, int],
    batch: int,
    keep_BTHW: np.ndarray | None = None,
    dtype: str = "float32",
) -> GridInputs:
    """Rotary tables and masks for latents of a size.

    Args:
        latent_thw: latent frames, height and width in cells; height and width are multiples of the patch.
        batch: rows the transformer sees (2B under guidance).
        keep_BTHW: True where a latent cell holds video; None when all do. A patch counts if any cell does.
        dtype: of the tokens; it matters only with `rope_precision: reference`.

    Raises:
        InputError: the latent size does not cut into patches.
    """
    T, H, W = latent_thw
    p, stride = config.patch_size, config.skip_stride
    if H % p or W % p:
        raise InputError(
            f"latents of {H}x{W} cells do not cut into patches of {p}; use multiples of {8 * p} pixels"
        )
    grid = (T, H // p, W // p)
    round_to = dtype if config.rope_precision == "reference" else "float32"
    cos, sin = rope_table(grid, config.attention_head_dim, config.interpolation_scale_thw, round_to)

    num_tokens = grid[0] * grid[1] * grid[2]
    order = native_order(num_tokens, stride)
    positions = np.minimum(order, num_tokens - 1)  # padding may stand anywhere
    keep_BS = None
    if keep_BTHW is not None:
        B = keep_BTHW.shape[0]
        cells = keep_BTHW.reshape(B, T, H // p, p, W // p, p)
        keep_BS = cells.any(axis=(3, 5)).reshape(B, num_tokens)
    masks = keep_masks(num_tokens, stride, batch, config.num_attention_heads, keep_BS)
    return GridInputs(cos[positions][:, None], sin[positions][:, None], masks)


def trim_text(
    states_BLC: np.ndarray, keep_BL: np.ndarray, multiple: int = TEXT_MULTIPLE
) -> tuple[np.ndarray, np.ndarray | None]:
    """Cut text to its longest used length, rounded up to `multiple`; the mask is None when nothing is padded.

    Done once for all prompts of a run: another length is another graph in ms.

    Returns:
        (states_BLC, keep_BL or None), both cut. Kept tokens need not be contiguous; the last one decides.
    """
    used = int(keep_BL.any(axis=0).nonzero()[0].max(initial=0)) + 1
    length = min(-(-used // multiple) * multiple, keep_BL.shape[1])
    keep_BL = keep_BL[:, :length].astype(bool)
    return states_BLC[:, :length], None if keep_BL.all() else keep_BL


def text_inputs(
    states_BLC: np.ndarray, keep_BL: np.ndarray, multiple: int = TEXT_MULTIPLE
) -> tuple[np.ndarray, np.ndarray | None]:
    """As trim_text, with the mask as attention takes it: (states_BLC, keep_B11L or None)."""
    states_BLC, kept_BL = trim_text(states_BLC, keep_BL, multiple)
    return states_BLC, None if kept_BL is None else kept_BL[:, None, None, :]
