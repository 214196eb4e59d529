"""Text encoders: mT5, and the small BERT of the tiny release. A seam: each tree has its own model library.

Shapes: B prompts, L text tokens, E width.
"""

import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.text import (
    WIDTH_KEYS,
    TextConfig,
    check_loaded,
    check_model_type,
    model_dir,
    quiet,
    read_model_config,
    save_model,
)


class TextEncoder:
    """A frozen text encoder: the last hidden state of every token, without pooling. `width` is E.

    Raises:
        InputError: the directory or its files are not what `config` wants, or `device` lacks the dtype.
    """

    def __init__(self, config: TextConfig, device: str) -> None:
        self.width: int = read_model_config(config)[WIDTH_KEYS[config.kind]]
        self._device = device
        self.model = _load(config).to(device)

    @classmethod
    def from_weights(
        cls, kind: str, model_config: Mapping[str, Any], weights: Mapping[str, np.ndarray], device: str
    ) -> "TextEncoder":
        """A float32 encoder from a config.json's content and arrays under the names of the released files."""
        check_model_type(kind, model_config, "from weights")
        with tempfile.TemporaryDirectory() as folder:
            save_model(folder, model_config, weights)
            return cls(TextConfig.model_validate({"kind": kind, "path": folder, "max_length": 2}), device)

    def __call__(self, ids_BL: np.ndarray, keep_BL: np.ndarray) -> Tensor:
        """states_BLE in the config's dtype; no token attends to padding (keep False)."""
        ids, keep = torch.from_numpy(ids_BL).to(self._device), torch.from_numpy(keep_BL).to(self._device)
        with torch.no_grad():
            return self.model(input_ids=ids, attention_mask=keep.long())[0]


def _load(config: TextConfig) -> torch.nn.Module:
    with quiet():
        from transformers import BertModel, MT5EncoderModel  # late: takes seconds

        model_class, extra = {
            "mt5": (MT5EncoderModel, {}),
            "minilm": (BertModel, {"add_pooling_layer": False, "attn_implementation": "eager"}),
        }[config.kind]
        model, info = model_class.from_pretrained(
            str(model_dir(config)),
            dtype=getattr(torch, config.dtype),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **extra,
        )
    check_loaded(sorted(info["missing_keys"]), model_dir(config))
    return model.eval().requires_grad_(False)
