"""A rank that is killed leaves the others waiting for it, perhaps for many minutes. Here they notice.

Each rank holds a lock on a file of its own in the output folder, which the system takes away with the
process. Beside each rank a small process looks every few seconds; a file that nobody holds is a rank that
died. (Not a thread: a graph that waits in a collective lets no other Python code run.)
"""

import contextlib
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from .ranks import Ranks

GRACE = 1.0  # seconds in which all that die of one cause do so


class Presence:
    """Inside, this rank is present, and the job ends when another is not; it names the rank.

    Args:
        folder: that all ranks see; its file system must know flock, as local disks, NFS 4 and Lustre do.
        every: seconds between two looks.
    """

    def __init__(self, folder: str | Path, ranks: Ranks, every: float = 3.0) -> None:
        self.folder, self.ranks, self.every = Path(folder) / "ranks", ranks, every
        self._own = -1
        self._watcher: subprocess.Popen | None = None

    def __enter__(self) -> "Presence":
        if self.ranks.size > 1 and not self.ranks.any(not self._lock()):  # here all have theirs
            arguments = (str(self.folder), self.ranks.rank, self.ranks.size, self.every, os.getpid())
            self._watcher = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import watch; watch{arguments}"],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C goes to the rank alone, which ends its watcher
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.wait()
        if self._own >= 0:
            path_of(self.folder, self.ranks.rank).unlink(missing_ok=True)  # leaving is not dying
            os.close(self._own)

    def _lock(self) -> bool:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._own = os.open(path_of(self.folder, self.ranks.rank), os.O_RDWR | os.O_CREAT)
            fcntl.flock(self._own, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._own, 0)
            os.write(self._own, f"pid {os.getpid()} on {socket.gethostname()}".encode())
        except OSError as error:
            print(f"warning: {self.folder}: {error}; a rank that dies will not be noticed", file=sys.stderr)
            return False
        return True


def watch(folder: str, own: int, size: int, every: float, process: int) -> None:
    """The life of the process beside a rank: it tells of its death, or ends it when another one died."""
    own_path, alive = path_of(Path(folder), own), os.pidfd_open(process)
    others = [path_of(Path(folder), rank) for rank in range(size) if rank != own]
    while not select.select([alive], [], [], every)[0]:
        if any(map(died, others)):
            break
    now = time.time_ns()
    if not own_path.exists():
        return  # it left
    if died(own_path):
        with open(own_path, "a") as file:
            file.write(f", died at {now}")
    time.sleep(GRACE)  # until others have written the same
    first = min((path for path in (own_path, *others) if died(path)), key=time_of_death)
    print(
        f"error: rank {int(first.name.removeprefix('rank-'))} died ({first.read_text()}), so rank {own} ends "
        "too; look at its log and at the system's (out of memory?), then run the same command again: it "
        "goes on from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)  # inside a collective nothing else reaches it


def time_of_death(path: Path) -> int:
    """As the process beside a rank wrote it; late where it did not, having ended the rank itself."""
    _, _, time_ns = path.read_text().partition("died at ")
    return int(time_ns or sys.maxsize)


def died(path: Path) -> bool:
    """Whether a rank's file is there and nobody holds it."""
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        return False  # it left
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return path.exists()
    except OSError:
        return False  # it is present
    finally:
        os.close(file)


def path_of(folder: Path, rank: int) -> Path:
    """The file that a rank holds."""
    return folder / f"rank-{rank:05d}"
