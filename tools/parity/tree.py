"""One of our two trees, addressed by name: whatever is written against it runs in both."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from .by_name import CONSTANTS, ByName

Arrays = dict[str, np.ndarray]


def exact_tree(name: str, device: str = "cpu") -> "Tree":
    """A tree whose float32 is computed as float32, as far as its framework allows."""
    tree = Tree(name, device)
    tree.runtime.exact_float32(tree.device)
    return tree


class Tree:
    """One of the two trees; its modules load when first used."""

    def __init__(self, name: str, device: str = "cpu", dtype: str | None = None):
        """
        Args:
            dtype: of every model and floating-point input; as they come if not given.
        """
        self.name = name
        self.dtype = dtype
        self.device = self.module("runtime").setup(device)

    def module(self, name: str) -> Any:
        return importlib.import_module(f"{self.name}.{name}")

    def __getattr__(self, name: str) -> Any:
        return self.module(name)

    def tensor(self, array: np.ndarray | np.floating | None) -> Any:
        if array is None:
            return None
        return self.runtime.to_tensor(
            array, self.device, self.dtype if np.issubdtype(array.dtype, np.floating) else None
        )

    def load(self, model: Any, weights: Arrays | ByName, where: str) -> Any:
        if isinstance(weights, ByName):
            params = self.runtime.parameters(model)
            constants = {name: self.numpy(p) for name, p in params.items() if CONSTANTS in name}
            filled = weights.weights({name: tuple(p.shape) for name, p in params.items()}, constants)
        else:
            filled = weights
        self.runtime.load_weights(model, filled, where)
        if self.dtype is not None:
            self.runtime.cast(model, self.dtype)
        return self.runtime.place(model, self.device)

    def call(self, function: Callable, *arguments: Any, models: tuple = ()) -> Any:
        """A function of the tree, as one graph, on NumPy arrays (other arguments pass as they are)."""
        tensors = [self.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments]
        with self.runtime.inference():
            result = self.runtime.compiled(function, *models)(*tensors)
        return self.numpy(result)

    def numpy(self, result: Any) -> Any:
        return tuple(map(self.numpy, result)) if isinstance(result, tuple) else self.runtime.to_numpy(result)

    def forward(self, model: Any) -> Callable:
        """The transformer with its projections as one function, to be compiled as a whole:
        (x, features, text, keep_text, cos, sin, keep_video, condition) -> prediction.
        """
        text_projection, condition_projection = self._projections(model)

        def forward(x, features, text, keep_text, cos, sin, keep_video, condition):
            shown = None if condition is None else condition_projection(condition)
            return model(x, features, text_projection(text), keep_text, cos, sin, keep_video, shown)

        return forward

    def predict(self, model: Any, x: Any, features: Any, text: Any, *rest: Any) -> Any:
        """The same for inputs as tensors, projections first and apart, as sampling does it."""
        text_projection, condition_projection = self._projections(model)
        *masks, condition = rest
        shown = None if condition is None else condition_projection(condition)
        return model(x, features, self.runtime.varying(text_projection(text)), *masks, shown)

    def _projections(self, model: Any) -> tuple[Any, Any]:
        shown = self.transformer.ConditionProjection(model) if model.takes_condition else None
        return self.transformer.TextProjection(model), shown
