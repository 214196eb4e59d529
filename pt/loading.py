"""Models from a `ModelSource`: built for a device, filled from a checkpoint or with random weights, cast,
placed.
"""

import functools
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from common.checkpoint import StoredWeights
from common.condition_layers import add_condition_layers, fresh_transformer
from common.judges import DiscriminatorConfig, I3DConfig, LPIPSConfig
from common.models import CausalVAEConfig, HubConfig, TransformerConfig, VAEConfig, read_hub_config
from common.noise import fresh_weights, initial_weights
from common.runs import ModelSource
from common.sharing import Kind, check_sharing

from . import runtime
from .causal_vae import CausalVAE
from .discriminator import Discriminator
from .i3d import I3D
from .lpips import LPIPS
from .parallel import ALONE, Group, Mean
from .sequence import Sequence
from .transformer import Transformer
from .vae import WFVAE

DRAWS: dict[bool, Callable] = {False: initial_weights, True: fresh_weights}


def load_transformer(
    source: ModelSource,
    config: TransformerConfig,
    dtype: str,
    device: str,
    fresh: bool = False,
    kind: Kind = "skiparse",
    group: Group = ALONE,
) -> Transformer:
    """The denoiser, ready for inference.

    Args:
        fresh: random weights are such as training starts from, and an image-to-video model may begin from a
            text-to-video model's.
        kind, group: how ranks share its tokens, and which ones (sequence.py).
    """
    check_sharing(kind, group.size, config)

    def build(config: TransformerConfig) -> Transformer:
        return Transformer(config, Sequence(config.skip_stride, kind, group))

    draw, complete = initial_weights, unchanged
    if fresh:
        draw, complete = fresh_transformer, add_condition_layers
    return _load(build, source, config, dtype, device, "transformer", draw, complete)


def load_vae(
    source: ModelSource, config: VAEConfig | CausalVAEConfig, dtype: str, device: str, fresh: bool = False
) -> Any:
    """The video VAE that the config is of, WFVAE or CausalVAE, ready for inference.

    Args:
        fresh: random weights are such as training starts from.
    """
    build = CausalVAE if isinstance(config, CausalVAEConfig) else WFVAE
    return _load(build, source, config, dtype, device, "vae", DRAWS[fresh])


def start_discriminator(
    config: DiscriminatorConfig, seed: int, mean_over_ranks: Mean, device: str
) -> Discriminator:
    """A discriminator with random weights."""
    with runtime.building(device):
        model = Discriminator(config, mean_over_ranks)
    initialize(model, seed, functools.partial(fresh_weights, std=0.02))
    runtime.place(model, device)
    return model


def load_lpips(path: str, device: str) -> LPIPS:
    """The perceptual distance from a model directory, in float32; its weights are frozen."""
    return _frozen(
        _load(LPIPS, ModelSource(path=path), read_hub_config(LPIPSConfig, path), "float32", device, "lpips")
    )


def load_i3d(path: str, device: str) -> I3D:
    """The video classifier of FVD from a model directory, in float32; its weights are frozen."""
    return _frozen(
        _load(I3D, ModelSource(path=path), read_hub_config(I3DConfig, path), "float32", device, "i3d")
    )


def unchanged(weights: Mapping, shapes: dict) -> Mapping:
    """A checkpoint is taken as it is."""
    return weights


def _frozen(model: nn.Module) -> Any:
    for parameter in runtime.parameters(model).values():
        parameter.requires_grad = False
    return model


def initialize(model: nn.Module, seed: int, draw: Callable = initial_weights) -> None:
    """Draw every trainable parameter by its name; frozen constants (wavelet filters) keep their values."""
    frozen = {
        name: runtime.to_numpy(p) for name, p in runtime.parameters(model).items() if not p.requires_grad
    }
    shapes = {name: tuple(p.shape) for name, p in runtime.trainable(model).items()}
    parts: list[Any] = [draw(shapes, seed), frozen]
    runtime.load_weights(model, ChainMap(*parts), f"random weights of seed {seed}")


def _load(
    build: Callable,
    source: ModelSource,
    config: HubConfig,
    dtype: str,
    device: str,
    where: str,
    draw: Callable = initial_weights,
    complete: Callable[[Mapping, dict], Mapping] = unchanged,
) -> Any:
    weights = StoredWeights(source.path) if source.path is not None else None
    with runtime.building(device):
        model = build(config)
    if weights is None:
        initialize(model, source.random_seed or 0, draw)
    else:
        shapes = {name: tuple(p.shape) for name, p in runtime.parameters(model).items()}
        runtime.load_weights(model, complete(weights, shapes), f"{where} {source.path}")
    return runtime.place(runtime.cast(model, dtype), device)
