"""The lines for several nodes in docs/training.md; each node is a network of its own on one host."""

import os
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.conftest import TREES

from .test_train import settings
from .training import ROOT, losses, run, write_config
from .training import command as one_node

pytestmark = pytest.mark.slow
ADDRESSES, PORT = ("10.77.0.1", "10.77.0.2"), "8137"
CABLE = "cable"  # what each calls its end
OVERRIDES = ["loop.steps=2", "validation=null", "loop.validate_every=0"]


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def nodes():
    """Two network namespaces and a cable between them; what runs in one thinks it has a machine to itself."""
    tag = uuid.uuid4().hex[:6]
    names = [f"node0{tag}", f"node1{tag}"]
    try:
        if shutil.which("ip") is None:
            pytest.skip("needs the command ip (iproute2)")
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", f"a{tag}", "type", "veth", "peer", "name", f"b{tag}")
            for name, cable, address in zip(names, (f"a{tag}", f"b{tag}"), ADDRESSES, strict=True):
                ip("link", "set", cable, "netns", name)
                ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
                ip("-n", name, "link", "set", cable, "name", CABLE, "up")
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as refused:
            pytest.skip(f"may not make networks here: {refused.stderr.decode().strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def line(tree, node, arguments, logs):
    """The launcher's line on one of two nodes."""
    if tree == "pt":
        meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:{PORT}", "--rdzv-id", "run1"]
        # Both networks have the name of one host: torchrun cannot tell by it who is node 0.
        meet += ["--local-addr", ADDRESSES[node], "--rdzv-conf", f"is_host={1 - node}"]
        return [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", *meet, *arguments]
    msrun = [str(Path(sys.executable).with_name("msrun")), "--worker_num", "2", "--local_worker_num", "1"]
    msrun += ["--master_addr", ADDRESSES[0], "--master_port", PORT, "--node_rank", str(node)]
    return [*msrun, "--join", "True", "--log_dir", str(logs), "python", *arguments]


@pytest.mark.parametrize("name", TREES)
def test_two_nodes_train_as_one(name, nodes, tmp_path):
    config = write_config(tmp_path / "run.yaml", settings())
    output, alone = tmp_path / "two", tmp_path / "one"
    arguments = ["-m", f"{name}.train", str(config), *OVERRIDES, f"output={output}"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": CABLE}
    jobs = []
    try:
        for node, network in enumerate(nodes):
            inside = ["ip", "netns", "exec", network]
            words = [*inside, *line(name, node, arguments, tmp_path / f"logs{node}")]
            with open(tmp_path / f"node{node}.txt", "w") as printed:
                files = {"stdout": printed, "stderr": subprocess.STDOUT}
                jobs.append(
                    subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True, **files)
                )
        for node, job in enumerate(jobs):
            assert job.wait(timeout=600) == 0, (tmp_path / f"node{node}.txt").read_text()[-4000:]
    finally:
        for job in jobs:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
    run(one_node(name, "train", config, *OVERRIDES, f"output={alone}"))
    for ours, theirs in zip(losses(output), losses(alone), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
