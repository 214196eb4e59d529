"""`bisect CONFIG`: on one machine with both trees, find the first module that is wrong on its own.

Tree A runs whole and every module's arguments and result are recorded. Then each module of B is given A's
arguments. A module that differs although what it was given is right, and none of whose parts differ, is at
fault; all others only pass it on.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .compare import largest_finite, tolerance_of
from .difference import difference
from .plan import DumpConfig
from .recording import Recorder
from .stages import Lab, clip_and_latent, denoiser_inputs
from .tree import Tree

SMALL = 1e-3  # inputs are also tried at this amplitude, where the epsilon of a norm shows


class Call(NamedTuple):
    """One module's call: arguments and result in NumPy (nested tuples of arrays, or whatever else was
    passed).
    """

    name: str
    arguments: tuple
    result: Any


class Finding(NamedTuple):
    """A module of B that is wrong given right arguments."""

    name: str
    relative: float
    tolerance: float
    amplitude: float


def bisect(
    config: DumpConfig, a: Tree, b: Tree, tamper: Callable[[Any], None] | None = None, stage: str = "dit"
) -> list[Finding]:
    """Modules of B's transformer ("dit") or VAE that are wrong on their own, in order of execution."""
    lab_a, lab_b = Lab(a, config), Lab(b, config, tamper)
    build, forward = PASSES[stage]
    model_a, model_b = build(lab_a), build(lab_b)
    calls = record_calls(lab_a, model_a, forward)
    modules_a, modules_b = a.runtime.modules(model_a), b.runtime.modules(model_b)
    wrong: dict[str, Finding] = {}
    with a.runtime.inference(), a.runtime.recording(model_a, _ignore), b.runtime.recording(model_b, _ignore):
        for call in calls:
            for amplitude in (1.0, SMALL):
                if amplitude != 1.0:
                    if len(call.arguments) != 1 or not isinstance(call.arguments[0], np.ndarray):
                        continue
                    small = (call.arguments[0] * np.float32(amplitude),)
                    call = Call(call.name, small, to_numpy(a, modules_a[call.name](*to_tree(lab_a, small))))
                ours = to_numpy(b, modules_b[call.name](*to_tree(lab_b, call.arguments)))
                finding = judge(call, ours, config.dtype, amplitude)
                if finding is not None and call.name not in wrong:
                    wrong[call.name] = finding
    return [f for name, f in wrong.items() if not any(other.startswith(name + ".") for other in wrong)]


def record_calls(lab: Lab, model: Any, forward: Callable[[Lab, Any], None]) -> list[Call]:
    """Every module call of one forward pass, innermost first."""
    calls: list[Call] = []

    def sink(name: str, arguments: tuple, result: Any) -> None:
        calls.append(Call(name, to_numpy(lab.tree, tuple(arguments)), to_numpy(lab.tree, result)))

    with lab.tree.runtime.inference(), lab.tree.runtime.recording(model, sink):
        forward(lab, model)
    return calls


def pass_transformer(lab: Lab, model: Any) -> None:
    lab.tree.predict(model, *denoiser_inputs(lab, Recorder("dit", lab.config.seed), model))


def pass_vae(lab: Lab, vae: Any) -> None:
    x, z = clip_and_latent(lab, Recorder("vae", lab.config.seed))
    vae.encode(x)
    vae.decode(z)


PASSES: dict[str, tuple[Callable[[Lab], Any], Callable[[Lab, Any], None]]] = {
    "dit": (Lab.transformer, pass_transformer),
    "vae": (Lab.vae, pass_vae),
}


def judge(call: Call, ours: Any, dtype: str, amplitude: float) -> Finding | None:
    """None if the results agree."""
    pairs = zip(ours, call.result, strict=True) if isinstance(call.result, tuple) else [(ours, call.result)]
    worst = 0.0
    for mine, theirs in pairs:
        if isinstance(theirs, np.ndarray):
            alike = mine.shape == theirs.shape
            apart = difference(mine, theirs).max_abs if alike else np.inf  # infinite where one is not finite
            worst = max(worst, apart / max(largest_finite(theirs), 1e-30))
    tolerance = tolerance_of("dit/act.module", dtype)["relative"]
    return Finding(call.name, worst, tolerance, amplitude) if worst > tolerance else None


def to_numpy(tree: Tree, value: Any) -> Any:
    """Tensors to arrays, inside tuples too; anything else stays."""
    if isinstance(value, tuple):
        return tuple(to_numpy(tree, v) for v in value)
    return tree.runtime.to_numpy(value).copy() if hasattr(value, "shape") else value


def to_tree(lab: Lab, value: Any) -> Any:
    """Arrays to tensors, inside tuples too; anything else stays."""
    if isinstance(value, tuple):
        return tuple(to_tree(lab, v) for v in value)
    return lab.tensor(value) if isinstance(value, np.ndarray) else value


def _ignore(name: str, arguments: tuple, result: Any) -> None:
    """Only the way `recording` runs a model is wanted."""
