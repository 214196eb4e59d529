"""A rank that dies or stops leaves the others waiting for it, perhaps for many minutes. Here they notice.

Each rank holds a lock on a file of its own in the output folder, which the system takes away with the
process. Beside each rank a small process looks every few seconds; a file that nobody holds is a rank that
died. (Not a thread: a graph that waits in a collective lets no other Python code run.) The same locks keep a
second run out of the folder.
"""

import contextlib
import errno
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from common.errors import InputError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

from .ranks import Ranks, together

GRACE = 1.0  # seconds in which all that die of one cause do so
LOOK = (
    "look at its log and at the system's (out of memory?), then run the same command again: it goes on "
    "from the last checkpoint"
)


class Presence:
    """Inside, this rank is present, and the job ends when another is not; it names the rank.

    Args:
        folder: that all ranks see; its file system must know flock, as local disks, NFS 4 and Lustre do.
        every: seconds between two looks.

    Raises:
        InputError: another run is at work in the folder.
    """

    def __init__(self, folder: str | Path, ranks: Ranks, every: float = 3.0) -> None:
        self.folder, self.ranks, self.every = Path(folder) / "ranks", ranks, every
        self._own = -1
        self._watcher: subprocess.Popen | None = None

    def __enter__(self) -> "Presence":
        try:
            together(self.ranks, self._lock)
            all_have_theirs = not self.ranks.any(self._own < 0)
        except BaseException as error:
            self.__exit__(None, error, None)  # nothing has begun
            raise
        if self.ranks.size > 1 and all_have_theirs:
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
        if self._own < 0:
            return
        gone = error is not None and self.ranks.lost(error)
        if kind is None:
            path_of(self.folder, self.ranks.rank).unlink(missing_ok=True)  # leaving is not dying
        else:
            reason = "another rank is gone" if gone else (str(error) or kind.__name__).splitlines()[0]
            os.write(self._own, f", stopped at {time.time_ns()}: {reason}".encode())
        os.close(self._own)
        self._own = -1
        if gone:
            _end_undisturbed()
            raise ConnectionAbortedError(self._who_is_gone()) from None

    def _who_is_gone(self) -> str:
        """What to say of the rank whose end a collective noticed before the process beside this one did."""
        others = [path_of(self.folder, rank) for rank in range(self.ranks.size) if rank != self.ranks.rank]
        deadline = time.monotonic() + GRACE
        while not any(map(died, others)) and time.monotonic() < deadline:
            time.sleep(GRACE / 20)
        dead = [path for path in others if died(path)]
        if not dead:
            return f"rank {self.ranks.rank}: the connection to another rank broke; {LOOK}"
        return fate_of(min(dead, key=time_of_death), self.ranks.rank)

    def _lock(self) -> None:
        """Take this rank's file; without locks in this file system it stays without one, and says so."""
        path = path_of(self.folder, self.ranks.rank)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while self._own < 0:
                self._own = locked(path)
            os.ftruncate(self._own, 0)
            os.write(self._own, f"pid {os.getpid()} on {socket.gethostname()}".encode())
        except BlockingIOError:
            raise InputError(
                f"{self.folder.parent}: got an output folder in which another run is at work "
                f"({path.read_text()}); wait for its end, stop it, or set another output"
            ) from None
        except OSError as error:
            print(
                f"warning: {self.folder}: {error}; neither a rank that dies nor a second run in this folder "
                "will be noticed",
                file=sys.stderr,
            )


def _end_undisturbed() -> None:
    """Ignore SIGTERM: a launcher that noticed the same sends it, and this rank ends anyway."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def watch(folder: str, own: int, size: int, every: float, process: int) -> None:
    """The life of the process beside a rank: it tells of its death, or ends it when another one died."""
    own_path, alive = path_of(Path(folder), own), os.pidfd_open(process)
    others = [path_of(Path(folder), rank) for rank in range(size) if rank != own]
    while not select.select([alive], [], [], every)[0]:
        if any(map(died, others)):
            break
    now = time.time_ns()
    if not own_path.exists() or "stopped at " in own_path.read_text():
        return  # it left, or said itself why it ends
    if died(own_path):
        with open(own_path, "a") as file:
            file.write(f", died at {now}")
    time.sleep(GRACE)  # until others have written the same
    first = min((path for path in (own_path, *others) if died(path)), key=time_of_death)
    print(f"error: {fate_of(first, own)}", file=sys.stderr, flush=True)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)  # inside a collective nothing else reaches it


def fate_of(path: Path, own: int) -> str:
    """What became of the rank whose file this is, for the user of rank `own`."""
    about = path.read_text()
    fate = "stopped" if "stopped at " in about else "died"
    return f"rank {int(path.name.removeprefix('rank-'))} {fate} ({about}), so rank {own} ends too; {LOOK}"


def time_of_death(path: Path) -> int:
    """As the rank, or the process beside it, wrote it; late where that ended the rank and wrote nothing."""
    at = re.search(r", (?:died|stopped) at (\d+)", path.read_text())
    return int(at[1]) if at else sys.maxsize


def locked(path: Path) -> int:
    """A descriptor that holds the file's lock; -1 if the file was taken away meanwhile.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the system or this file system has no locks, or cannot be written.
    """
    if fcntl is None:
        raise OSError(errno.ENOSYS, "this system has no flock")
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            return file
    except BaseException:
        os.close(file)
        raise
    os.close(file)
    return -1


def died(path: Path) -> bool:
    """Whether a rank's file is there and nobody holds it."""
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        return False  # it left
    assert fcntl is not None  # who watches holds a lock
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
