"""How a rank ends: in order after success and an agreed stop, at once after anything else."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RANK = """
import sys
from common.errors import InputError
from common.parallel import AgreedStop, meeting

class Rank:
    rank, size = 0, int(sys.argv[2])
    def lost(self, error):
        return "peer" in str(error)
    def leave(self):
        print("left", flush=True)

class Shutdown:
    def __del__(self):  # as the threads of a group do
        print("shut down", flush=True)

kept = Shutdown()
with meeting(Rank()):
    exec(sys.argv[1])
"""


def end(body, size=2):
    """Exit code and output of a rank that does this."""
    line = [sys.executable, "-c", RANK, body, str(size)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout.split("\n")[:-1], done.stderr


@pytest.mark.parametrize(("body", "code"), [("pass", 0), ("raise AgreedStop(143)", 143)])
def test_success_and_an_agreed_stop_leave_in_order(body, code):
    assert end(body)[:2] == (code, ["left", "shut down"])


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("raise SystemExit(130)", 130),  # a second signal: the others are in a collective
        ("raise KeyboardInterrupt", 130),
        ("raise InputError('x')", 2),
        ("raise ZeroDivisionError", 1),
    ],
)
def test_anything_else_ends_at_once_without_waiting_for_others(body, code):
    assert end(body)[:2] == (code, [])


def test_a_rank_that_is_gone_is_said_in_one_line():
    code, printed, said = end("raise RuntimeError('closed by peer\\nmore')")
    assert (code, printed) == (1, [])
    assert "ConnectionAbortedError: rank 0: another rank is gone (closed by peer), so this one ends" in said
    assert "more" not in said


def test_one_rank_alone_keeps_its_ordinary_end():
    assert end("raise InputError('x')", size=1)[:2] == (1, ["shut down"])
