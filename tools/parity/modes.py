"""`modes CONFIG --tree ms|pt`: one tree against itself, run in two ways that must give the same."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from common.noise import index_of, normal

from .compare import tolerance_of
from .difference import FAIL, PASS, difference
from .plan import DumpConfig
from .recording import Recorder
from .stages import Lab, denoiser_inputs
from .tree import Tree


class ModeResult(NamedTuple):
    """Two ways to run, and how far apart they are as a share of the largest value."""

    name: str
    verdict: str
    relative: float
    tolerance: float


def modes(config: DumpConfig, tree: Tree) -> Iterator[ModeResult]:
    """Every pair of modes this tree has on this machine."""
    for name, (pair, dtype) in PAIRS.items():
        if tree.name in ONLY_IN.get(name, tree.name):
            one, other = pair(config, tree)
            relative = difference(one, other).max_abs / float(np.abs(other).max())
            tolerance = float(tolerance_of("dit/out.prediction", dtype)["relative"])
            yield ModeResult(name, PASS if relative <= tolerance else FAIL, relative, tolerance)


def predictions(config: DumpConfig, tree: Tree, run: Callable[[Tree, Any, tuple], Any]) -> np.ndarray:
    """The transformer's prediction as `run(tree, model, inputs)` makes it."""
    lab = Lab(tree, config)
    model = lab.transformer()
    inputs = denoiser_inputs(lab, Recorder("dit", config.seed), model)
    with tree.runtime.inference():
        return tree.numpy(run(tree, model, inputs))


def cached_text(tree: Tree, model: Any, inputs: tuple) -> Any:
    return tree.predict(model, *inputs)


def text_keys(config: DumpConfig, tree: Tree) -> tuple[np.ndarray, np.ndarray]:
    """Text keys and values projected before, and inside the same graph."""

    def together(tree: Tree, model: Any, inputs: tuple) -> Any:
        return tree.runtime.compiled(tree.forward(model), model)(*inputs)

    return predictions(config, tree, together), predictions(config, tree, cached_text)


def precision(config: DumpConfig, tree: Tree) -> tuple[np.ndarray, np.ndarray]:
    """float16 and float32."""
    halves = predictions(config.replace(dtype="float16"), tree, cached_text)
    return halves, predictions(config.replace(dtype="float32"), tree, cached_text)


def execution(config: DumpConfig, tree: Tree) -> tuple[np.ndarray, np.ndarray]:
    """PyNative and graph mode."""

    def pynative(tree: Tree, model: Any, inputs: tuple) -> Any:
        with tree.runtime.recording(model, lambda *_: None):
            return cached_text(tree, model, inputs)

    return predictions(config, tree, pynative), predictions(config, tree, cached_text)


def chunks(config: DumpConfig, tree: Tree) -> tuple[np.ndarray, np.ndarray]:
    """The VAE's decoder in chunks of one latent frame, and whole."""
    lab = Lab(tree, config)
    vae, (_, *shape) = lab.vae(), config.latent_shape()
    z = lab.tensor(normal((1, *shape), config.seed, index_of("modes/z")))
    with tree.runtime.inference():
        return tree.numpy(vae.decode(z, 1)), tree.numpy(vae.decode(z))


PAIRS = {  # name -> (function that returns both results, the coarser precision)
    "text keys in the graph = cached": (text_keys, "float32"),
    "VAE in chunks = whole": (chunks, "float32"),
    "PyNative = graph": (execution, "float32"),
    "float16 ~ float32": (precision, "float16"),
}
ONLY_IN = {"PyNative = graph": "ms"}
