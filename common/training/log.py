"""What a training run tells: `losses.jsonl` for programs, TensorBoard events, and a line or bar for people.

`losses.jsonl` holds one row per step and no clock, so an interrupted and resumed run leaves the same file as
an uninterrupted one. Seconds go to TensorBoard and to the terminal.
"""

import json
import os
import statistics
import sys
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from common.files import parse_json, read_lines
from common.images import write_png
from common.video import write_video

from .event_file import EventFile

RECENT = 50  # steps whose median time is shown: the first ones compile
SHOWN = 5  # scalars on the terminal; the others are in the files


class Validation(NamedTuple):
    """What a validation found. `score` is compared between checkpoints; lower is better. None: not judged."""

    score: float | None
    scalars: Mapping[str, float] = {}
    pictures: Mapping[str, np.ndarray] = {}  # uint8 RGB (H, W, 3)
    videos: Mapping[str, np.ndarray] = {}  # uint8 RGB (T, H, W, 3)
    fps: float = 16.0  # of the videos


class NoLog:
    """Says and writes nothing: the log of every rank but the first."""

    def step(self, done: int, scalars: Mapping[str, float], seconds: float, waited: float) -> None: ...
    def validation(self, done: int, found: Validation) -> None: ...
    def note(self, text: str) -> None: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...


class RunLog(NoLog):
    """Continues the log in `folder` after `done` steps; later rows are cut off, as those steps come again."""

    def __init__(self, folder: Path, done: int, total: int, log_every: int) -> None:
        self._folder, self._total, self._log_every = folder, total, log_every
        self._row, self._row_start = cut_rows(folder / "losses.jsonl", done)
        self._rows = open(folder / "losses.jsonl", "rb+")  # noqa: SIM115
        self._events = EventFile(folder / "tensorboard", first_step=done + 1 if done else 0)
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._bar = _bar(done, total) if sys.stderr.isatty() else None

    @property
    def seconds_per_step(self) -> float:
        """The median of the recent steps."""
        return statistics.median(self._seconds) if self._seconds else 0.0

    def step(self, done: int, scalars: Mapping[str, float], seconds: float, waited: float) -> None:
        """One update: its scalars, its seconds, and how many of those it waited for the batch."""
        self._write_row()
        self._row_start = self._rows.tell()
        self._row = {"step": done, **{name: float(value) for name, value in scalars.items()}}
        self._seconds.append(seconds)
        if self._bar:
            self._bar.set_description_str(self._told(done, scalars), refresh=False)
            self._bar.update()
        if done % self._log_every and done != self._total:
            return
        for name, value in {**scalars, "time/step_s": seconds, "time/data_s": waited}.items():
            self._events.scalar(name, value, done)
        self._events.flush()
        if not self._bar:
            print(f"step {done}/{self._total}  {self._told(done, scalars)}", file=sys.stderr, flush=True)

    def validation(self, done: int, found: Validation) -> None:
        """The validation after step `done`: into that step's row, TensorBoard, `pictures/` and `videos/`."""
        found_scalars = found.scalars if found.score is None else {"score": found.score, **found.scalars}
        scalars = {f"validation/{name}": float(value) for name, value in found_scalars.items()}
        self._row |= scalars
        for name, value in scalars.items():
            self._events.scalar(name, value, done)
        for name, image_HWC in found.pictures.items():
            self._events.picture(f"validation/{name}", image_HWC, done)
            write_png(self._file("pictures", done, name, "png"), image_HWC)
        for name, frames_THWC in found.videos.items():
            self._events.video(f"validation/{name}", frames_THWC, found.fps, done)
            write_video(self._file("videos", done, name, "mp4"), frames_THWC, found.fps)
        self._events.flush()
        self.note(f"validation after step {done}: {_numbers(found_scalars) or 'pictures'}")

    def _file(self, kind: str, done: int, name: str, suffix: str) -> Path:
        """Where something of a validation goes."""
        file = self._folder / kind / f"step-{done:08d}-{name.replace('/', '-').replace(' ', '-')}.{suffix}"
        file.parent.mkdir(exist_ok=True)
        return file

    def note(self, text: str) -> None:
        """A line for people, above the bar."""
        if self._bar:
            tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def sync(self) -> None:
        """Put the rows on the disk; a checkpoint must not be newer than its log."""
        self._write_row()
        os.fsync(self._rows.fileno())

    def close(self) -> None:
        self.sync()
        self._rows.close()
        self._events.close()
        if self._bar:
            self._bar.close()

    def _write_row(self) -> None:
        """The newest row, in place of itself: a validation adds to it, perhaps in a later session."""
        if self._row:
            self._rows.seek(self._row_start)
            self._rows.write(json.dumps(self._row).encode() + b"\n")
            self._rows.flush()

    def _told(self, done: int, scalars: Mapping[str, float]) -> str:
        left = timedelta(seconds=round(self.seconds_per_step * (self._total - done)))
        return f"{self.seconds_per_step:.3g} s/step  {left} left  {_numbers(scalars)}"


def cut_rows(file: Path, done: int) -> tuple[dict[str, float], int]:
    """Drop the rows after step `done`, and a row that a kill left half written; make the file if need be.

    Returns:
        The last row that stays, empty if there is none, and where in the file it begins.
    """
    last, begin, end = {}, 0, 0
    with open(file, "ab+") as rows:
        rows.seek(0)
        for line in rows:
            if not line.endswith(b"\n") or json.loads(line)["step"] > done:
                break
            last, begin, end = json.loads(line), end, end + len(line)
        rows.truncate(end)
    return last, begin


def read_rows(file: str | Path) -> list[dict[str, float]]:
    """The rows of a `losses.jsonl`, oldest first."""
    wanted = "the losses.jsonl of a training run"
    lines = read_lines(file, "losses", wanted)
    return [parse_json(line, f"losses {file}, line {number}", wanted) for number, line in lines]


def _bar(done: int, total: int) -> tqdm:
    layout = "{percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt}  {desc}"
    return tqdm(total=total, initial=done, bar_format=layout, dynamic_ncols=True)


def _numbers(scalars: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in list(scalars.items())[:SHOWN])
