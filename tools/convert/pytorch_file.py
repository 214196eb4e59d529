"""PyTorch's .pt, .pth, .bin and .ckpt. torch unpickles the structure, with `weights_only`; the tensors' bytes
are read from the file by us, so that they need not fit into memory.
"""

import importlib
import mmap
import pickle
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError

from .tensors import (
    ArrayTensor,
    Content,
    DType,
    FileTensor,
    StridedTensor,
    Tensor,
    check_shape,
    find_dtype,
    shown,
)

UNREADABLE = (  # what torch and its restricted unpickler raise for files that are damaged or made to harm
    pickle.UnpicklingError,
    RuntimeError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
ALIGNMENT = 64
MAX_DEPTH = 32
MAX_VISITS = 10_000  # of one container: those that hold each other many times would never end
UNNAMED = "'torch.storage.UntypedStorage' has no attribute 'dtype'"  # torch 2.6-2.13 of float8 before 1.6


def read(path: Path) -> Content:
    """All tensors of a checkpoint, however nested, and the top-level values that are none.

    Raises:
        InputError: torch is missing, the file is damaged, or it holds more than tensors and plain containers.
    """
    torch = import_torch(f"reading {path}")
    try:
        zipped = zipfile.is_zipfile(path)
        tree = _load(torch, path, zipped)
        records = _records(path) if zipped else {}
    except UNREADABLE as error:
        raise InputError(_refusal(path, error)) from None
    leaves = list(flatten(tree, str(path)))
    tensors, values = {}, {}
    for keys, leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            where = f"{path}: {shown('.'.join(map(str, keys))) or 'the file'}"
            tensors[keys or ("tensor",)] = _tensor(torch, leaf, path, records, where)
        elif keys:
            values[str(keys[0])] = tree[keys[0]]
    if zipped:
        return Content("PyTorch", [path], tensors, values)
    note = f"{path.name} is in PyTorch's format before 1.6, which is read into memory as a whole"
    return Content("PyTorch before 1.6", [path], tensors, values, notes=[note])


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """`torch.save` of a dictionary of tensors, from a nameless file beside `path`: at most one tensor is in
    memory. There is no place for metadata.
    """
    torch = import_torch(f"writing {path}")
    with tempfile.TemporaryFile(dir=path.parent) as spool:
        offsets = {}
        for name, tensor in tensors.items():
            offsets[name] = spool.seek(-spool.tell() % ALIGNMENT, 1)
            for piece in tensor.pieces():
                spool.write(piece)
        spool.write(bytes(ALIGNMENT))  # no empty file: it could not be mapped
        spool.flush()
        mapped = mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ)
        with open(path, "wb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "the given buffer is not writable": nobody writes
            sink = _Sink(file.write, mapped)
            try:
                torch.save({n: _mapped(torch, t, mapped, offsets[n]) for n, t in tensors.items()}, sink)
            except RuntimeError as error:
                raise sink.error or error from None


def import_torch(purpose: str) -> Any:
    """The torch package.

    Raises:
        InputError: it is not installed, or too old to tell where in a file a tensor lies.
    """
    try:
        torch = importlib.import_module("torch")
        importlib.import_module("torch._subclasses.fake_tensor")
    except ModuleNotFoundError as error:
        raise InputError(
            f"{purpose}: package {error.name} is not installed, and PyTorch's format needs torch; "
            "pip install -r requirements-pt.txt, or convert where torch is "
            "(safetensors and MindSpore's .ckpt need no framework)"
        ) from None
    if tuple(int(number) for number in torch.__version__.split(".")[:2]) < (2, 6):
        raise InputError(f"{purpose}: torch {torch.__version__} is too old; install torch 2.6 or newer")
    return torch


class _Sink:
    """What torch.save writes to: forgets the mapped pages it has seen, and remembers why a write failed."""

    def __init__(self, write: Callable[[Any], int], mapped: mmap.mmap) -> None:
        self._write, self._mapped = write, mapped
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        try:
            written = self._write(data)
        except BaseException as error:  # torch hides it behind an error of its own when it closes the archive
            self.error = self.error or error
            raise
        if hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)
        return written

    def flush(self) -> None:
        pass


def _mapped(torch: Any, tensor: Tensor, mapped: mmap.mmap, offset: int) -> Any:
    dtype = getattr(torch, tensor.dtype.name)
    if not tensor.nbytes:
        return torch.empty(tensor.shape, dtype=dtype)
    count = tensor.nbytes // tensor.dtype.size
    return torch.frombuffer(mapped, dtype=dtype, count=count, offset=offset).reshape(tensor.shape)


def _load(torch: Any, path: Path, zipped: bool) -> Any:
    """The pickled structure. Tensors of a zip archive are fake: shapes, and offsets into the file."""
    if not zipped:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a damaged header; the error that follows says more
            return torch.load(path, map_location="cpu", weights_only=True)
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:
                raise InputError(f"{info.filename} is compressed")
            if info.filename.endswith("/byteorder") and archive.read(info) != b"little":
                raise InputError("it was saved on a big-endian machine")
    fake_tensor = importlib.import_module("torch._subclasses.fake_tensor")
    with fake_tensor.FakeTensorMode():
        return torch.load(path, map_location="cpu", weights_only=True)


def _records(path: Path) -> dict[int, int]:
    """Bytes of each stored record by where its content starts."""
    records = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for info in archive.infolist():
            file.seek(info.header_offset + 26)  # lengths of the name and the extra field
            name, extra = file.read(2), file.read(2)
            skip = int.from_bytes(name, "little") + int.from_bytes(extra, "little")
            records[info.header_offset + 30 + skip] = info.file_size
    return records


def flatten(tree: Any, where: str) -> Iterator[tuple[tuple[Hashable, ...], Any]]:
    """Everything in nested dictionaries and lists that is neither, with the keys that lead there.

    Raises:
        InputError: they hold themselves, or each other so often that listing them would not end.
    """
    return _flattened(tree, (), where, Counter())


def _flattened(
    tree: Any, keys: tuple[Hashable, ...], where: str, visits: Counter[int]
) -> Iterator[tuple[tuple[Hashable, ...], Any]]:
    if not isinstance(tree, Mapping | list | tuple):
        yield keys, tree
        return
    visits[id(tree)] += len(tree) > 0
    if len(keys) > MAX_DEPTH or visits[id(tree)] > MAX_VISITS:
        raise InputError(
            f"{where}: its dictionaries are nested more than {MAX_DEPTH} deep, or hold themselves; "
            "save the state_dict alone, where it was made"
        )
    for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
        yield from _flattened(value, (*keys, key), where, visits)


def _tensor(torch: Any, tensor: Any, path: Path, records: dict[int, int], where: str) -> Tensor:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        raise InputError(
            f"{where} is sparse, quantized or lazily negated; wanted a plain tensor: save it as one"
        )
    dtype = find_dtype(str(tensor.dtype).removeprefix("torch."), "name", where)
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    check_shape(shape, where)
    if not records:
        return ArrayTensor(dtype, shape, _array(torch, tensor, dtype))
    offset = tensor.untyped_storage()._checkpoint_offset  # documented in torch's serialization notes
    start = tensor.storage_offset() * dtype.size
    extent = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    length = extent * dtype.size if 0 not in shape else 0
    if start + length > records.get(offset, -1):
        raise InputError(
            f"{where}: wants {start + length} bytes at {offset}, there are {records.get(offset, 'none')}; "
            "the file is damaged or made by another program: save it anew"
        )
    if tensor.is_contiguous():
        return FileTensor(dtype, shape, path, ((offset + start, length),))
    return StridedTensor(dtype, shape, path, ((offset + start, length),), strides)


def _array(torch: Any, tensor: Any, dtype: DType) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    return tensor.view(torch.uint16).numpy() if dtype.name == "bfloat16" else tensor.numpy()


def _refusal(path: Path, error: BaseException) -> str:
    reason = str(error)
    if UNNAMED in reason:
        return (
            f"{path}: holds tensors of an element type that PyTorch's format before 1.6 cannot name, as "
            "float8; cast them before they are saved"
        )
    for mark in ("unsupported GLOBAL ", "Unsupported global: GLOBAL ", "unsupported class "):
        if mark in reason:
            what = [*reason.split(mark)[1].split(), "a name"][0]
            return (
                f"{path}: refused, because loading it would run {what}; wanted tensors, numbers, strings and "
                "plain containers only (weights_only): save the state_dict alone, where it was made"
            )
    first = reason.split("\n\n\n")[-1].strip().splitlines() or [type(error).__name__]
    return (
        f"{path}: not a whole PyTorch checkpoint of plain tensors ({first[0].rstrip('.')[:200]}); "
        "copy it again, or save the state_dict anew with torch.save"
    )
