"""The layers that an image-to-video transformer has beside a text-to-video one's, when training starts."""

from collections import ChainMap
from collections.abc import Mapping
from typing import Any

import numpy as np

from .checkpoint import StoredWeights
from .models import TransformerConfig
from .noise import fresh_weights
from .runs import ModelSource

SHOWN, MASK = "pos_embed_masked_hidden_states.", "pos_embed_mask."
LET_IN = (f"{SHOWN}1.weight", f"{MASK}1.weight")  # zero at first


def fresh_transformer(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Weights for a transformer to start training from, with or without these layers."""
    weights = fresh_weights(shapes, seed)
    return weights | {name: np.zeros(shapes[name], np.float32) for name in LET_IN if name in shapes}


def begins_conditions(source: ModelSource, model: TransformerConfig) -> bool:
    """Whether an image-to-video model begins from a text-to-video model's weights."""
    return source.path is not None and model.mask_channels > 0 and lacks_layers(StoredWeights(source.path))


def lacks_layers(stored: Mapping[str, np.ndarray]) -> bool:
    """Whether weights are a text-to-video model's."""
    return not any(name.startswith((SHOWN, MASK)) for name in stored)


def add_condition_layers(
    stored: Mapping[str, np.ndarray], shapes: dict[str, tuple[int, ...]]
) -> Mapping[str, np.ndarray]:
    """A text-to-video model's weights with the layers that `shapes`, the wanted model's, have beside them.

    What is shown is embedded as the video itself is; the layers that let it in are zero, so the model begins
    as the one it was.
    """
    missing = {name: shape for name, shape in shapes.items() if name.startswith((SHOWN, MASK))}
    if not missing or not lacks_layers(stored):
        return stored
    added = fresh_transformer(missing, seed=0)
    for part in ("weight", "bias"):
        if f"pos_embed.proj.{part}" in stored:
            added[f"{SHOWN}0.proj.{part}"] = stored[f"pos_embed.proj.{part}"]
    in_order: list[Any] = [added, stored]
    return ChainMap(*in_order)  # what is stored is read when asked for
