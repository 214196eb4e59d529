"""The batch of a step is the same for any number of workers; a worker's error or death ends the run."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from common.data.loader import Loader


def plan(step):
    return [3 * step, 3 * step + 1, 3 * step + 2]


def square(item):
    """Out of order, unless the loader takes care: earlier items take longer."""
    time.sleep(0.004 * (3 - item % 3))
    return item * item


def whose(item):
    return os.getpid(), "torch" in sys.modules, "mindspore" in sys.modules


def fail_at_7(item):
    if item == 7:
        raise ValueError(f"item {item}: got a bad one, wanted a good one")
    return item


class StubbornError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def fail_stubbornly(item):
    raise StubbornError("cannot", "unpickle")


def die_at_7(item):
    if item == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def collect(read, workers, start=0, stop=4, prefetch=2):
    return list(Loader(plan, read, workers, prefetch).batches(start, stop))


def ended(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rsplit(")", 1)[1].split()[0] == "Z"  # dead, and its parent has not asked yet


@pytest.mark.parametrize(("workers", "prefetch"), [(0, 2), (1, 0), (2, 3)])
def test_order_does_not_depend_on_workers(workers, prefetch):
    batches = collect(square, workers, prefetch=prefetch)
    assert batches == [(step, [item * item for item in plan(step)]) for step in range(4)]
    assert collect(square, workers, start=2, prefetch=prefetch) == batches[2:]


def test_no_steps_no_batches():
    assert collect(square, 0, start=5, stop=5) == []


def test_endless_until_closed():
    batches = Loader(plan, square).batches(1_000_000)
    assert next(batches)[0] == 1_000_000
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_reads_ahead_as_far_as_told(prefetch):
    read = []
    batches = Loader(plan, read.append, prefetch=prefetch).batches(0)
    next(batches)
    time.sleep(0.1)
    assert len(read) == 3 * (1 + prefetch)
    batches.close()


def test_workers_are_other_processes_without_a_framework_and_end_with_the_iterator():
    batches = Loader(plan, whose, workers=2).batches(0)
    seen = [answer for _, samples in (next(batches), next(batches)) for answer in samples]
    pids = {pid for pid, *_ in seen}
    assert os.getpid() not in pids
    assert not any(torch or mindspore for _, torch, mindspore in seen)
    batches.close()
    assert all(ended(pid) for pid in pids)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_in_its_place_with_its_type(workers):
    steps = []
    batches = Loader(plan, fail_at_7, workers).batches(0)
    with pytest.raises(ValueError, match="item 7: got a bad one") as caught:
        steps.extend(step for step, _ in batches)
    assert steps == [0, 1]
    if workers:
        assert "in fail_at_7" in caught.value.__notes__[0]


def test_an_error_that_cannot_travel_keeps_its_message():
    with pytest.raises(RuntimeError, match="StubbornError: cannot unpickle"):
        collect(fail_stubbornly, 1)


def test_a_killed_worker_is_an_error_and_not_a_hang():
    start = time.monotonic()
    with pytest.raises(ChildProcessError, match=r"data worker \d \(pid \d+\): got signal SIGKILL.*memory"):
        collect(die_at_7, 2)
    assert time.monotonic() - start < 10


def test_workers_end_when_the_parent_is_killed():
    """Nothing may be left behind that holds memory on a shared machine."""
    program = (
        "import sys\nfrom common.data.loader import Loader\n"
        "from tests.common.test_loader import plan, whose\n"
        "batches = Loader(plan, whose, workers=1).batches(0)\n"
        "print(next(batches)[1][0][0], flush=True)\nsys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while not ended(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ended(pid)


def test_interrupt_ends_the_workers():
    batches = Loader(plan, whose, workers=1).batches(0)
    pid = next(batches)[1][0][0]
    with pytest.raises(KeyboardInterrupt):
        batches.throw(KeyboardInterrupt)
    assert ended(pid)


def test_numbers_below_zero():
    with pytest.raises(ValueError, match="workers=-1"):
        Loader(plan, square, workers=-1)
