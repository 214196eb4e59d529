"""What every command line shares: arguments, one-line errors, and the report written beside each output."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .config import Config, T, load
from .errors import InputError
from .files import write_json


def main(config_class: type[T], run: Callable[[T], None], usage: str) -> None:
    """Load `CONFIG [key=value ...]` from the command line and run; a user's mistake is one line and exit code
    2.
    """
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage.strip(), file=sys.stderr if not arguments else sys.stdout)
        sys.exit(0 if arguments else 2)
    try:
        run(load(config_class, arguments[0], arguments[1:]))
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; outputs that are complete are kept", file=sys.stderr)
        sys.exit(130)


class Stopwatch:
    """Seconds per named stage, added up over repetitions."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)


def write_report(path: Path, config: Config, **facts: object) -> None:
    """The JSON beside an output: the resolved config, the commit, and what the run has to tell."""
    write_json(path, {"config": json.loads(config.model_dump_json()), "commit": commit(), **facts})


def commit() -> str:
    """The commit of this checkout, "-dirty" if files changed since; "unknown" outside a checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return described.stdout.strip() or "unknown"


def prepare_folder(folder: str) -> Path:
    """Create an output folder before the expensive part.

    Raises:
        InputError: it cannot be created or written to.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:  # no name, so ranks do not meet
            probe.write(b"\0" * 4096)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"output {folder}: {reason}; wanted a folder to write to: set output=FOLDER"
        ) from None
    return path
