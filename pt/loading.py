"""Models from a `ModelSource`: built for a device, filled from a checkpoint or with random weights, cast,
placed.
"""

from typing import Any

from torch import nn

from common.checkpoint import StoredWeights
from common.models import HubConfig, TransformerConfig, VAEConfig
from common.noise import initial_weights
from common.runs import ModelSource

from . import runtime
from .transformer import Transformer
from .vae import WFVAE


def load_transformer(source: ModelSource, config: TransformerConfig, dtype: str, device: str) -> Transformer:
    """The denoiser, ready for inference."""
    return _load(Transformer, source, config, dtype, device, "transformer")


def load_vae(source: ModelSource, config: VAEConfig, dtype: str, device: str) -> WFVAE:
    """The video VAE, ready for inference."""
    return _load(WFVAE, source, config, dtype, device, "vae")


def initialize(model: nn.Module, seed: int) -> None:
    """Draw every trainable parameter by its name; frozen constants (wavelet filters) keep their values."""
    frozen = {
        name: runtime.to_numpy(p) for name, p in runtime.parameters(model).items() if not p.requires_grad
    }
    shapes = {name: tuple(p.shape) for name, p in runtime.trainable(model).items()}
    runtime.load_weights(model, {**frozen, **initial_weights(shapes, seed)}, f"random weights of seed {seed}")


def _load(cls: type, source: ModelSource, config: HubConfig, dtype: str, device: str, where: str) -> Any:
    weights = StoredWeights(source.path) if source.path is not None else None
    with runtime.building(device):
        model = cls(config)
    if weights is None:
        initialize(model, source.random_seed or 0)
    else:
        runtime.load_weights(model, weights, f"{where} {source.path}")
    return runtime.place(runtime.cast(model, dtype), device)
