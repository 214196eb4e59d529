"""Pickles of nested dictionaries of NumPy arrays, as JAX programs save them (.ckpt .pkl .pickle); read only.

A pickle is a program. Ours may name three things of NumPy, and element types that ml_dtypes adds, and even
those are answered by stand-ins that only look at shapes and bytes; any other name is refused before it is
imported.
"""

import math
import pickle
import pickletools
import re
import struct
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError

from .pytorch_file import flatten
from .tensors import ArrayTensor, Content, DType, Tensor, check_shape, find_dtype, shown

WANTED = "wanted nothing but NumPy arrays of numbers in dictionaries"
UNREADABLE = (  # what the unpickler raises for files that are damaged or made to harm
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)
MEMO = ("PUT", "BINPUT", "LONG_BINPUT")  # opcodes that number an object themselves
OTHER_TYPES = "ml_dtypes"  # the package that adds bfloat16 and float8 to NumPy


def read(path: Path) -> Content:
    """All arrays, however nested, in memory.

    Raises:
        InputError: the file is damaged, or names anything but NumPy's arrays and their element types.
    """
    try:
        _check_memo(path)
        with open(path, "rb") as file:
            tree = _Unpickler(file).load()
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
    tensors: dict[tuple[Hashable, ...], Tensor] = {}
    for keys, leaf in flatten(tree, str(path)):
        where = f"{path}: {shown('.'.join(map(str, keys))) or 'the file'}"
        if not isinstance(leaf, _Array) or not keys:
            raise InputError(f"{where} is no array, {WANTED}")
        tensors[keys] = leaf.tensor(where)
    return Content("pickle of NumPy arrays", [path], tensors)


def _check_memo(path: Path) -> None:
    """Refuse numbers of objects that are far beyond their count: the unpickler makes a list as long.

    Raises:
        UnpicklingError: such a number.
        ValueError: not a pickle.
    """
    with open(path, "rb") as file:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if opcode.name in MEMO and (not isinstance(argument, int) or argument > count):
                raise pickle.UnpicklingError(f"an object numbered {argument}, the {count}th")


class _RefusedError(Exception):
    """A name that a pickle must not ask for."""


class _DType:
    """Stands in for numpy.dtype: remembers the spelling and the byte order."""

    def __init__(self, spelling: Any, align: bool = False, copy: bool = False) -> None:
        self.spelling, self.order = str(spelling), "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def find(self, where: str) -> DType:
        if self.order == ">":
            raise InputError(
                f"{where} is of another byte order (big-endian), {WANTED}: save it little-endian"
            )
        plain = re.fullmatch(r"([fiu])([1248])|(b)1", self.spelling)  # floats, integers, booleans
        return find_dtype(np.dtype(self.spelling).name if plain else self.spelling, "name", where)


class _Named(str):
    """Stands in for an element type of ml_dtypes: its name."""


class _Array:
    """Stands in for numpy.ndarray: takes the state that a pickled array has."""

    state: tuple = ()  # until it is there

    def __setstate__(self, state: tuple) -> None:
        self.state = state

    def tensor(self, where: str) -> ArrayTensor:
        """What the state says.

        Raises:
            InputError: no state of an array, or an element type that we do not read.
        """
        match self.state:
            case (_, tuple() as shape, _DType() as found, fortran, data):
                dtype = found.find(where)
            case _:
                raise InputError(f"{where} is no array, {WANTED}")
        if not all(isinstance(size, int) for size in shape):
            raise InputError(f"{where} has a shape that is none, {WANTED}; copy the file again")
        check_shape(shape, where)
        wanted = math.prod(shape) * dtype.size
        if not isinstance(data, bytes) or len(data) != wanted:
            raise InputError(
                f"{where}: an array of shape {shape} wants {wanted} bytes and has others; copy the file again"
            )
        array = np.frombuffer(data, dtype.numpy).reshape(shape, order="F" if fortran else "C")
        return ArrayTensor(dtype, shape, array)


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
        if module_name == OTHER_TYPES:
            return _Named(global_name)
        if (module_name, global_name) not in STAND_INS:
            raise _RefusedError(shown(f"{module_name}.{global_name}"))
        return STAND_INS[module_name, global_name]
