"""The kinds of files, by suffix and by their first bytes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError
from common.files import LFS_HINT, is_lfs_pointer, start_of

from . import mindspore_file, numpy_file, pytorch_file, safetensors_file
from .tensors import Content, Tensor

PYTORCH_PROTOCOL = b"\x02"  # of the pickles that PyTorch wrote before 1.6; other programs write newer ones


@dataclass(frozen=True)
class Format:
    """One kind of file: how to read and write it, and the suffixes that ask for it as a destination."""

    name: str
    suffixes: tuple[str, ...]
    folder_suffix: str  # inside a model directory
    read: Callable[[Path], Content]
    write: Callable[[Path, Mapping[str, Tensor], Mapping[str, str]], None]


FORMATS = {
    format_.name: format_
    for format_ in (
        Format(
            "safetensors", (".safetensors",), ".safetensors", safetensors_file.read, safetensors_file.write
        ),
        Format("ckpt", (".ckpt",), ".ckpt", mindspore_file.read, mindspore_file.write),
        Format("pt", (".pt", ".pth", ".bin"), ".bin", pytorch_file.read, pytorch_file.write),
    )
}
READ_ONLY = (".pkl", ".pickle")
SUFFIXES = tuple(suffix for format_ in FORMATS.values() for suffix in format_.suffixes)


def reader_of(path: Path) -> Callable[[Path], Content]:
    """What reads an existing file: the reader of its format, or the one for pickles of NumPy arrays.

    Raises:
        InputError: an unknown suffix, a content that belongs to another one, or a Git LFS pointer.
    """
    if is_lfs_pointer(start_of(path)):
        raise InputError(f"source {path}: wanted weights, got {LFS_HINT}")
    if path.suffix in (*FORMATS["pt"].suffixes, ".ckpt", *READ_ONLY):
        start = start_of(path, 2)
        if path.suffix in READ_ONLY or (start[:1] == b"\x80" and start[1:] > PYTORCH_PROTOCOL):
            return numpy_file.read
    return format_of(path).read


def format_of(path: Path) -> Format:
    """The format of an existing file. A .ckpt may be PyTorch's or MindSpore's: its first bytes tell.

    Raises:
        InputError: an unknown suffix, or a content that belongs to another one.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"source {path}: got the suffix {path.suffix or '(none)'!r}, wanted {', '.join(SUFFIXES)}, "
            "or a folder that holds such files"
        )
    if path.suffix == ".safetensors":
        return FORMATS["safetensors"]
    start = start_of(path, 4)
    if start == b"PK\x03\x04" or start[:1] == b"\x80":  # a zip archive, or a pickle
        return FORMATS["pt"]
    if start[:1] == b"\x0a" and path.suffix == ".ckpt":
        return FORMATS["ckpt"]
    raise InputError(
        f"source {path}: begins with {start!r}, which is neither PyTorch's (a zip archive or a pickle) nor "
        "MindSpore's; it is empty, cut off, encrypted or of another kind: copy it again"
    )
