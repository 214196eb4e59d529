"""A rank that dies is named and ends the others; one that leaves does not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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

with Presence(sys.argv[1], Two(int(sys.argv[2])), every=0.1):
    print("here", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def start(folder, rank, seconds):
    line = [sys.executable, "-c", RANK, str(folder), str(rank), str(seconds)]
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


def test_a_rank_that_leaves_is_not_missed(tmp_path):
    stays, leaves = start(tmp_path, 0, 2), start(tmp_path, 1, 0)
    _, said = stays.communicate(timeout=10)
    assert (leaves.wait(), stays.returncode, said) == (0, 0, "")
    assert not list((tmp_path / "ranks").iterdir())
    leaves.communicate()
