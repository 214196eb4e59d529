"""The videos a sampling run has to make, and the files it leaves of each."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .files import write_safetensors
from .images import write_contact_sheet, write_png
from .video import write_video

SLUG_WORDS = 6


class Job(NamedTuple):
    """One video: which prompt, which of its samples, and the seed that alone decides its noise."""

    index: int
    prompt_index: int
    prompt: str
    seed: int

    @property
    def stem(self) -> str:
        words = re.findall(r"[A-Za-z0-9]+", self.prompt)[:SLUG_WORDS]
        return "_".join([f"{self.index:04d}", *words]).lower()


def plan_jobs(prompts: Sequence[str], num_samples: int, seed: int) -> list[Job]:
    """Every sample of every prompt, numbered; job i uses seed + i, however jobs are spread over batches and
    ranks.
    """
    return [
        Job(p * num_samples + s, p, prompt, seed + p * num_samples + s)
        for p, prompt in enumerate(prompts)
        for s in range(num_samples)
    ]


def batches(jobs: list[Job], batch_size: int, sizes: Sequence[tuple[int, int]]) -> Iterator[list[Job]]:
    """Jobs of one size in groups of at most batch_size.

    Args:
        sizes: of the videos of each prompt.
    """
    for _, alike in groupby(jobs, key=lambda job: sizes[job.prompt_index]):
        group = list(alike)
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def write_frames(folder: Path, stem: str, frames_THWC: np.ndarray, fps: float) -> list[str]:
    """One frame as PNG; more as MP4 with a contact sheet beside it. Returns the names written."""
    if len(frames_THWC) == 1:
        write_png(folder / f"{stem}.png", frames_THWC[0])
        return [f"{stem}.png"]
    write_video(folder / f"{stem}.mp4", frames_THWC, fps)
    write_contact_sheet(folder / f"{stem}_sheet.png", frames_THWC)
    return [f"{stem}.mp4", f"{stem}_sheet.png"]


def write_tensors(path: Path, **arrays: np.ndarray) -> None:
    """Arrays as safetensors, for tools that compare runs."""
    write_safetensors(path, arrays)
