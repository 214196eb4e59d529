"""The training loop of both trees: steps, validation, log, checkpoints, and stopping so that nothing is lost.

The model is behind `Task`, a handful of methods that speak NumPy and floats. A step's randomness must be a
function of its number, so a run that is killed at any moment and resumed ends bit-equal to one that was not.

The update with index `i` (0, 1, ...) uses batch `i`; after it `i + 1` steps are done. Checkpoints, logs and
messages count steps done.
"""

import math
import sys
import time
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from common.cli import commit, write_report
from common.config import Config, key
from common.errors import InputError
from common.parallel import AgreedStop

from .checkpoint import Checkpoint, Facts, checkpoint_folder, record_validation, save
from .interrupts import Interrupts
from .log import NoLog, RunLog, Validation
from .presence import Presence
from .ranks import ONE_RANK, Ranks, together
from .resume import best_score, prune, starting_point

Batch = Mapping[str, Any]  # NumPy arrays, and perhaps `names`: what the items are called
Batches = Callable[[int, int], Iterable[tuple[int, Batch]]]  # (start, stop) -> (index, batch), as range(...)


class LoopConfig(Config):
    """How long to train and what to keep. None of these keys changes what a step computes."""

    steps: int = key(..., ge=1, affects_result=False)
    checkpoint_every: int = key(500, ge=1, affects_result=False)
    keep_last: int = key(3, ge=1, affects_result=False)
    # by lowest validation score; a new best is kept at once
    keep_best: int = key(1, ge=0, affects_result=False)
    validate_every: int = key(0, ge=0, affects_result=False)  # 0: never
    # to the terminal and TensorBoard; losses.jsonl has every step
    log_every: int = key(10, ge=1, affects_result=False)
    # auto (newest good checkpoint in the output), never, or a checkpoint's path
    resume: str = key("auto", affects_result=False)
    # of a session; then stop with a checkpoint
    max_seconds: float | None = key(None, gt=0, affects_result=False)


class NotFinite(Exception):  # noqa: N818 an event a task reports; run_loop makes it an error
    """Terms of a loss or a gradient are not finite; raised before any weight changed, on every rank or on
    none.
    """

    def __init__(self, terms: str) -> None:
        super().__init__(f"not finite: {terms}")
        self.terms = terms


class Task(Protocol):
    """What is trained. With several ranks every rank calls every method, at the same steps."""

    def step(self, step: int, batch: Batch) -> Mapping[str, float]:
        """Do the update with this index; named scalars for the log, the most telling first.

        Raises:
            NotFinite: a loss or gradient is not finite; no weight was touched.
        """
        ...

    def validate(self, step: int) -> Validation:
        """Judge the model after `step` steps; changes nothing, and has the same score on every rank."""
        ...

    def state(self) -> Mapping[str, np.ndarray]:
        """This rank's part of all that is needed to continue bit-equally; no two ranks give the same name."""
        ...

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take back what all ranks gave together, perhaps on another number of them."""
        ...

    def export(self, folder: Path) -> None:
        """Write the model as on the hub (config.json, safetensors) into a new folder; only rank 0 writes."""
        ...


class Outcome(NamedTuple):
    """How a run ended."""

    step: int  # done, with those of earlier sessions
    finished: bool  # False: max_seconds ended it
    seconds: float  # training, with earlier sessions
    checkpoint: Path | None  # the newest of this session; None if there was nothing to do


def run_loop(
    task: Task,
    batches: Batches,
    config: LoopConfig,
    folder: str | Path,
    run_config: Config,
    ranks: Ranks = ONE_RANK,
    free_keys: Collection[str] = ("output",),
) -> Outcome:
    """Train from where the last session stopped to `config.steps`, leaving everything in `folder`.

    `run_config` is the whole run's config: it goes into every checkpoint, and to resume it must be the same
    but for keys that are marked as not affecting the result (`common.config.key`), and `free_keys`.

    Raises:
        InputError: another run at work in `folder`, nothing sound to resume from, another config, or a value
            that is not finite.
        AgreedStop: after SIGTERM (143) or SIGINT (130), once the step is finished and written.
    """
    folder = Path(folder)
    with Presence(folder, ranks), Interrupts() as interrupts:
        start = starting_point(config.resume, folder, run_config, free_keys, ranks)
        done = start.step if start else 0
        if start:
            task.restore(start.state())
        _prune(config, folder, run_config, done, ranks)  # a kill may have come between writing and deleting
        owed = start is not None and start.validation_owed and _validation_due(config, done)
        if done >= config.steps and not owed:
            told = f"{folder}: {done} of {config.steps} steps are done already; set steps higher"
            print(told, file=sys.stderr)
            return Outcome(done, True, start.seconds if start else 0.0, None)
        loop = _Loop(task, config, folder, run_config, ranks, interrupts, start, owed)
        with closing(loop.log):
            outcome = loop.run(batches)
    if ranks.any(interrupts.received is not None) and not outcome.finished:
        raise AgreedStop(interrupts.exit_code)
    return outcome


class _Loop:
    """One session."""

    def __init__(
        self,
        task: Task,
        config: LoopConfig,
        folder: Path,
        run_config: Config,
        ranks: Ranks,
        interrupts: Interrupts,
        start: Checkpoint | None,
        owed: bool,
    ) -> None:
        self.task, self.config, self.folder, self.run_config = task, config, folder, run_config
        self.ranks, self.interrupts = ranks, interrupts
        self.done = start.step if start else 0
        self.owed = owed  # the validation after this step
        self.saved = start is not None and start.folder == checkpoint_folder(folder, self.done)
        self.best = best_score(folder, self.done, run_config)
        self.commit = commit()
        self.seconds_before = start.seconds if start else 0.0
        self.began = time.monotonic()
        self.log = NoLog()
        if ranks.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            self.log = RunLog(folder, self.done, config.steps, config.log_every)
            if start:
                self.log.note(f"resumed from {start.folder}")

    @property
    def seconds(self) -> float:
        """Since the session began."""
        return time.monotonic() - self.began

    def run(self, batches: Batches) -> Outcome:
        """Step until all is done or someone says stop; then the report."""
        self._report()
        written, stop = self._validate() if self.owed else None, False
        tick = time.perf_counter()
        with closing(_in_order(batches(self.done, self.config.steps), self.done)) as stream:
            for step, batch in stream:
                waited = time.perf_counter() - tick
                scalars = self._update(step, batch)
                self.done, self.saved = step + 1, False
                self.log.step(self.done, scalars, time.perf_counter() - tick, waited)
                self.owed = _validation_due(self.config, self.done)
                stop = self._stop()
                if stop or self.done % self.config.checkpoint_every == 0:
                    written = self._checkpoint()
                if self.owed and not (stop and self._in_a_hurry()):
                    written = self._validate() or written
                if stop:
                    break
                tick = time.perf_counter()
        if self.done < self.config.steps and not stop:
            raise InputError(f"training: the data ended after step {self.done}, wanted {self.config.steps}")
        finished = self.done == self.config.steps
        outcome = Outcome(self.done, finished, self.seconds_before + self.seconds, written)
        self._report(outcome)
        return outcome

    def _update(self, step: int, batch: Batch) -> Mapping[str, float]:
        what = f"training: step {step + 1}: got a value that is not finite:"
        names = ", ".join(map(str, batch.get("names", ()))) or f"number {step}, which has no names"
        try:
            scalars = self.task.step(step, batch)
        except NotFinite as stop:
            raise InputError(
                f"{what} {stop.terms}; the weights are as before the step. Usually the run has diverged: "
                "go on from an earlier checkpoint with a lower learning rate, or, from float16, with "
                f"dtype=bfloat16 or float32. Should an item be damaged, it is one of this batch: {names}"
            ) from None
        wrong = [name for name, value in scalars.items() if not math.isfinite(value)]
        if wrong:
            raise InputError(
                f"{what} {', '.join(wrong)}; the batch: {names}; no checkpoint was written of this step"
            )
        return scalars

    def _validate(self) -> Path | None:
        """Judge the model. A checkpoint of this step is there before, so that nothing is lost if this fails,
        and gets the score now; without one the best so far writes one, whose path is returned.
        """
        found = self.task.validate(self.done)
        self.log.validation(self.done, found)
        self.owed = False
        score = found.score if found.score is not None and math.isfinite(found.score) else None
        improved = score is not None and (self.best is None or score < self.best)
        self.best = score if improved else self.best
        if self.saved:
            self.log.sync()
            written = checkpoint_folder(self.folder, self.done)
            together(self.ranks, lambda: record_validation(written, score) if self.ranks.rank == 0 else None)
            _prune(self.config, self.folder, self.run_config, self.done, self.ranks)
        elif self.ranks.any(improved and self.config.keep_best > 0):
            return self._checkpoint(score)
        return None

    def _stop(self) -> bool:
        """Whether this step is the last of the session; all ranks agree."""
        limit = self.config.max_seconds
        asked = self.interrupts.received is not None or (limit is not None and self.seconds >= limit)
        return self.ranks.any(asked) or self.done == self.config.steps

    def _in_a_hurry(self) -> bool:
        """Whether someone waits for this process to end; the next session then validates."""
        return self.done < self.config.steps and self.ranks.any(self.interrupts.received is not None)

    def _checkpoint(self, score: float | None = None) -> Path:
        self.log.sync()
        seconds = self.seconds_before + self.seconds
        facts = Facts(self.done, self.run_config, self.commit, seconds, score, self.owed)
        written = save(self.folder, facts, self.task.state(), self.task.export, self.ranks)
        _prune(self.config, self.folder, self.run_config, self.done, self.ranks)
        self.log.note(f"wrote {written}")
        self.saved = True
        return written

    def _report(self, outcome: Outcome | None = None) -> None:
        """`train.json`: the config and commit when a session begins, and how it ended."""
        if self.ranks.rank:
            return
        facts = {"step": self.done, "steps": self.config.steps, "finished": False}
        if outcome is not None and isinstance(self.log, RunLog):
            facts |= {
                "finished": outcome.finished,
                "seconds": round(outcome.seconds, 3),
                "seconds_per_step": round(self.log.seconds_per_step, 6),
                "checkpoint": str(checkpoint_folder(".", self.done)),
            }
            if not outcome.finished:
                self.log.note(f"stopped after step {self.done}; to continue, run it again with resume=auto")
        write_report(self.folder / "train.json", self.run_config, **facts)


def _validation_due(config: LoopConfig, done: int) -> bool:
    return config.validate_every > 0 and done % config.validate_every == 0


def _prune(config: LoopConfig, folder: Path, run_config: Config, done: int, ranks: Ranks) -> None:
    keep = (config.keep_last, config.keep_best)
    together(ranks, lambda: prune(folder, done, run_config, *keep) if ranks.rank == 0 else None)


def _in_order(batches: Iterable[tuple[int, Batch]], done: int) -> Generator[tuple[int, Batch], None, None]:
    """The batches, checked to come as the steps do; closed with the loop, so that a loader's workers end."""
    try:
        for expected, (step, batch) in enumerate(batches, done):
            assert step == expected, f"batches gave step {step}, wanted {expected}"
            yield step, batch
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
