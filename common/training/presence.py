"""A rank that is killed leaves the others waiting for it, perhaps for many minutes. Here they notice.

Each rank holds a lock on a file of its own in the output folder, which the system takes away with the
process. The others look every few seconds; a file that nobody holds is a rank that died.
"""

import fcntl
import os
import socket
import sys
import threading
from pathlib import Path
from types import TracebackType

from .ranks import Ranks

EXIT_CODE = 1


class Presence:
    """Inside, this rank is present, and the job ends when another is not; it names the rank.

    Args:
        folder: that all ranks see; its file system must know flock, as local disks, NFS 4 and Lustre do.
        every: seconds between two looks.
    """

    def __init__(self, folder: str | Path, ranks: Ranks, every: float = 3.0) -> None:
        self.folder, self.ranks, self.every = Path(folder) / "ranks", ranks, every
        self._over = threading.Event()
        self._own = -1

    def __enter__(self) -> "Presence":
        if self.ranks.size > 1 and not self.ranks.any(not self._lock()):  # here all have theirs
            threading.Thread(target=self._watch, daemon=True, name="presence").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._own >= 0:
            self._path(self.ranks.rank).unlink(missing_ok=True)  # leaving is not dying
            os.close(self._own)

    def _lock(self) -> bool:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._own = os.open(self._path(self.ranks.rank), os.O_RDWR | os.O_CREAT)
            fcntl.flock(self._own, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._own, 0)
            os.write(self._own, f"pid {os.getpid()} on {socket.gethostname()}".encode())
        except OSError as error:
            print(f"warning: {self.folder}: {error}; a rank that dies will not be noticed", file=sys.stderr)
            return False
        return True

    def _watch(self) -> None:
        while not self._over.wait(self.every):
            for rank in range(self.ranks.size):
                if rank != self.ranks.rank and self._died(rank):
                    self._end(rank)

    def _died(self, rank: int) -> bool:
        """Whether its file is there and nobody holds it."""
        try:
            file = os.open(self._path(rank), os.O_RDWR)
        except OSError:
            return False  # it left
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self._path(rank).exists()
        except OSError:
            return False  # it is present
        finally:
            os.close(file)

    def _end(self, rank: int) -> None:
        try:
            who = self._path(rank).read_text()
        except OSError:
            return
        print(
            f"error: rank {rank} died ({who}), so rank {self.ranks.rank} stops; look at its log and at the "
            "system's (out of memory?), then run the same command again: it goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_CODE)  # the main thread waits inside a collective, where nothing else reaches it

    def _path(self, rank: int) -> Path:
        return self.folder / f"rank-{rank:05d}"
