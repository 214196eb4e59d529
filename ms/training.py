"""One trained set of parameters: its loss, optimizer, loss scale and count of updates, and their state."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from common.optim import LossScale, OptimConfig, controls, warmed_ema_decay
from common.training.loop import NotFinite

from . import runtime
from .optim import Accumulate, Apply, Step
from .parallel import Ranks
from .zero import sharding


class Trained:
    """Parameters that a loss trains; `step` is one update on a batch."""

    def __init__(
        self,
        loss: nn.Cell,
        params: Mapping,
        config: OptimConfig,
        ranks: Ranks,
        dtype: str,
        ema_decay: float = 0.0,
        accumulate: int = 1,
        ema_warmup: bool = False,
        zero: int = 0,
        ema_on_host: bool = False,
    ):
        """
        Args:
            loss: as `optim.Step` wants it.
            dtype: of activations; float16 needs a loss scale.
            ema_decay: of the moving average of the parameters; 0: none.
            accumulate: parts that the gradients of an update are summed over.
            ema_warmup: the average follows more closely at first (common.optim.warmed_ema_decay).
            zero: what ranks share of the optimizer (zero.py).
            ema_on_host: the average is made and kept in the host's memory, not on the device.
        """
        self.loss: Any = loss
        self.device = runtime.device_of(loss)
        self.params, self.config = dict(params), config
        self.ema_decay, self.ema_warmup = ema_decay, ema_warmup
        self.scale = LossScale(dtype)
        self.updates = 0
        self.parts = accumulate
        self.shards = sharding(ranks, zero)
        self.host_averages: dict[str, np.ndarray] | None = None
        if ema_decay and ema_on_host:
            self.host_averages = {name: runtime.to_numpy(param).copy() for name, param in params.items()}
        self.one_step = Step(loss, params, config, self.shards, ema_decay > 0 and not ema_on_host)
        if accumulate > 1:
            self.accumulate = Accumulate(self.one_step, accumulate)
            self.apply = Apply(self.accumulate)

    def step(self, parts: Sequence[Sequence]) -> dict[str, float]:
        """Update the parameters with the mean gradient of a batch; the loss's terms, and more for the log.

        Args:
            parts: the loss's arguments but the last for each part of the batch: arrays, tuples of arrays, or
                None.

        Raises:
            NotFinite: terms of the loss, or a gradient at every loss scale, are not finite; no parameter,
                moment or average was changed.
        """
        assert len(parts) == self.parts
        lr = self.config.rate(self.updates + 1)
        decay = warmed_ema_decay(self.ema_decay, self.updates + 1) if self.ema_warmup else self.ema_decay
        numbers = controls(self.config, self.updates + 1, lr, decay, self.scale.value)
        terms, norm, finite = self._run(runtime.to_tensor(numbers, self.device), parts)
        values = dict(zip(self.loss.terms, map(float, runtime.to_numpy(terms)), strict=True))
        wrong = [name for name, value in values.items() if not np.isfinite(value)]
        if wrong:
            raise NotFinite(", ".join(wrong))
        if bool(runtime.to_numpy(finite)):
            self.updates += 1
            self.scale.fitted()
            self._average_on_host(np.float32(1 - decay))
        elif not self.scale.overflowed():
            raise NotFinite("the gradients' norm")
        if self.scale.dynamic:
            values["loss_scale"] = self.scale.value
        length = float(runtime.to_numpy(norm))
        if np.isfinite(length):
            values["grad_norm"] = length
        return {**values, "lr": lr}

    def _run(self, numbers: Tensor, parts: Sequence[Sequence]) -> tuple:
        if self.parts == 1:
            return self.one_step(numbers, *to_device(parts[0], self.device))
        first, *others = [self.accumulate(numbers, *to_device(part, self.device)) for part in parts]
        terms = sum(others, first) / self.parts
        norm, finite = self.apply(numbers, terms)
        return terms, norm, finite

    def _average_on_host(self, share: np.float32) -> None:
        for name, average in (self.host_averages or {}).items():
            average += share * (runtime.to_numpy(self.params[name]) - average)

    def averages(self) -> dict[str, np.ndarray]:
        """The moving average of every parameter, if one is kept."""
        if self.host_averages is not None:
            return self.host_averages
        return self._by_name(self.one_step.update.averages)

    def state(self) -> dict[str, np.ndarray]:
        """All that is needed to continue: parameters, moments, averages, scale and count."""
        state = {f"param.{name}": runtime.to_numpy(param) for name, param in self.params.items()}
        for kind, joined in self._joined().items():
            state |= {f"{kind}.{name}": x for name, x in self._by_name(joined).items()}
        for name, average in (self.host_averages or {}).items():
            state[f"average.{name}"] = average
        return {**state, "updates": np.array([self.updates]), "loss_scale": self.scale.state()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take back what `state` gave."""
        runtime.overwrite(self.params, below(state, "param."))
        for kind, joined in self._joined().items():
            values = {}
            for i, (start, stop) in enumerate(self.one_step.update.spans):
                params = list(self.params.items())[start:stop]
                arrays = [state[f"{kind}.{name}"] for name, _ in params]
                values[i] = self.shards.vector(arrays, [param for _, param in params])
            runtime.overwrite(dict(enumerate(joined)), values)
        for name, average in (self.host_averages or {}).items():
            average[...] = state[f"average.{name}"]
        self.updates = int(state["updates"][0])
        self.scale.restore(state["loss_scale"])

    def _joined(self) -> dict[str, tuple]:
        update = self.one_step.update
        kinds = {"mean": update.means, "var": update.vars}
        return {**kinds, "average": update.averages} if len(update.averages) else kinds

    def _by_name(self, joined: tuple) -> dict[str, np.ndarray]:
        """The parts of the optimizer's long vectors under the names of their parameters."""
        named, params = {}, list(self.params.items())
        for (start, stop), vector in zip(self.one_step.update.spans, joined, strict=False):
            arrays = self.shards.arrays(vector, [param for _, param in params[start:stop]])
            named |= {name: array for (name, _), array in zip(params[start:stop], arrays, strict=True)}
        return named


def cut(parts: int, *inputs: np.ndarray | np.floating) -> list[tuple]:
    """The arguments of each part of a batch: arrays with the batch first in equal parts, numbers as they
    are.
    """
    pieces = [np.split(x, parts) if x.ndim else [np.asarray(x)] * parts for x in inputs]
    return list(zip(*pieces, strict=True))


def to_device(values: Sequence[np.ndarray | tuple | None], device: str) -> list:
    """Arguments of a compiled step: arrays, tuples of arrays, or None."""
    return [_to_device(value, device) for value in values]


def _to_device(value: np.ndarray | tuple | None, device: str) -> Any:
    if isinstance(value, tuple):
        return runtime.varying(tuple(runtime.to_tensor(array, device) for array in value))
    return None if value is None else runtime.to_tensor(value, device)


def below(state: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The entries under a prefix, without it."""
    return {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
