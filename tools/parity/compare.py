"""`compare A B [--oracle C]`: two recordings, tensor by tensor; which differ, and where it began."""

import fnmatch
from typing import NamedTuple

import numpy as np

from common.errors import InputError

from .difference import FAIL, PASS, Difference, difference, tolerances
from .recording import Recording

PRECISION = ("float64", "float32", "float16", "bfloat16")  # finer first


class Row(NamedTuple):
    """One tensor of both recordings."""

    name: str
    verdict: str
    difference: Difference | None
    relative: (
        float  # largest difference over the tensor's largest value, or error(A) over its bound with an oracle
    )
    tolerance: float
    note: str = ""


class Comparison(NamedTuple):
    """All rows in A's order."""

    rows: list[Row]

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row.verdict == FAIL]

    @property
    def passed(self) -> bool:
        return bool(self.rows) and not self.failed

    def first_failed(self, stage: str) -> Row | None:
        """Where a stage began to differ: weights and inputs first, then activations in order of execution."""
        kinds = ("weights", "in", "act", "out", "grad", "param")
        failed = [row for row in self.failed if row.name.startswith(f"{stage}/")]
        order = {row.name: i for i, row in enumerate(failed)}

        def rank(row: Row) -> tuple[int, int]:
            return kinds.index(_kind(row.name).rpartition("/")[2]), order[row.name]

        return min(failed, key=rank, default=None)


def compare(a: Recording, b: Recording, oracle: Recording | None = None, select: str = "*") -> Comparison:
    """Match names one to one and judge each; a name that one side lacks is a failure, in a stage of both.

    What only one recorded is for `unshared_stages` to tell.
    """
    unshared = {stage for stages in unshared_stages(a, b).values() for stage in stages}
    names = [name for name in {**a.tensors, **b.tensors} if fnmatch.fnmatch(name, select)]
    names = [name for name in names if _stage(name) not in unshared]
    dtype = max((a.facts["dtype"], b.facts["dtype"]), key=PRECISION.index)
    scales = _scales(a, b)
    return Comparison([_row(name, a, b, oracle, dtype, scales.get(_kind(name), 0.0)) for name in names])


def unshared_stages(a: Recording, b: Recording, select: str = "*") -> dict[str, list[str]]:
    """The stages with selected tensors that only "A", or only "B", has recorded; no side without any."""
    only = {}
    for side, ours, theirs in (("A", a, b), ("B", b, a)):
        shared = {_stage(name) for name in theirs.tensors}
        names = [name for name in ours.tensors if fnmatch.fnmatch(name, select)]
        only[side] = [stage for stage in dict.fromkeys(map(_stage, names)) if stage not in shared]
    return {side: stages for side, stages in only.items() if stages}


def _row(name: str, a: Recording, b: Recording, oracle: Recording | None, dtype: str, scale: float) -> Row:
    for label, recording in (("A", a), ("B", b), ("the oracle", oracle)):
        if recording is not None and name not in recording.tensors:
            return Row(name, FAIL, None, np.inf, 0.0, f"missing in {label}")
    ours, theirs = a.tensors[name], b.tensors[name]
    if ours.shape != theirs.shape:
        return Row(name, FAIL, None, np.inf, 0.0, f"shape {ours.shape} in A, {theirs.shape} in B")
    measured = difference(ours, theirs)
    if oracle is not None:
        return _against_oracle(name, ours, theirs, oracle.tensors[name], dtype, measured, scale)
    rule = tolerance_of(name, dtype)
    largest = max(largest_finite(ours), largest_finite(theirs), tolerances()["zero_below"][dtype] * scale)
    relative = measured.max_abs / max(largest, 1e-300) if measured.max_abs else 0.0
    verdict = PASS if relative <= rule["relative"] else FAIL
    return Row(name, verdict, measured, relative, rule["relative"], "" if verdict == PASS else rule["why"])


def _against_oracle(name, ours, theirs, truth, dtype, measured, scale) -> Row:
    rule = tolerances()["oracle"]
    if truth.shape != ours.shape:
        return Row(name, FAIL, measured, np.inf, 0.0, f"shape {ours.shape}, the oracle has {truth.shape}")
    error_a, error_b = difference(ours, truth).max_abs, difference(theirs, truth).max_abs
    largest = max(largest_finite(truth), tolerances()["zero_below"][dtype] * scale)
    floor = rule["floor_of_gradients" if "/grad." in name else "floor"].get(dtype, 0.0)
    bound = rule["factor"] * error_b + floor * largest
    relative = error_a / bound if bound else (0.0 if error_a == 0 else np.inf)
    sound = np.isfinite(error_a) and np.isfinite(error_b)
    note = f"error of A {error_a:.1e}, of B {error_b:.1e}, bound {bound:.1e}"
    return Row(name, PASS if sound and error_a <= bound else FAIL, measured, relative, 1.0, note)


def tolerance_of(name: str, dtype: str) -> dict:
    """The first rule of tolerances.yaml that fits."""
    for rule in tolerances()["stages"]:
        if fnmatch.fnmatch(name, rule["name"]) and fnmatch.fnmatch(dtype, rule["dtype"]):
            return rule
    raise InputError(f"tolerances.yaml has no rule for {name} in {dtype}")


def differing_settings(a: Recording, b: Recording) -> list[tuple[str, object, object]]:
    """Keys of the two configs whose values differ, but for the device and the precision."""
    ours, theirs = a.facts.get("config", {}), b.facts.get("config", {})
    keys = [key for key in {**ours, **theirs} if key not in ("device", "dtype")]
    return [(key, ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)]


def check_oracle(oracle: Recording, b: Recording) -> None:
    """Refuse an oracle that does not tell the truth about B: its distance from B would allow A anything.

    Raises:
        InputError: it is not float64 of the pt tree, or of another config.
    """
    made = (oracle.facts["tree"], oracle.facts["dtype"])
    if made != ("pt", "float64"):
        raise InputError(f"compare --oracle: got a recording of {' in '.join(made)}, wanted pt in float64")
    for key, here, there in differing_settings(oracle, b):
        if key != "stages":  # it may hold fewer: what it lacks fails by name
            raise InputError(
                f"compare --oracle: got a recording with {key} {here}, wanted that of B, {there}; "
                "dump it from the same config"
            )


def drift(comparison: Comparison, stage: str) -> list[tuple[str, float]]:
    """Relative difference of a stage's activations in order of execution."""
    return [(row.name, row.relative) for row in comparison.rows if row.name.startswith(f"{stage}/act.")]


def _stage(name: str) -> str:
    return name.partition("/")[0]


def _kind(name: str) -> str:
    """ "dit/grad.x.y" -> "dit/grad"; "op/linear/grad.x" -> "op/linear/grad"."""
    stage, _, rest = name.rpartition("/")
    return f"{stage}/{rest.partition('.')[0]}"


def _scales(a: Recording, b: Recording) -> dict[str, float]:
    """The largest value among all tensors of a kind and stage."""
    scales: dict[str, float] = {}
    for recording in (a, b):
        for name, array in recording.tensors.items():
            if np.issubdtype(array.dtype, np.floating):
                scales[_kind(name)] = max(scales.get(_kind(name), 0.0), largest_finite(array))
    return scales


def largest_finite(array: np.ndarray) -> float:
    finite = np.abs(np.asarray(array, np.float64)[np.isfinite(array)])
    return float(finite.max(initial=0.0))
