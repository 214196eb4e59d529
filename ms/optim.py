"""AdamW written out (arXiv:1711.05101), so that both trees take the same step, and the update built on it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mindspore import Tensor, nn

from common.optim import EMA_DECAY, LOSS_SCALE, SHRINK, SPREAD, STEP_SIZE, AdamWConfig, OptimConfig

from . import ops, runtime
from .kernels import kernel
from .zero import Shards

MAX_ELEMENTS = 2**26  # of a joined vector: 256 MiB of float32, far from what indexes of 32 bits can reach
MAX_PARAMETERS = 200  # of a joined vector: MindSpore's compiler recurses once for each


def adamw(
    config: AdamWConfig, controls: Tensor, param: Tensor, grad: Tensor, mean: Tensor, var: Tensor
) -> tuple:
    """(parameter, first moment, second moment) after the update that `common.optim.controls` describes."""
    beta1, beta2 = config.betas
    mean = beta1 * mean + (1 - beta1) * grad
    var = beta2 * var + (1 - beta2) * grad * grad
    spread = ops.sqrt(var) * controls[SPREAD] + config.eps
    return param * (1 - controls[SHRINK]) - controls[STEP_SIZE] * mean / spread, mean, var


class Step(nn.Cell):
    """A loss, its gradients, and the update of the parameters, as one graph.

    A loss is a cell whose call returns (value to differentiate, vector of terms, ...) and whose last argument
    scales the value; `after(rest, finite)` is called with what else it returned.
    """

    def __init__(
        self,
        loss: nn.Cell,
        params: Mapping,
        config: OptimConfig,
        shards: Shards,
        average: bool,
    ):
        super().__init__(auto_prefix=False)
        self.loss: Any = loss
        self.gradients = runtime.gradients(loss, list(params.values()))
        self.update = Update(params, config, shards, average)
        self.mean = shards.mean

    def construct(self, controls: Tensor, *inputs: Tensor) -> tuple:
        """Terms averaged over ranks, the gradients' norm before clipping, and whether all was finite."""
        values, grads = self.gradients(*inputs, controls[LOSS_SCALE])
        terms = self.mean(values[1])
        norm, finite = self.update(grads, controls, terms)
        self.loss.after(values[2:], finite)
        return terms, norm, finite


class Accumulate(nn.Cell):
    """Loss and gradients of a part of a batch, added to those of the parts before."""

    def __init__(self, step: Step, parts: int):
        super().__init__(auto_prefix=False)
        self.loss: Any = step.loss
        self.gradients = step.gradients
        self.update = step.update
        self.mean = step.mean
        self.share = 1.0 / parts
        self.early = step.update.shards.stage >= 2  # sums of parts, not of whole vectors
        like = step.update.means if self.early else step.update.join(step.update.params)
        self.sums = ops.state_like(like, "sum")

    def construct(self, controls: Tensor, *inputs: Tensor) -> Tensor:
        """Terms averaged over ranks."""
        values, grads = self.gradients(*inputs, controls[LOSS_SCALE])
        vectors = self.update.join(grads)
        for i in range(len(self.sums)):
            grad = self.update.shards.mean_part(vectors[i]) if self.early else vectors[i]
            ops.assign(self.sums[i], self.sums[i] + self.share * grad)
        terms = self.mean(values[1])
        self.loss.after(values[2:], ops.isfinite(terms.sum()))
        return terms


class Apply(nn.Cell):
    """The update by accumulated gradients, which start from zero again."""

    def __init__(self, accumulate: Accumulate):
        super().__init__(auto_prefix=False)
        self.update = accumulate.update
        self.sums = accumulate.sums
        self.early = accumulate.early

    def construct(self, controls: Tensor, terms: Tensor) -> tuple:
        """The gradients' norm before clipping, and whether it and the loss's terms were finite."""
        grads = [total * 1.0 if self.early else self.update.shards.mean_part(total) for total in self.sums]
        result = self.update.by(grads, controls, terms)
        for total in self.sums:
            ops.assign(total, ops.zeros_like(total))
        return result


class Update(nn.Cell):
    """One update of a set of parameters: clipping, AdamW, moving average.

    Parameters are joined to a few long vectors, so that the graph has a few operators instead of dozens per
    parameter (40 s of compiling became 8 at 152 parameters), and ranks exchange long messages. Where the
    gradients or the loss's terms are not finite nothing changes: a loss can overflow whose gradient, a sign,
    does not.
    """

    def __init__(self, params: Mapping, config: OptimConfig, shards: Shards, average: bool):
        super().__init__(auto_prefix=False)
        self.config = config
        self.shards = shards
        self.params = ops.parameter_list(params.values())
        shapes = [param.shape for param in self.params]
        self.spans = spans(shapes)
        self.sizes = tuple(tuple(map(math.prod, shapes[start:stop])) for start, stop in self.spans)
        self.split = kernel("split")
        joined = [shards.part(vector) for vector in self.join(self.params)]
        self.means = ops.state_like(joined, "mean")
        self.vars = ops.state_like(joined, "var")
        self.averages = ops.state_like(joined, "average", copy=True) if average else ()

    def join(self, tensors: tuple) -> list:
        """A tensor for each parameter -> long vectors."""
        return [ops.join(tensors[start:stop]) for start, stop in self.spans]

    def construct(self, grads: tuple, controls: Tensor, terms: Tensor) -> tuple:
        """The norm of the gradients, averaged over ranks and unscaled, and whether it and the terms, averaged
        over ranks too, are finite.
        """
        return self.by([self.shards.mean_part(grad) for grad in self.join(grads)], controls, terms)

    def by(self, grads: list, controls: Tensor, terms: Tensor) -> tuple:
        """The update by this rank's parts of the joined gradients, averaged over ranks."""
        grads = [grad / controls[LOSS_SCALE] for grad in grads]
        norm = ops.sqrt(self.shards.total(sum_of_squares(grads)))
        finite = ops.isfinite(norm + terms.sum())
        limit = ops.clamp(self.config.max_grad_norm / (norm + 1e-6), 0.0, 1.0)
        for i, (start, stop) in enumerate(self.spans):
            params = self.params[start:stop]
            joined = ops.detach(ops.join(params))
            old = self.shards.part(joined)
            new, mean, var = adamw(self.config, controls, old, grads[i] * limit, self.means[i], self.vars[i])
            ops.assign(self.means[i], ops.where(finite, mean, self.means[i]))
            ops.assign(self.vars[i], ops.where(finite, var, self.vars[i]))
            if len(self.averages):
                average = self.averages[i]
                moved = average + (1 - controls[EMA_DECAY]) * (new - average)
                ops.assign(average, ops.where(finite, moved, average))
            new = self.shards.whole(ops.where(finite, new, old), joined.shape[0])
            ops.assign_parts(params, self.split(new, self.sizes[i]))
        return norm, finite


def spans(shapes: Sequence[tuple]) -> tuple:
    """(start, stop) of consecutive parameters that are joined; a huge one stands alone."""
    found, start, held = [], 0, 0
    for i, shape in enumerate(shapes):
        size = math.prod(shape)
        if i > start and (held + size > MAX_ELEMENTS or i - start == MAX_PARAMETERS):
            found.append((start, i))
            start, held = i, 0
        held += size
    return (*found, (start, len(shapes)))


def sum_of_squares(vectors: list) -> Tensor:
    """Over all elements of all vectors."""
    total = (vectors[0] * vectors[0]).sum()
    for vector in vectors[1:]:
        total = total + (vector * vector).sum()
    return total
