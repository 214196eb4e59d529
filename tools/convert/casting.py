"""Floating-point tensors in another precision, rounded to nearest even, with the worst rounding on record."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from common.errors import InputError

from .tensors import DTYPES, DType, Tensor

FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclass
class Worst:
    """The largest rounding of one sort, and where it happened."""

    error: float = 0.0
    name: str = ""
    before: float = 0.0
    after: float = 0.0

    def __str__(self) -> str:
        return f"{self.error:.3g} in {self.name} ({self.before:.9g} became {self.after:.9g})"


@dataclass
class Rounding:
    """What a cast of many tensors did to their values."""

    dtype: str
    num_tensors: int = 0
    absolute: Worst = field(default_factory=Worst)
    relative: Worst = field(default_factory=Worst)
    num_flushed: int = 0  # became zero
    num_overflowed: int = 0  # became infinite

    def lines(self) -> list[str]:
        """The report, a sentence a line."""
        lines = [f"{self.num_tensors} tensors to {self.dtype}"]
        if self.absolute.name:
            lines.append(f"worst absolute rounding {self.absolute}")
            lines.append(f"worst relative rounding {self.relative}")
        elif not self.num_overflowed:
            lines[0] += ", no value changed"
        if self.num_flushed:
            lines.append(f"{self.num_flushed} values became zero (relative rounding 1)")
        if self.num_overflowed:
            lines.append(f"{self.num_overflowed} values became infinite")
        return lines


@dataclass(frozen=True)
class CastTensor(Tensor):
    """A tensor in another precision, computed piece by piece; each reading adds to `rounding`.

    `pieces` raises InputError where a finite value becomes infinite, unless `allow_overflow`.
    """

    name: str
    source: Tensor
    rounding: Rounding = field(compare=False)
    allow_overflow: bool = False

    def pieces(self) -> Iterator[bytes]:
        self.rounding.num_tensors += 1
        for piece in self.source.pieces():
            before = widen(np.frombuffer(piece, self.source.dtype.numpy), self.source.dtype)
            bits = narrow(before, self.dtype)
            self._record(before, widen(bits, self.dtype))
            yield bits.tobytes()

    def _record(self, before: np.ndarray, after: np.ndarray) -> None:
        with np.errstate(invalid="ignore"):
            error = np.abs(after - before)
        if not np.isfinite(error.max(initial=0)):
            error[~self._kept_finite(before, after)] = 0
        relative = error / np.maximum(np.abs(before), np.finfo(before.dtype).smallest_subnormal)
        for worst, errors in ((self.rounding.absolute, error), (self.rounding.relative, relative)):
            if errors.max(initial=0) > worst.error:
                at = int(errors.argmax())
                worst.error, worst.name = float(errors[at]), self.name
                worst.before, worst.after = float(before[at]), float(after[at])
        if relative.max(initial=0) >= 1:
            self.rounding.num_flushed += int(((after == 0) & (before != 0)).sum())

    def _kept_finite(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Which values are finite before and after; those that become infinite are counted, or an error."""
        overflowed = np.isfinite(before) & ~np.isfinite(after)
        if overflowed.any() and not self.allow_overflow:
            raise InputError(
                f"{self.name}: {before[overflowed][0]:g} is too large for {self.dtype.name}; "
                "use --dtype bfloat16 or float32, or --allow-overflow to store infinity"
            )
        self.rounding.num_overflowed += int(overflowed.sum())
        return np.isfinite(before) & np.isfinite(after)


def cast(
    tensors: dict[str, Tensor], dtype: str, allow_overflow: bool = False
) -> tuple[dict[str, Tensor], Rounding]:
    """The tensors with every floating-point one in `dtype` ("keep": as it is), and the record of the
    rounding, filled while they are read.
    """
    rounding = Rounding(dtype)
    if dtype == "keep":
        return tensors, rounding
    target = DTYPES[dtype]
    return {
        name: CastTensor(target, tensor.shape, name, tensor, rounding, allow_overflow)
        if tensor.dtype.name in FLOATS and tensor.dtype != target
        else tensor
        for name, tensor in tensors.items()
    }, rounding


def widen(bits: np.ndarray, dtype: DType) -> np.ndarray:
    """Stored values as float32 (float64 stays). Exact; so is the difference of a value to its rounding."""
    if dtype.name == "bfloat16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits if dtype.name == "float64" else bits.astype(np.float32)


def narrow(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Values rounded to nearest even, as they are stored. float64 reaches bfloat16 by way of float32."""
    with np.errstate(over="ignore", under="ignore"):
        if dtype.name != "bfloat16":
            return values.astype(dtype.numpy)
        values = values.astype(np.float32)
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet_nan = (bits >> np.uint32(16)) | np.uint32(0x40)  # adding could carry a NaN over to zero
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)
