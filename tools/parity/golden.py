"""`golden FOLDER --tree ms|pt`: run every recorded case with one tree and compare."""

import fnmatch
import functools
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .cases import run_case
from .cases.defect import Defect, NotApplicable
from .difference import FAIL, KNOWN_DEFECT, NOT_APPLICABLE, PASS, Verdict, judge, tolerances
from .goldens import Case, read_case
from .tree import Tree


class CaseResult(NamedTuple):
    """All verdicts of one case; implemented is False where the tree has no such component yet."""

    name: str
    implemented: bool
    verdicts: list[Verdict]
    seconds: float

    @property
    def passed(self) -> bool:
        compared = any(v.verdict in (PASS, KNOWN_DEFECT) for v in self.verdicts)
        return self.implemented and compared and all(v.passed for v in self.verdicts)


def check_case(tree: Tree, folder: str | Path, name: str) -> CaseResult:
    """Run a case and judge each of its outputs."""
    start = time.perf_counter()
    case = read_case(folder, name)
    ours = run_case(tree, case)
    if ours is None:
        return CaseResult(name, False, [], time.perf_counter() - start)
    right = {
        key: np.ones_like(value)  # no tensor of the recording: the runner says row by row what came right
        for key, value in ours.items()
        if isinstance(value, np.ndarray) and value.dtype == bool and key not in case.outputs
    }
    recorded = case.outputs | right
    recorded |= {name: None for name in case.record["outputs"] if name not in recorded}
    verdicts = [
        _judge(tree, case, output, ours.get(output), recorded.get(output)) for output in {**recorded, **ours}
    ]
    return CaseResult(name, True, verdicts, time.perf_counter() - start)


def _judge(tree: Tree, case: Case, output: str, ours: Any, golden: np.ndarray | None) -> Verdict:
    # a float64 run is there to show that a wider tolerance is owed to rounding alone
    exact = tree.dtype == "float64"
    tolerance, why = (case.tolerance(output), "") if exact else tolerance_of(tree.name, case, output)
    if ours is None:
        return Verdict(output, FAIL, tolerance, None, "not computed")
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
