"""safetensors: eight bytes of header length, a JSON header, then the tensors one after the other."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from common.errors import InputError
from common.files import parse_json

from .tensors import Content, FileTensor, Tensor, check_shape, find_dtype


def read(path: Path) -> Content:
    """Names, shapes and places of the tensors; the library checks that they fill the file without overlap.

    Raises:
        InputError: not a whole safetensors file, or an element type that not every format can hold.
    """
    try:
        with safe_open(path, framework="numpy"):
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(length), str(path), "a safetensors header")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: not a whole safetensors file ({error}); copy or download it again"
        ) from None
    metadata = header.pop("__metadata__", None) or {}
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        dtype, shape = find_dtype(entry["dtype"], "safetensors", f"{path}: {name}"), tuple(entry["shape"])
        check_shape(shape, f"{path}: {name}")
        tensors[(name,)] = FileTensor(dtype, shape, path, ((8 + length + start, end - start),))
    return Content("safetensors", [path], tensors, metadata=metadata)


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the header, then every tensor; wide elements first, so that all of them are aligned."""
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.size)  # stable
    offset, header = 0, {}
    for name, tensor in ordered:
        header[name] = {
            "dtype": tensor.dtype.safetensors,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    header = {"__metadata__": dict(metadata), **header}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            for piece in tensor.pieces():
                file.write(piece)
