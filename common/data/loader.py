"""Batches read ahead of time, in order, by worker processes: the batch of a step is always the same.

`plan` says which items make up the batch of a step, `read` turns one item into a sample. Both must be pure
functions: nothing depends on how many workers there are, on which finishes first, or on where a run resumes.

A worker is a fresh interpreter that imports only what `read` needs: no fork of a process that holds a device,
and no second start of the program, which would import its framework once more per worker.
"""

import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import cv2

from common.errors import InputError

Item = TypeVar("Item")
Sample = TypeVar("Sample")


class Loader(Generic[Item, Sample]):
    """An ordered, prefetching map of `read` over the items that `plan` names for each step.

    `read` is pickled once per worker, so it is a module's function or an instance of a module's class, and
    that module is not `__main__`. Items and samples are pickled too: keep samples small (uint8).
    With 0 workers a thread of this process reads.
    """

    def __init__(
        self,
        plan: Callable[[int], Sequence[Item]],
        read: Callable[[Item], Sample],
        workers: int = 0,
        prefetch: int = 2,
    ):
        if workers < 0 or prefetch < 0:
            raise InputError(f"loader: got workers={workers}, prefetch={prefetch}; wanted neither below 0")
        self.plan, self.read = plan, read
        self.workers, self.prefetch = workers, prefetch

    def batches(self, start_step: int, stop_step: int | None = None) -> Generator[tuple[int, list[Sample]]]:
        """(step, samples) for each step from `start_step` up to, not including, `stop_step`; None: endlessly.

        While the caller works on one batch, the next `prefetch` are read. Workers end with the iterator.

        Raises:
            ChildProcessError: a worker died, killed or out of memory.
            Exception: whatever `read` raised, in its place in the order.
        """
        steps = count(start_step) if stop_step is None else iter(range(start_step, stop_step))
        pending: deque[tuple[int, list[Future[Sample]]]] = deque()
        with ExitStack() as stack:
            submit = _threads(self.read, stack) if self.workers == 0 else self._processes(stack)
            while True:
                while len(pending) <= self.prefetch and (step := next(steps, None)) is not None:
                    pending.append((step, [submit(item) for item in self.plan(step)]))
                if not pending:
                    return
                step, futures = pending.popleft()
                yield step, [future.result() for future in futures]

    def _processes(self, stack: ExitStack) -> Callable[[Item], "Future[Sample]"]:
        """Each item goes to the worker idle for longest; one thread per worker waits for its answer."""
        pickled = pickle.dumps(self.read)
        idle: SimpleQueue[_Worker] = SimpleQueue()
        workers = []
        stack.callback(lambda: [worker.close() for worker in workers])
        for number in range(self.workers):
            workers.append(_Worker(number, pickled))
            idle.put(workers[-1])

        def ask(item: Item) -> Sample:
            worker = idle.get()
            try:
                return worker.ask(item)
            finally:
                idle.put(worker)

        submit = _threads(ask, stack, self.workers)
        stack.callback(lambda: [worker.process.kill() for worker in workers])  # wakes the waiting threads
        return submit


def _threads(
    function: Callable[[Item], Sample], stack: ExitStack, num_threads: int = 1
) -> Callable[[Item], "Future[Sample]"]:
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="loader")
    stack.callback(pool.shutdown)
    stack.callback(pool.shutdown, wait=False, cancel_futures=True)
    return lambda item: pool.submit(function, item)


class _Worker:
    """A child interpreter that answers one item at a time over a pipe, and ends when the pipe does."""

    def __init__(self, number: int, pickled_read: bytes):
        self.name = f"data worker {number}"
        self.connection, theirs = Pipe()
        fd = theirs.fileno()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import serve; serve({fd})"],
                env={
                    "OMP_NUM_THREADS": "1",  # the processes are the parallelism
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
                },
                pass_fds=[fd],
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C goes to the parent alone, which ends its workers
            )
        self.greeting = pickled_read

    def ask(self, item: Any) -> Any:
        """What `read` made of `item`, or raise what it raised."""
        try:
            if self.greeting:
                self.connection.send_bytes(self.greeting)
                self.greeting = b""
            self.connection.send(item)
            failed, answer = self.connection.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if failed:
            raise answer
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()

    def _died(self) -> ChildProcessError:
        code = self.process.wait()
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        hint = "memory may have run out: use fewer workers" if code == -signal.SIGKILL else "see its message"
        return ChildProcessError(
            f"{self.name} (pid {self.process.pid}): got {how} while reading, wanted a sample; {hint}"
        )


def serve(fd: int) -> None:
    """The life of a worker: receive `read`, then answer item after item until the parent goes away."""
    cv2.setNumThreads(1)
    with Connection(fd) as parent:
        try:
            pickled_read, read = parent.recv_bytes(), None
            while True:
                item = parent.recv()
                try:
                    read = read or pickle.loads(pickled_read)
                    answer = False, read(item)
                except Exception as error:
                    answer = True, _portable(error)
                parent.send(answer)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


def _portable(error: Exception) -> Exception:
    """The error with the worker's traceback noted, as something that survives pickling."""
    trace = "".join(traceback.format_exception(error))
    try:
        error = pickle.loads(pickle.dumps(error))
    except Exception:  # an exception class may refuse in any way; its message is kept
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"in a data worker:\n{trace}")
    return error
