"""Pickles of nested dictionaries of NumPy arrays, as JAX programs save them (.ckpt .pkl .pickle); read only.

A pickle is a program. Ours may name three things of NumPy, and even those are answered by stand-ins that only
look at shapes and bytes; any other name is refused before it is imported.
"""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError

from .pytorch_file import flatten
from .tensors import ArrayTensor, Content, DType, find_dtype

WANTED = "wanted nothing but NumPy arrays of numbers in dictionaries"
UNREADABLE = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    InputError,
)


def read(path: Path) -> Content:
    """All arrays, however nested, in memory.

    Raises:
        InputError: the file is damaged, or names anything but NumPy's arrays and their element types.
    """
    try:
        with open(path, "rb") as file:
            tree = _Unpickler(file).load()
        arrays = list(flatten(tree))
        wrong = [
            keys for keys, leaf in arrays if not isinstance(leaf, _Array) or leaf.dtype is None or not keys
        ]
    except _RefusedError as name:
        raise InputError(
            f"{path}: refused, because loading it would run {name}; {WANTED}: save the weights as such, "
            "where they were made"
        ) from None
    except UNREADABLE as error:
        reason = str(error).splitlines() or [type(error).__name__]
        raise InputError(
            f"{path}: not a whole pickle ({reason[0].rstrip('.')[:200]}), {WANTED}; copy it again"
        ) from None
    if wrong:
        raise InputError(f"{path}: {'.'.join(map(str, wrong[0])) or 'the file'} is no array, {WANTED}")
    return Content("pickle of NumPy arrays", [path], {keys: array.tensor() for keys, array in arrays})


class _RefusedError(Exception):
    """A name that a pickle must not ask for."""


class _DType:
    """Stands in for numpy.dtype: remembers the spelling and the byte order."""

    def __init__(self, spelling: str, align: bool = False, copy: bool = False) -> None:
        self.spelling, self.order = str(spelling), "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def find(self) -> DType:
        if self.order == ">":
            raise InputError("arrays of another byte order (big-endian)")
        if self.spelling[:1] not in "fiub":  # before NumPy reads it: floats, integers, booleans
            raise InputError(f"arrays of element type {self.spelling}")
        return find_dtype(np.dtype(self.spelling).name, "name", "the pickle")


class _Array:
    """Stands in for numpy.ndarray: takes the state that a pickled array has."""

    dtype: DType | None = None  # until the state is there

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, self.fortran, data = state
        self.shape = tuple(int(size) for size in shape)
        self.dtype = found = dtype.find()
        wanted = math.prod(self.shape) * found.size
        if not isinstance(data, bytes) or min(self.shape, default=0) < 0 or len(data) != wanted:
            raise InputError(f"an array of shape {self.shape} wants {wanted} bytes and has others")
        self.data = data

    def tensor(self) -> ArrayTensor:
        assert self.dtype is not None
        flat = np.frombuffer(self.data, self.dtype.numpy)
        array = flat.reshape(self.shape, order="F" if self.fortran else "C")
        return ArrayTensor(self.dtype, self.shape, array)


def _reconstruct(cls: Any, shape: Any, typecode: Any) -> _Array:
    """Stands in for the function that makes an empty array."""
    return _Array()


STAND_INS = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # since NumPy 2
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in STAND_INS:
            raise _RefusedError(f"{module_name}.{global_name}")
        return STAND_INS[module_name, global_name]
