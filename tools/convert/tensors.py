"""A tensor as the converter sees it: a shape, an element type by name, and its bytes in pieces.

NumPy has no bfloat16, so bytes stay bytes until something must be computed. No framework here.
"""

import math
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError

PIECE_BYTES = 8 * 2**20  # a multiple of every element size
MAX_DIMS = 32  # of NumPy before 2.0


def in_words(num_bytes: int) -> str:
    """A size as people read it."""
    if num_bytes < 1e5:
        return f"{num_bytes} bytes"
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.3g} MB"


def shown(text: str) -> str:
    """A name out of a file, fit for a line of text: what cannot be printed is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True)
class DType:
    """An element type and what each format calls it; PyTorch calls it `name`."""

    name: str
    size: int  # bytes
    safetensors: str
    mindspore: str

    @property
    def numpy(self) -> np.dtype:
        """How NumPy holds the bits: bfloat16 as uint16."""
        return np.dtype("uint16" if self.name == "bfloat16" else self.name)


DTYPES = {
    dtype.name: dtype
    for dtype in (
        DType("float64", 8, "F64", "Float64"),
        DType("float32", 4, "F32", "Float32"),
        DType("float16", 2, "F16", "Float16"),
        DType("bfloat16", 2, "BF16", "BFloat16"),
        DType("int64", 8, "I64", "Int64"),
        DType("int32", 4, "I32", "Int32"),
        DType("int16", 2, "I16", "Int16"),
        DType("int8", 1, "I8", "Int8"),
        DType("uint64", 8, "U64", "UInt64"),
        DType("uint32", 4, "U32", "UInt32"),
        DType("uint16", 2, "U16", "UInt16"),
        DType("uint8", 1, "U8", "UInt8"),
        DType("bool", 1, "BOOL", "Bool"),
    )
}


def find_dtype(spelling: str, format_name: str, where: str) -> DType:
    """The element type that a format ("name", "safetensors", "mindspore") spells so.

    Raises:
        InputError: a type that not all formats can hold, as float8 or complex.
    """
    for dtype in DTYPES.values():
        if getattr(dtype, format_name) == spelling:
            return dtype
    known = ", ".join(getattr(dtype, format_name) for dtype in DTYPES.values())
    raise InputError(
        f"{shown(where)}: element type {shown(spelling)} is not one of {known}; cast it before it is saved"
    )


def check_shape(shape: tuple[int, ...], where: str) -> None:
    """Refuse what no library can hold, not even of an empty tensor.

    Raises:
        InputError: negative or huge sizes, or more of them than NumPy can count.
    """
    if len(shape) > MAX_DIMS or any(size < 0 for size in shape) or math.prod(filter(None, shape)) >= 2**60:
        raise InputError(
            f"{shown(where)}: has shape {str(shape)[:80]}, wanted at most {MAX_DIMS} sizes, of a tensor that "
            "fits into memory; the file is damaged: copy it again"
        )


@dataclass(frozen=True)
class Tensor:
    """Shape and element type; the subclass knows where the bytes come from."""

    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.size

    def pieces(self) -> Iterator[bytes]:
        """The elements in C order, little-endian, a whole number of them in each piece.

        Raises:
            InputError: the bytes cannot be had any more, or not in the wanted precision.
        """
        raise NotImplementedError


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Inside, a failure of the system is one of reading this file, whatever is being written meanwhile.

    Raises:
        InputError: instead of OSError.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{file}: got {error.strerror or error} while it was read; copy it again") from None


@dataclass(frozen=True)
class FileTensor(Tensor):
    """A tensor that lies in a file, in one span (offset, bytes) or several. Equal ones share their bytes."""

    file: Path
    spans: tuple[tuple[int, int], ...]

    def pieces(self) -> Iterator[bytes]:
        with reading(self.file), open(self.file, "rb") as file:
            for start, length in self.spans:
                file.seek(start)
                while length:
                    piece = file.read(min(length, PIECE_BYTES))
                    if not piece or len(piece) % self.dtype.size:
                        raise InputError(
                            f"{self.file}: ends {length} bytes before a tensor does; "
                            "it was cut off or changed while it was read: copy it again"
                        )
                    length -= len(piece)
                    yield piece


@dataclass(frozen=True)
class StridedTensor(FileTensor):
    """A tensor saved as a view, say a transposed weight: one span, `strides` in elements. It is put in order
    in memory.
    """

    strides: tuple[int, ...]

    def pieces(self) -> Iterator[bytes]:
        flat = np.frombuffer(b"".join(super().pieces()), self.dtype.numpy)
        strides = [stride * self.dtype.size for stride in self.strides]
        array = np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)
        yield from ArrayTensor(self.dtype, self.shape, array).pieces()


@dataclass(frozen=True)
class ArrayTensor(Tensor):
    """A tensor that is in memory; `array` holds bfloat16 as uint16."""

    array: np.ndarray = field(compare=False)

    def pieces(self) -> Iterator[bytes]:
        flat = np.ascontiguousarray(self.array).reshape(-1)
        step = PIECE_BYTES // self.dtype.size
        for start in range(0, flat.size, step):
            yield flat[start : start + step].tobytes()


@dataclass
class Content:
    """What a file or folder holds. A tensor's key is the path of dictionary keys and list indices to it."""

    format: str  # in words, for the report
    files: list[Path]
    tensors: dict[tuple[Hashable, ...], Tensor]
    values: dict[str, Any] = field(default_factory=dict)  # top-level entries that are not tensors
    metadata: dict[str, str] = field(default_factory=dict)  # of a safetensors file
    notes: list[str] = field(default_factory=list)  # what the user should know about how it was read
    config: dict[str, Any] | None = None  # where it follows from the tensors
