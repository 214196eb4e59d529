"""Starting trainings as a user does: one process or several ranks, killed or left alone."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import yaml

from common.checkpoint import StoredWeights
from common.training.checkpoint import checkpoints, open_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def command(tree, module, config, *overrides, ranks=1, logs=None):
    """The command line that trains, through the tree's own launcher when there are several ranks."""
    return launch(tree, ["-m", f"{tree}.{module}", str(config), *overrides], ranks, logs)


def launch(tree, arguments, ranks, logs):
    """The command line that runs Python with these arguments on each rank."""
    if ranks == 1:
        return [sys.executable, *arguments]
    if tree == "pt":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        return [*torchrun, "--nproc-per-node", str(ranks), *arguments]
    msrun = [str(Path(sys.executable).with_name("msrun")), "--worker_num", str(ranks)]
    msrun += ["--local_worker_num", str(ranks), "--master_port", str(free_port())]
    return [*msrun, "--join", "True", "--log_dir", str(logs), "python", *arguments]


def start(line, **popen):
    """Run it in the background; Python is the one of the tests, on one thread."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **popen
    )


def run(line, code=0, timeout=900):
    """Run it to its end and return what it printed; fails unless it exits with `code`."""
    process = start(line, start_new_session=True)
    try:
        printed, _ = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, f"exit code {process.returncode}\n{printed[-6000:]}"
    return printed


def stop_when(ready, line, number, timeout=900):
    """Run it until `ready()` is true, send it a signal, and return its exit code."""
    process = start(line, start_new_session=True)
    deadline = time.monotonic() + timeout
    try:
        while not ready() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()[0][-6000:]
        process.send_signal(number)
        process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode


def logged(output, steps):
    """Whether so many steps are logged, as a function to wait with."""
    return lambda: len(losses(output)) >= steps


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_config(path, settings):
    path.write_text(yaml.safe_dump(settings))
    return path


def losses(output):
    """The rows of losses.jsonl, without one that is being written."""
    file = Path(output) / "losses.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def final_state(output):
    """Everything the newest checkpoint holds."""
    newest = open_checkpoint(checkpoints(output)[-1])
    return {name: array for name, array in newest.state().items()}


def model_weights(output):
    """The model inside the newest checkpoint."""
    return dict(StoredWeights(open_checkpoint(checkpoints(output)[-1]).model))


def as_vector(state, kind):
    """All tensors of a kind in one vector, by name."""
    return np.concatenate([state[name].ravel().astype(np.float64) for name in sorted(state) if kind in name])
