"""Text encoders: mT5, and the small BERT of the tiny release. A seam: each tree has its own model library.

Shapes: B prompts, L text tokens, E width, N heads, R relative positions.
"""

import tempfile
from collections.abc import Mapping
from typing import Any

import mindspore
import numpy as np
from mindspore import Parameter, Tensor, mint, nn, ops
from mindspore import dtype as mstype

from common.errors import InputError
from common.host import kind_of
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
        self._on_cpu = kind_of(device) == "cpu"
        if self._on_cpu and config.dtype == "bfloat16":
            raise InputError(
                "text encoder: dtype bfloat16 has no MindSpore kernels on CPU, wanted float32 or float16; "
                "set dtype to float32"
            )
        self.model: Any = _load(config)
        _use_exact_buckets(self.model)
        if self._on_cpu:
            _use_cpu_kernels(self.model)

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
        ids, keep = Tensor(ids_BL), Tensor(keep_BL.astype(np.int64))
        mode = mindspore.get_context("mode")
        mindspore.set_context(mode=mindspore.PYNATIVE_MODE)  # a compiled one is never freed: 11 GB of mT5-XXL
        try:
            states_BLE = self.model(input_ids=ids, attention_mask=keep, return_dict=False)[0]
            if self._on_cpu:
                states_BLE.asnumpy()  # waits, so that errors are told here; `synchronize` complains on a CPU
            else:
                mindspore.runtime.synchronize()
        finally:
            mindspore.set_context(mode=mode)
        return states_BLE


def _load(config: TextConfig) -> nn.Cell:
    with quiet():
        from mindone.transformers import BertModel, MT5EncoderModel  # late: takes ten seconds

        model_class, extra = {
            "mt5": (MT5EncoderModel, {}),
            "minilm": (BertModel, {"add_pooling_layer": False, "attn_implementation": "eager"}),
        }[config.kind]
        model, info = model_class.from_pretrained(
            str(model_dir(config)),
            dtype=getattr(mindspore, config.dtype),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **extra,
        )
    tied = {"encoder.embed_tokens.embedding_table"}  # the same Parameter as shared.embedding_table
    check_loaded(sorted(set(info["missing_keys"]) - tied), model_dir(config))
    for parameter in model.get_parameters():
        parameter.requires_grad = False
    return model.set_train(False)


def _use_exact_buckets(model: nn.Cell) -> None:
    """Replace, inside `model`, the bias that rests on a logarithm, on every device."""
    for _, cell in list(model.cells_and_names()):
        if "relative_attention_bias" in cell.name_cells():
            table = cell.relative_attention_bias.embedding_table
            cell.relative_attention_bias = _RelativeBias(table, cell.relative_attention_max_distance)


# mindone's models call operators for which MindSpore has no CPU kernel, or an inexact one. On CPU, and only
# there, the cells of the loaded model that do so are replaced by those below: same parameters, same maths.


def _use_cpu_kernels(model: nn.Cell) -> None:
    """Replace, inside `model`, every cell that cannot run or is inexact on CPU."""
    from mindone.transformers.activations import GELUActivation, NewGELUActivation

    for _, cell in list(model.cells_and_names()):
        for name, child in list(cell.name_cells().items()):
            if isinstance(child, mint.nn.Embedding):
                setattr(cell, name, _Lookup(child.weight))
            elif isinstance(child, mint.nn.LayerNorm):
                setattr(cell, name, _Norm(child.weight, child.bias, child.eps))
            elif isinstance(child, GELUActivation):
                setattr(cell, name, _Gelu("none"))
            elif isinstance(child, NewGELUActivation):
                setattr(cell, name, _Gelu("tanh"))


class _Lookup(nn.Cell):
    """mint.nn.Embedding, whose operator has no CPU kernel."""

    def __init__(self, weight: Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.weight = weight

    def construct(self, ids: Tensor) -> Tensor:
        return ops.gather(self.weight, ids, 0)


class _Norm(nn.Cell):
    """mint.nn.LayerNorm over the last axis, whose operator has no CPU kernel."""

    def __init__(self, weight: Parameter, bias: Parameter, eps: float) -> None:
        super().__init__(auto_prefix=False)
        self.weight, self.bias = weight, bias
        self.norm: Any = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)

    def construct(self, x_BLE: Tensor) -> Tensor:
        return self.norm(x_BLE, self.weight, self.bias)[0]


class _Gelu(nn.Cell):
    """GELU: the exact one of mint has no CPU kernel, and mT5's calls a tanh that is off by 1e-4 on CPU."""

    def __init__(self, approximate: str) -> None:
        super().__init__(auto_prefix=False)
        self.approximate = approximate

    def construct(self, x_BLE: Tensor) -> Tensor:
        return ops.gelu(x_BLE, approximate=self.approximate)


class _RelativeBias(nn.Cell):
    """T5's relative attention bias. At distances 16, 32 and 64 a logarithm that is one rounding off, as that
    of the CPU, gives the wrong bucket.

    It stands where the model turns buckets into biases, reads no more than their shape and computes its own.
    """

    def __init__(self, table: Parameter, max_distance: int) -> None:
        super().__init__(auto_prefix=False)
        self.max_distance = max_distance  # from here on every distance falls into the same bucket
        relative_R = np.arange(-max_distance, max_distance + 1)
        biases = table.astype(mstype.float32).asnumpy()  # NumPy has no bfloat16
        biases_RN = biases[_relative_buckets(relative_R, table.shape[0], max_distance)]
        self.bias_RN = Tensor(biases_RN).astype(table.dtype)

    def construct(self, buckets_LL: Tensor) -> Tensor:
        num_queries, num_keys = ops.shape(buckets_LL)
        relative = ops.arange(num_keys) - ops.expand_dims(ops.arange(num_queries), 1)
        relative = ops.clamp(relative, -self.max_distance, self.max_distance)
        return ops.gather(self.bias_RN, relative + self.max_distance, 0)


def _relative_buckets(relative_R: np.ndarray, num_buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of each relative position key - query (arXiv:1910.10683, 2.1), in float32 as PyTorch has it."""
    half = num_buckets // 2
    exact = half // 2
    distance = np.abs(relative_R)
    share = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / np.float32(
        np.log(max_distance / exact)
    )
    far = np.minimum(exact + (share * np.float32(half - exact)).astype(np.int64), half - 1)
    return np.where(relative_R > 0, half, 0) + np.where(distance < exact, distance, far)
