"""`selftest`: plant known faults one at a time, and require that each is found and named. A tool that cannot
fail proves nothing.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from common.conditions import GridInputs, grid_inputs
from common.errors import InputError
from common.samplers import SamplerTable
from common.skiparse import GROUP, SINGLE

from . import stages
from .bisect import bisect
from .compare import compare
from .dump import dump
from .plan import DumpConfig
from .tree import Tree


class Fault(NamedTuple):
    """A way to be wrong, and what must be named for it.

    `plant(tree, model)` changes the built transformer; `around(tree)` is a context in which everything runs.
    """

    name: str
    found_by: str  # "bisect" (a module of the transformer) or "compare" (the first tensor that differs)
    expected: str
    plant: Callable[[Tree, Any], None] | None = None
    around: Callable[[Tree], Any] | None = None


class Outcome(NamedTuple):
    """What the tool said about a planted fault."""

    fault: Fault
    named: str
    found: bool


def flipped_mask(tree: Tree, model: Any) -> None:
    attention = model.transformer_blocks[2].attn1
    plain = attention.attend
    attention.attend = lambda q, k, v, keep, heads, layout: plain(
        q, k, v, None if keep is None else ~keep, heads, layout
    )


def swapped_arrangements(tree: Tree, model: Any) -> None:
    model.transformer_blocks[2].attn1.arrangement = GROUP
    model.transformer_blocks[3].attn1.arrangement = SINGLE


def exact_gelu(tree: Tree, model: Any) -> None:
    from scipy.special import erf  # late: only this fault needs it

    def gelu(x: Any) -> Any:
        array = tree.runtime.to_numpy(x)
        return tree.runtime.to_tensor(
            (array * 0.5 * (1 + erf(array / np.sqrt(2)))).astype(array.dtype), tree.device
        )

    model.transformer_blocks[4].ff.net[0].gelu = gelu


def larger_epsilon(tree: Tree, model: Any) -> None:
    model.transformer_blocks[2].norm1.eps = 1e-5


def transposed_weight(tree: Tree, model: Any) -> None:
    weight = model.transformer_blocks[1].attn1.to_q.weight
    tree.ops.assign(weight, tree.runtime.to_tensor(tree.runtime.to_numpy(weight).T.copy(), tree.device))


def dropped_bias(tree: Tree, model: Any) -> None:
    bias = model.transformer_blocks[3].ff.net[2].bias
    tree.ops.assign(bias, bias * 0.0)


@contextlib.contextmanager
def half_accumulation(tree: Tree) -> Iterator[None]:
    """Every matrix product rounded to float16, the least that an accelerator with such accumulators does."""
    linear = tree.ops.linear

    def rounded(x: Any, weight: Any, bias: Any) -> Any:
        half = tree.runtime.to_tensor(tree.runtime.to_numpy(linear(x, weight, bias)), tree.device, "float16")
        return tree.runtime.to_tensor(tree.runtime.to_numpy(half), tree.device)

    with mock.patch.object(tree.ops, "linear", rounded):
        yield


@contextlib.contextmanager
def permuted_rope(tree: Tree) -> Iterator[None]:
    """Rotary tables for (t, w, h) instead of (t, h, w)."""

    def swapped(*arguments: Any, **options: Any) -> GridInputs:
        grid = grid_inputs(*arguments, **options)
        order = [0, 2, 1]
        return grid._replace(cos_S13P=grid.cos_S13P[:, :, order], sin_S13P=grid.sin_S13P[:, :, order])

    with mock.patch.object(stages, "grid_inputs", swapped):
        yield


@contextlib.contextmanager
def shifted_schedule(tree: Tree) -> Iterator[None]:
    """Timesteps one row off."""
    original = stages.sampler_rows

    def shifted(config: DumpConfig) -> SamplerTable:
        table = original(config)
        return dataclasses.replace(table, timesteps_R=np.roll(table.timesteps_R, 1))

    with mock.patch.object(stages, "sampler_rows", shifted):
        yield


FAULTS = (
    Fault("mask polarity flipped", "bisect", "transformer_blocks.2.attn1", plant=flipped_mask),
    Fault(
        "single and group blocks swapped", "bisect", "transformer_blocks.2.attn1", plant=swapped_arrangements
    ),
    Fault("rotary axes in another order", "compare", "dit/in.cos", around=permuted_rope),
    Fault("exact instead of tanh GELU", "bisect", "transformer_blocks.4.ff.net.0", plant=exact_gelu),
    Fault("norm epsilon 1e-5", "bisect", "transformer_blocks.2.norm1", plant=larger_epsilon),
    Fault("one weight transposed", "bisect", "transformer_blocks.1.attn1.to_q", plant=transposed_weight),
    Fault("scheduler off by one step", "compare", "sampler/in.timesteps_R", around=shifted_schedule),
    Fault("float16 accumulation", "bisect", "caption_projection.linear_1", around=half_accumulation),
    Fault("a bias dropped", "compare", "dit/weights.transformer_blocks.3.ff.net.2.bias", plant=dropped_bias),
)


def selftest(config: DumpConfig, a: Tree, b: Tree) -> Iterator[Outcome]:
    """First the sound trees, which must agree; then every fault, planted in B.

    Raises:
        InputError: the trees differ before any fault is planted.
    """
    # One sample: then the masks of single and group blocks have one shape, and swapping them raises no error.
    config = config.replace(stages=["dit", "sampler"], batch=1)
    sound = dump(config, a)
    differences = compare(sound, dump(config, b)).failed
    if differences or bisect(config, a, b):
        raise InputError(f"selftest: the trees differ before a fault is planted, first in {differences[:1]}")
    for fault in FAULTS:
        yield try_fault(fault, config, a, b, sound)


def try_fault(fault: Fault, config: DumpConfig, a: Tree, b: Tree, sound: Any) -> Outcome:
    """Plant one fault and ask the tool."""

    def tamper(model: Any) -> None:
        if fault.plant is not None:
            fault.plant(b, model)

    with fault.around(b) if fault.around else contextlib.nullcontext():
        if fault.found_by == "bisect":
            named = next((finding.name for finding in bisect(config, a, b, tamper)), "nothing")
        else:
            comparison = compare(sound, dump(config, b, tamper))
            first = [comparison.first_failed(stage) for stage in ("dit", "sampler")]
            named = next((row.name for row in first if row is not None), "nothing")
    return Outcome(fault, named, named == fault.expected)
