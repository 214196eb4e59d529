"""Small files: written whole or not at all, read with errors that name file and place."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from .errors import InputError

LFS_HINT = "a Git LFS pointer in its place: fetch the file itself with `git lfs pull`"


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`: it becomes `path` if the block succeeds and is removed if it fails.

    The content is on the disk before the name is, so a crash leaves the old file or the new one.

    Raises:
        InputError: the folder is missing or not writable, or the disk is full; names `path` and the reason.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid4().hex}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        os.chmod(temporary, mode)  # safetensors writes files that nobody else may read
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"writing {path}: got {reason!r}, wanted a new file; "
            f"check that {path.parent} exists, may be written and has space left"
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_safetensors(
    path: str | Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Write arrays and string metadata, whole or not at all.

    Raises:
        InputError: as whole_file.
    """
    with whole_file(path) as temporary:
        try:
            save_file({name: np.asarray(a, order="C") for name, a in arrays.items()}, temporary, metadata)
        except SafetensorError as error:  # its own type for what is an OSError: no space, no permission
            raise OSError(str(error)) from error


def write_json(path: str | Path, content: object) -> None:
    """Write JSON, indented, whole or not at all."""
    with whole_file(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # file names may be no UTF-8


def read_json(path: str | Path, wanted: str = "a JSON file") -> Any:
    """What a JSON file holds.

    Raises:
        InputError: it is missing, cannot be read, or is not JSON.
    """
    try:
        return parse_json(Path(path).read_bytes(), str(path), wanted)
    except OSError as error:
        raise InputError(f"{path}: got {error.strerror or error}, wanted {wanted}; check the path") from None


def parse_json(text: str | bytes, where: str, wanted: str = "JSON") -> Any:
    """What a JSON text says; `where` opens the message.

    Raises:
        InputError: it is not JSON: a Git LFS pointer is called one.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also for bytes that are no text, and for endless numbers
        start = text if isinstance(text, bytes) else text.encode(errors="replace")
        got = LFS_HINT if is_lfs_pointer(start) else f"{error}; write or download it again"
        raise InputError(f"{where}: wanted {wanted}, got {got}") from None


def start_of(path: str | Path, num_bytes: int = 64) -> bytes:
    """The first bytes of a file."""
    with open(path, "rb") as file:
        return file.read(num_bytes)


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file begins like the text that a clone without Git LFS leaves in place of a large file."""
    return start.startswith(b"version https://git-lfs.github.com/spec")


def read_lines(path: str | Path, what: str, wanted: str) -> list[tuple[int, str]]:
    """The lines of a UTF-8 text that are not blank, stripped, each with its number from 1.

    Lines end at LF or CRLF only: other characters that Unicode counts as line breaks (U+2028, U+0085, VT, FF,
    FS) may stand in a prompt. A byte order mark is passed over.

    Args:
        what: opens a message, before the path.
        wanted: a line of the file, in words.

    Raises:
        InputError: no such file, not UTF-8, or no line.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{what} {path}: got no such file, wanted {wanted}; check the path")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {path}: got {error}, wanted {wanted}; save it again as UTF-8") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"{what} {path}: got only blank lines, wanted {wanted}; add one")
    return lines


def listed_path(line: str, listing: str | Path) -> Path:
    """The path that a line of a list means: a relative one begins at the folder of the list itself."""
    return Path(listing).parent / line
