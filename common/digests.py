"""SHA-256 of files, kept with their size and time of change, so that large ones are read once."""

import hashlib
import json
import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from .errors import InputError
from .files import read_json, whole_file

LARGE = 2**26  # bytes from which a digest is also kept between runs


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    state = path.stat()
    return _digest(path.resolve(), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=1024)
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    known = _kept() if size >= LARGE else {}
    entry = known.get(str(path))
    if entry is not None and entry[:2] == [size, mtime_ns]:
        return entry[2]
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if size >= LARGE:
        _keep({**_kept(), str(path): [size, mtime_ns, found]})
    return found


def cache_file() -> Path:
    """Where digests of large files are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "open-sora-plan-twins", "sha256.json")


def _kept() -> dict[str, list]:
    """Digests of earlier runs; a file that is damaged counts as none, since it only saves time."""
    with suppress(InputError):
        content = read_json(cache_file())
        if isinstance(content, dict):
            return content
    return {}


def _keep(known: dict[str, list]) -> None:
    """Write the digests down; a home that cannot be written costs time in the next run."""
    with suppress(InputError, OSError):
        cache_file().parent.mkdir(parents=True, exist_ok=True)
        with whole_file(cache_file()) as temporary:
            temporary.write_text(json.dumps(known))
