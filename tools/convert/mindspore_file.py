"""MindSpore's .ckpt, read and written without MindSpore: a protobuf message that is a list of parameters.

    Checkpoint {1: Value {1: name, 2: Tensor {1: dims, 2: element type, 3: bytes}}, 1: Value ..., ...}

A parameter of more than 512 MB is cut into consecutive values of one name. Reading seeks over the bytes, so a
file larger than memory is no trouble (`mindspore.load_checkpoint` needs twice its size).
"""

import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from common.errors import InputError

from .tensors import PIECE_BYTES, Content, DType, FileTensor, Tensor, check_shape, find_dtype, shown

SLICE_BYTES = 512 * 2**20  # as save_checkpoint cuts
CRC_MARK = b"crc_num"  # and ten bytes, when saved with crc_check=True
BYTES, VARINT = 2, 0  # wire types
MAX_TEXT = 2**20  # bytes of a name, of a list of dims, of a string: longer ones are not what they are read as
MAX_VARINT = 10  # bytes of a number


def read(path: Path) -> Content:
    """Names, shapes and places of the parameters; strings of `append_dict` come as values.

    Raises:
        InputError: cut off, encrypted or damaged, or holding what is not a plain tensor.
    """
    found: dict[str, tuple[DType, tuple[int, ...], list[tuple[int, int]]]] = {}
    values = {}
    with open(path, "rb") as file:
        for number, start, end in _fields(file, path, 0, _end_of_messages(file, path)):
            name, dims, spelling, content = _value(file, path, number, start, end)
            if spelling == "str":
                values[name] = _text(file, path, content)
                continue
            dtype = find_dtype(spelling, "mindspore", f"{path}: {name}")
            before = found.setdefault(name, (dtype, dims, []))
            if before[:2] != (dtype, dims):
                raise _damaged(path, f"the slices of {name} differ in shape or type")
            before[2].append(content)
    tensors = {}
    for name, (dtype, dims, spans) in found.items():
        size = sum(length for _, length in spans)
        shape = () if dims == (0,) and size else dims  # how older versions write a scalar
        check_shape(shape, f"{path}: {name}")
        if math.prod(shape) * dtype.size != size or any(length % dtype.size for _, length in spans):
            raise _damaged(path, f"{name} has shape {shape} of {dtype.name} and {size} bytes")
        tensors[(name,)] = FileTensor(dtype, shape, path, tuple(spans))
    return Content("MindSpore .ckpt", [path], tensors, values)


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write every tensor as `save_checkpoint` does, byte for byte; there is no place for metadata."""
    with open(path, "wb") as file:
        for name, tensor in tensors.items():
            pieces, pending = tensor.pieces(), b""
            for start in range(0, max(tensor.nbytes, 1), SLICE_BYTES):
                left = min(SLICE_BYTES, tensor.nbytes - start)
                file.write(_head(name, tensor, left))
                while left:
                    piece = pending or next(pieces, b"")
                    file.write(piece[:left])
                    piece, pending, left = piece[:left], piece[left:], left - len(piece[:left])
                    assert piece, f"{name}: fewer bytes than its shape says"


def _head(name: str, tensor: Tensor, content_bytes: int) -> bytes:
    """All that stands before the bytes of one slice."""
    dims = b"".join(b"\x08" + _varint(dim) for dim in tensor.shape)
    head = dims + _prefixed(2, tensor.dtype.mindspore.encode()) + b"\x1a" + _varint(content_bytes)
    head = _prefixed(1, name.encode()) + b"\x12" + _varint(len(head) + content_bytes) + head
    return b"\x0a" + _varint(len(head) + content_bytes) + head


def _prefixed(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | BYTES]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    low = value & 0x7F
    return bytes([low]) if value < 0x80 else bytes([low | 0x80]) + _varint(value >> 7)


def _value(
    file: BinaryIO, path: Path, number: int, start: int, end: int
) -> tuple[str, tuple[int, ...], str, tuple[int, int]]:
    """Name, dims, element type and span of one value of the list."""
    fields = {n: (a, b) for n, a, b in _fields(file, path, start, end)} if number == 1 else {}
    name = _short(file, path, *fields[1]).decode(errors="replace") if 1 in fields else ""
    if 2 not in fields:
        raise InputError(
            f"{path}: {shown(name) or 'an entry'} is not a plain tensor (a MapParameter, or another kind of "
            "file); wanted what mindspore.save_checkpoint writes for a network's parameters"
        )
    dims: list[int] = []
    spelling, content = "", (end, 0)
    for n, a, b in _fields(file, path, *fields[2]):
        if n == 1:
            dims.extend(_varints(_short(file, path, a, b), path))
        elif n == 2:
            spelling = _short(file, path, a, b).decode(errors="replace")
        elif n == 3:
            content = (a, b - a)
    return name, tuple(dims), spelling, content


def _fields(file: BinaryIO, path: Path, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of the fields of a message; a varint is its own bytes."""
    while position < end:
        file.seek(position)
        key, used = _first_varint(file.read(MAX_VARINT), path)
        position += used
        if key & 7 == BYTES:
            file.seek(position)
            length, used = _first_varint(file.read(MAX_VARINT), path)
            position += used
        elif key & 7 == VARINT:
            file.seek(position)
            length = _first_varint(file.read(MAX_VARINT), path)[1]
        else:
            raise _damaged(path, f"no known field at byte {position}")
        if position + length > end:
            raise _damaged(
                path, f"a field at byte {position} wants {length} bytes, {end - position} are left"
            )
        yield key >> 3, position, position + length
        position += length


def _first_varint(data: bytes, path: Path) -> tuple[int, int]:
    """A number and how many bytes it took."""
    for i, byte in enumerate(data):
        if byte < 0x80:
            return _varints(data[: i + 1], path)[0], i + 1
    raise _damaged(path, "a number that does not end")


def _varints(data: bytes, path: Path) -> list[int]:
    values, value, shift = [], 0, 0
    for byte in data:
        if shift >= 7 * MAX_VARINT:
            raise _damaged(path, "a number that does not end")
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            values.append(value)
            value, shift = 0, 0
    return values


def _bytes(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _short(file: BinaryIO, path: Path, start: int, end: int) -> bytes:
    """What is read as a whole, hence must not be of any length."""
    if end - start > MAX_TEXT:
        raise _damaged(path, f"a name or shape of {end - start} bytes")
    return _bytes(file, start, end)


def _text(file: BinaryIO, path: Path, content: tuple[int, int]) -> str:
    return _short(file, path, content[0], sum(content)).decode("utf-32-le", errors="replace")


def _end_of_messages(file: BinaryIO, path: Path) -> int:
    """Where the list ends: before the checksum, if there is one, which must be right."""
    size = file.seek(0, 2)
    tail = _bytes(file, max(size - 17, 0), size)
    if not tail.startswith(CRC_MARK):
        return size
    end, crc = size - 17, 0
    for start in range(0, end, PIECE_BYTES):
        crc = zlib.crc32(_bytes(file, start, min(start + PIECE_BYTES, end)), crc)
    if crc != int.from_bytes(tail[len(CRC_MARK) :], "big"):
        raise _damaged(path, "its checksum is wrong")
    return end


def _damaged(path: Path, what: str) -> InputError:
    return InputError(
        f"{path}: not a whole MindSpore .ckpt: {shown(what)}; copy it again, or save it anew without "
        "encryption"
    )
