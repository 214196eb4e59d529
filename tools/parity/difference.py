"""How far two arrays are apart, and what to say about it."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

PASS, FAIL, KNOWN_DEFECT, NOT_APPLICABLE = "pass", "fail", "known-defect", "n/a"
NOT_IMPLEMENTED = "not implemented"


class Difference(NamedTuple):
    """Measures of `ours` against `theirs`."""

    max_abs: float
    relative_l2: float
    cosine: float
    share_equal: float


def difference(ours: np.ndarray, theirs: np.ndarray) -> Difference:
    """Compare arrays of one shape. NaN anywhere, or Inf not equal in place and sign, makes it infinite."""
    a, b = np.asarray(ours, np.float64).ravel(), np.asarray(theirs, np.float64).ravel()
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(a[~finite], b[~finite]):
        return Difference(np.inf, np.inf, -1.0, 0.0)
    same = a == b
    a, b = a[finite], b[finite]
    if a.size == 0:
        return Difference(0.0, 0.0, 1.0, float(same.mean()) if same.size else 1.0)
    norm_a, norm_b = np.linalg.norm(a), np.linalg.norm(b)
    cosine = 1.0 if norm_a == norm_b == 0 else float(a @ b / max(norm_a * norm_b, 1e-300))
    relative = float(np.linalg.norm(a - b) / max(norm_b, 1e-300)) if norm_b or norm_a else 0.0
    return Difference(float(np.abs(a - b).max()), relative, cosine, float(same.mean()))


class Verdict(NamedTuple):
    """One output of one case."""

    output: str
    verdict: str  # pass, fail, known-defect, not implemented, or n/a for what our design does not have
    tolerance: float
    difference: Difference | None
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.verdict in (PASS, KNOWN_DEFECT, NOT_APPLICABLE)


def judge(output: str, ours: np.ndarray, theirs: np.ndarray, tolerance: float, note: str = "") -> Verdict:
    """Pass if the shapes agree and no element is further off than the tolerance."""
    ours = np.asarray(ours)
    if ours.shape != theirs.shape:
        return Verdict(output, FAIL, tolerance, None, f"shape {ours.shape}, expected {theirs.shape}")
    measured = difference(ours, theirs)
    return Verdict(output, PASS if measured.max_abs <= tolerance else FAIL, tolerance, measured, note)


@functools.cache
def tolerances() -> dict[str, Any]:
    """tolerances.yaml: what may differ by how much, each with its reason."""
    return yaml.safe_load(Path(__file__).with_name("tolerances.yaml").read_text())
