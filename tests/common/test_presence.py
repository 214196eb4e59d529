"""A rank that dies or stops is named and ends the others; one that leaves does not. One run to a folder."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.training.presence import Presence, died, path_of
from common.training.ranks import ONE_RANK

ROOT = Path(__file__).resolve().parents[2]
RANK = """
import sys, time
from typing import NamedTuple
from common.training.presence import Presence

class Two(NamedTuple):
    rank: int
    size: int = 2
    def any(self, flag):
        time.sleep(1)  # the other one locks meanwhile
        return flag
    def lost(self, error):
        return "peer" in str(error)

with Presence(sys.argv[1], Two(int(sys.argv[2])), every=0.1):
    print("here", flush=True)
    time.sleep(float(sys.argv[3]))
    if sys.argv[4:]:
        raise RuntimeError(sys.argv[4])
"""


def start(folder, rank, seconds, *error):
    line = [sys.executable, "-c", RANK, str(folder), str(rank), str(seconds), *error]
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_rank_that_dies_is_named_and_ends_the_others(tmp_path):
    left, dead = start(tmp_path, 0, 60), start(tmp_path, 1, 60)
    assert left.stdout.readline() == dead.stdout.readline() == "here\n"
    time.sleep(0.5)
    assert left.poll() is None
    os.kill(dead.pid, signal.SIGKILL)
    _, said = left.communicate(timeout=10)
    assert left.returncode == -signal.SIGKILL
    assert f"rank 1 died (pid {dead.pid} on" in said
    dead.communicate()


def test_a_rank_that_stops_is_named_with_its_reason_and_ends_the_others(tmp_path):
    left, stops = start(tmp_path, 0, 60), start(tmp_path, 1, 0.5, "a worker died\nits trace")
    _, said = left.communicate(timeout=10)
    assert left.returncode == -signal.SIGKILL
    assert f"rank 1 stopped (pid {stops.pid} on" in said
    assert ": a worker died), so rank 0 ends too" in said
    stops.communicate()


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    with Presence(tmp_path, ONE_RANK):
        with pytest.raises(
            ValueError, match=rf"another run is at work \(pid {os.getpid()} on .*another output"
        ):
            Presence(tmp_path, ONE_RANK).__enter__()
        assert died(path_of(tmp_path / "ranks", 0)) is False  # the first one's lock is untouched
    with Presence(tmp_path, ONE_RANK):
        pass


def test_a_folder_without_locks_is_a_warning(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with Presence(tmp_path, ONE_RANK):
        assert "No locks available; neither a rank that dies nor a second run" in capsys.readouterr().err


def test_a_system_without_locks_is_a_warning_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("common.training.presence.fcntl", None)  # Windows has no such module
    with Presence(tmp_path, ONE_RANK):
        assert "this system has no flock; neither a rank that dies nor" in capsys.readouterr().err


def test_a_rank_that_leaves_is_not_missed(tmp_path):
    stays, leaves = start(tmp_path, 0, 2), start(tmp_path, 1, 0)
    _, said = stays.communicate(timeout=10)
    assert (leaves.wait(), stays.returncode, said) == (0, 0, "")
    assert not list((tmp_path / "ranks").iterdir())
    leaves.communicate()


def test_a_collective_that_breaks_names_the_rank_that_died_at_once(tmp_path):
    """Before the process beside it looks, and in one line, whatever signal the launcher sends meanwhile."""
    left, dead = start(tmp_path, 0, 1.5, "[pair.cc:544] Connection closed by peer"), start(tmp_path, 1, 60)
    assert left.stdout.readline() == dead.stdout.readline() == "here\n"
    path_of(tmp_path / "ranks", 0)
    os.kill(dead.pid, signal.SIGKILL)
    dead.communicate()
    _, said = left.communicate(timeout=10)
    assert f"ConnectionAbortedError: rank 1 died (pid {dead.pid} on" in said or "error: rank 1 died" in said
    assert "pair.cc" not in said


def test_an_own_error_is_not_said_twice(tmp_path):
    alone = start(tmp_path, 0, 0.3, "no space left")
    other = start(tmp_path, 1, 60)
    _, said = alone.communicate(timeout=10)
    time.sleep(2)
    assert said.count("no space left") == 1
    assert "rank 0 stopped" not in said
    other.kill()
    other.communicate()
