"""A training run small enough to be killed a hundred times: a line through points, with momentum.

    python -m tests.common.toy_training FOLDER [section.key=value ...]
    python -m tests.common.toy_training crash FOLDER

TOY_DIE="step 7", "validate 8" or "write 8" makes it kill itself (-9) in the middle of that step, its
validation or its checkpoint; "term 7" and "int 7" send it the signal instead. TOY_NAN=7 makes the loss of a
step NaN. `crash` kills it at every file operation in turn, resumes it, and checks what is left.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np

import common.cli
import common.training.loop
from common.checkpoint import save_weights
from common.config import Config, build
from common.noise import generator
from common.training.loop import LoopConfig, NotFinite, Validation, run_loop

WIDTH = 64


class ToyConfig(Config):
    loop: LoopConfig
    lr: float = 0.004
    seed: int = 3
    output: str = ""


class Toy:
    """Weights in float32, momentum in float16 and a counter: the state has several dtypes."""

    def __init__(self, config: ToyConfig) -> None:
        self.config = config
        self.truth = generator(config.seed, 0).standard_normal(WIDTH).astype(np.float32)
        self.weight = np.zeros(WIDTH, np.float32)
        self.momentum = np.zeros(WIDTH, np.float16)
        self.done = 0

    def step(self, step, batch):
        if step + 1 == int(os.environ.get("TOY_NAN", "0")):
            raise NotFinite("loss")
        error = batch["x"] @ self.weight - batch["y"]
        gradient = 2 * batch["x"].T @ error / len(error)
        self.momentum = (np.float32(0.9) * self.momentum + gradient).astype(np.float16)
        act("step", step + 1)
        self.weight = self.weight - np.float32(self.config.lr) * self.momentum
        self.done += 1
        assert self.done == step + 1
        return {"loss": np.mean(error**2), "grad_norm": np.linalg.norm(gradient)}

    def validate(self, step):
        act("validate", step)
        distance = float(np.linalg.norm(self.weight - self.truth))
        grey_HWC = np.full((8, 8, 3), min(255, int(distance * 20)), np.uint8)
        return Validation(distance, {"distance": distance}, {"grey": grey_HWC})

    def state(self):
        return {"weight": self.weight, "momentum": self.momentum, "done": np.array(self.done)}

    def restore(self, state):
        self.weight, self.momentum, self.done = state["weight"], state["momentum"], int(state["done"])

    def export(self, folder):
        act("write", self.done)
        save_weights(folder, {"weight": self.weight}, {"width": WIDTH})

    def batches(self, start, stop):
        for step in range(start, stop):
            x = generator(self.config.seed, 1 + step).standard_normal((16, WIDTH)).astype(np.float32)
            yield step, {"x": x, "y": x @ self.truth, "names": [f"clip-{step}-{i}.mp4" for i in range(2)]}


def act(place: str, number: int) -> None:
    """Kill or signal this process if TOY_DIE says here."""
    what, _, when = os.environ.get("TOY_DIE", "none 0").partition(" ")
    signals = {"step": {"term": signal.SIGTERM, "int": signal.SIGINT}}.get(place, {}) | {
        place: signal.SIGKILL
    }
    if what in signals and number == int(when):
        os.kill(os.getpid(), signals[what])


def toy_config(folder: str | Path, *overrides: str) -> ToyConfig:
    loop = {"steps": 12, "checkpoint_every": 4, "validate_every": 4, "log_every": 5}
    tree: dict = {"output": str(folder), "loop": loop}
    for override in overrides:
        key, _, value = override.partition("=")
        section, _, leaf = key.rpartition(".")
        (tree[section] if section else tree)[leaf] = value
    return build(ToyConfig, tree, "toy")


def train(folder: str | Path, *overrides: str):
    config = toy_config(folder, *overrides)
    toy = Toy(config)
    return run_loop(toy, toy.batches, config.loop, folder, config)


def contents(folder: Path) -> dict[str, bytes]:
    """What must not depend on interruptions: the log, and the checkpoints but for seconds."""
    files = [
        folder / "losses.jsonl",
        *folder.glob("checkpoints/step-*/state-*"),
        *folder.glob("pictures/*.png"),
    ]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def crash_everywhere(root: Path) -> None:
    """Die at the n-th file operation of the run, for every n, and resume; the outcome must never differ."""
    common.cli.commit = common.training.loop.commit = lambda: "none"  # asks git, which is slow
    assert in_child(root / "whole", 0) == 0
    wanted = contents(root / "whole")
    for n in range(1, 1000):
        folder = root / f"{n:03d}"
        if in_child(folder, n) == 0:
            print(f"{n - 1} crashes survived")
            return
        assert in_child(folder, 0) == 0, n
        assert contents(folder) == wanted, n
        told = (root / f"{folder.name}.txt").read_text()
        assert "warning" not in told, told
        assert not list(folder.glob("checkpoints/.*")), n


def in_child(folder: Path, die_at: int) -> int:
    """The exit status of a forked run; `die_at` counts file operations."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.stdout = sys.stderr = open(folder.with_suffix(".txt"), "a")  # noqa: SIM115
    os.fsync = lambda descriptor: None  # a killed process loses nothing the kernel has
    left = [die_at]

    def counted(function):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))
    status = 1
    try:
        train(folder, "loop.steps=4", "loop.checkpoint_every=2", "loop.validate_every=2", "loop.keep_last=1")
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    try:
        if sys.argv[1] == "crash":
            crash_everywhere(Path(sys.argv[2]))
        else:
            print(train(*sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"error: {error}")
