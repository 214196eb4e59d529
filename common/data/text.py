"""The text a clip is trained with: one of its captions, a word on its looks; cleaned, at times dropped."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from common.captions import (
    Choose,
    Kind,
    clean_caption_as_trained,
    drop_caption,
    with_masking_notice,
    with_notice,
)


class TextConfig(Protocol):
    """See T2VDataConfig."""

    keep_chinese: bool
    drop_caption_ratio: float
    stock_caption_ratio: float
    masking_notice: bool


def training_text(
    config: TextConfig,
    captions: Sequence[str],
    aesthetic: float,
    kind: Kind,
    path: str,
    choose: Choose,
    draw: Callable[[], float],
) -> str:
    """What the text encoder is given.

    aesthetic: a score, or NaN; a low or a high one is put into words. choose, draw: random choice and uniform
    number, called in a fixed order.
    """
    text = with_notice(choose(captions), aesthetic, kind, choose)
    if config.masking_notice and kind == "image" and "/sam/" in path:  # SA-1B, which blurs faces
        text = with_masking_notice(text, choose)
    text = clean_caption_as_trained(text, config.keep_chinese)
    return drop_caption(text, kind, config.drop_caption_ratio, config.stock_caption_ratio, draw)


def chooser(rng: np.random.Generator) -> Choose:
    """A uniform choice from the stream."""
    return lambda options: options[int(rng.integers(len(options)))]
