"""`golden FOLDER --tree ms|pt`: run every recorded case with one tree and compare."""

import fnmatch
import functools
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import InputError

from .cases import run_case
from .cases.defect import Defect, NotApplicable, Unsupported
from .difference import (
    FAIL,
    KNOWN_DEFECT,
    NOT_APPLICABLE,
    NOT_IMPLEMENTED,
    PASS,
    Verdict,
    judge,
    tolerances,
)
from .goldens import Case, UnsupportedError, read_case, read_manifest, select
from .tree import Tree


class CaseResult(NamedTuple):
    """All verdicts of one case."""

    name: str
    verdicts: list[Verdict]
    seconds: float

    @property
    def state(self) -> str:
        """pass, fail, or not implemented: then nothing failed, but something was not computed."""
        found = {v.verdict for v in self.verdicts}
        if FAIL in found:
            return FAIL
        if NOT_IMPLEMENTED in found:
            return NOT_IMPLEMENTED
        return PASS if found & {PASS, KNOWN_DEFECT} else FAIL  # nothing compared is not a pass

    @property
    def passed(self) -> bool:
        return self.state == PASS


def check(trees: Callable[[], Tree], folder: str | Path, pattern: str) -> Iterator[CaseResult]:
    """Judge every case that matches a glob, one after the other.

    Where several are wanted, each whose weights are drawn by name has a process of its own: it holds a whole
    released model, and only the end of a process surely gives memory back.

    Args:
        trees: opens the tree; called here and in those processes.

    Raises:
        InputError: no case matches.
    """
    records, tree = select(folder, pattern), None
    if not records:
        raise InputError(f"golden: no case in {folder} matches {pattern!r}")
    for case, record in records.items():
        if record.get("weights_by_name") and len(records) > 1:
            yield check_apart(trees, folder, case)
        else:
            tree = tree or trees()
            yield check_case(tree, folder, case)


def check_apart(trees: Callable[[], Tree], folder: str | Path, name: str) -> CaseResult:
    """The same in a process of its own; one that was killed is a failure of its case alone."""
    start, context = time.perf_counter(), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_check_with, trees, folder, name).result()
        except BrokenProcessPool:
            why = "its process ended before it was done: killed, as happens where memory is short?"
    return CaseResult(name, [Verdict("*", FAIL, 0.0, None, why)], time.perf_counter() - start)


def _check_with(trees: Callable[[], Tree], folder: str | Path, name: str) -> CaseResult:
    return check_case(trees(), folder, name)


def check_case(tree: Tree, folder: str | Path, name: str) -> CaseResult:
    """Run a case and judge each of its outputs.

    What this version does not have is `not implemented`; what it refuses for another reason, as weights that
    do not fit the model, is a failure. Both are said of the case, and the next one can be run.
    """
    start = time.perf_counter()
    try:
        case = read_case(folder, name)
        verdicts = judge_all(tree, case, run_case(tree, case))
    except UnsupportedError as error:
        verdicts = _all_outputs(folder, name, NOT_IMPLEMENTED, error)
    except InputError as error:
        verdicts = _all_outputs(folder, name, FAIL, error)
    return CaseResult(name, verdicts, time.perf_counter() - start)


def judge_all(tree: Tree, case: Case, ours: dict[str, Any]) -> list[Verdict]:
    """A verdict for each output, recorded or ours."""
    right = {
        key: np.ones_like(value)  # no tensor of the recording: the runner says row by row what came right
        for key, value in ours.items()
        if isinstance(value, np.ndarray) and value.dtype == bool and key not in case.outputs
    }
    recorded: dict[str, Any] = {**case.outputs, **right}
    recorded |= {name: None for name in case.record.get("outputs", ()) if name not in recorded}
    return [
        _judge(tree, case, output, ours.get(output), recorded.get(output)) for output in {**recorded, **ours}
    ]


def _all_outputs(folder: str | Path, name: str, verdict: str, error: InputError) -> list[Verdict]:
    outputs = read_manifest(folder)[name].get("outputs") or ("*",)
    return [Verdict(output, verdict, 0.0, None, str(error)) for output in outputs]


def summary(results: list[CaseResult]) -> str:
    """How many cases, and how many of their outputs, came out how."""
    cases = Counter(result.state for result in results)
    outputs = Counter(v.verdict for result in results for v in result.verdicts)
    passed = outputs[PASS] + outputs[KNOWN_DEFECT]
    return (
        f"{cases[PASS]} passed, {cases[FAIL]} failed, {cases[NOT_IMPLEMENTED]} not implemented; outputs: "
        f"{passed} passed, {outputs[FAIL]} failed, {outputs[NOT_IMPLEMENTED]} not implemented, "
        f"{outputs[NOT_APPLICABLE]} n/a"
    )


def _judge(tree: Tree, case: Case, output: str, ours: Any, golden: np.ndarray | None) -> Verdict:
    # a float64 run is there to show that a wider tolerance is owed to rounding alone
    exact = tree.dtype == "float64"
    tolerance, why = (case.tolerance(output), "") if exact else tolerance_of(tree.name, case, output)
    if ours is None:
        return Verdict(output, NOT_IMPLEMENTED, tolerance, None, "this version does not compute it")
    if isinstance(ours, Unsupported):
        return Verdict(output, NOT_IMPLEMENTED, tolerance, None, ours.why)
    if isinstance(ours, NotApplicable):
        return Verdict(output, NOT_APPLICABLE, tolerance, None, ours.why)
    if isinstance(ours, Defect):
        tolerance = (
            tolerance or _scale(ours.instead) * 2e-5
        )  # nothing recorded: rounding of two orders of summation
        verdict = judge(output, ours.ours, ours.instead, tolerance, ours.why)
        return verdict._replace(verdict=KNOWN_DEFECT) if verdict.passed else verdict
    if golden is None:
        return Verdict(output, FAIL, tolerance, None, "not in the recording's file")
    return judge(output, ours, golden, tolerance, why)


def tolerance_of(tree: str, case: Case, output: str) -> tuple[float, str]:
    """The absolute tolerance of an output and, where it is not the recorded one, the reason."""
    suggested = case.tolerance(output)
    for rule in _rules():
        subjects = {"case": case.name, "output": output, "tree": tree}
        if all(fnmatch.fnmatch(value, rule[key]) for key, value in subjects.items()):
            share = float(rule.get("relative", 0.0))
            allowed = max(
                float(rule.get("atol", 0.0)),
                suggested * float(rule.get("factor", 0.0)),
                share * _scale(case.outputs[output]) if share else 0.0,
            )
            return (allowed, rule["why"]) if allowed > suggested else (suggested, "")
    return suggested, ""


def _scale(array: np.ndarray) -> float:
    return float(np.abs(array).max())


@functools.cache
def _rules() -> list[dict[str, Any]]:
    return tolerances()["goldens"]
