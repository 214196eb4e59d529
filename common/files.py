"""Writing a file so that it is whole or absent."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`: it becomes `path` if the block succeeds and is removed if it fails.

    The content is on the disk before the name is, so a crash leaves the old file or the new one.

    Raises:
        ValueError: the folder is missing or not writable, or the disk is full; names `path` and the reason.
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
        raise ValueError(
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
        ValueError: as whole_file.
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
