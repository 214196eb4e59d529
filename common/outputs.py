"""The videos a sampling run has to make, and the files it leaves of each."""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from glob import escape
from itertools import count, groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from .config import Config
from .errors import InputError
from .files import read_json, write_safetensors
from .images import write_contact_sheet, write_png
from .video import write_video

SLUG_WORDS = 6
SLUG_BYTES = 80  # in UTF-8; the least that a file system in use takes of a whole name is 143 (eCryptfs)
Overwrite = Literal["number", "error", "replace"]
WHEREABOUTS = {"output", "device", "overwrite"}  # keys of a config that do not change what is made


class Job(NamedTuple):
    """One video: which prompt, which of its samples, and the seed that alone decides its noise."""

    index: int
    prompt_index: int
    prompt: str
    seed: int

    @property
    def stem(self) -> str:
        """The name of its files: number, first words of the prompt, seed."""
        return "_".join(filter(None, [f"{self.index:04d}", slug(self.prompt), f"seed{self.seed}"]))


def slug(prompt: str) -> str:
    """The first words of a prompt, letters and digits of any script, in a form that every file system takes:
    a script without spaces makes one long word, so bytes are counted too.
    """
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFC", prompt.lower()))[:SLUG_WORDS]
    return shortened("_".join(words)).rstrip("_")


def shortened(name: str) -> str:
    """As much of a name as leaves room for what is put behind it."""
    return name.encode(errors="surrogateescape")[:SLUG_BYTES].decode(errors="ignore")


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 of the values and shapes of arrays: what an output shows, however its file was encoded."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def free_stem(folder: Path, stem: str, content: str, overwrite: Overwrite) -> str:
    """The name to write an output under: `stem` if it is free or has this content, else as `overwrite` says.

    Args:
        content: the digest; a report STEM.json holds that of the files beside it.
        overwrite: "number" gives the next free number, "replace" takes the name in any case.

    Raises:
        InputError: overwrite is "error" and files with other content have the name.
    """
    for number in count(1):
        name = stem if number == 1 else f"{stem}_{number}"
        taken = next(folder.glob(f"{escape(name)}.*"), None)
        if taken is None or overwrite == "replace":
            return name
        if _recorded(folder / f"{name}.json").get("sha256") == content:
            return name
        if overwrite == "error":
            raise InputError(_exists(taken))
    raise AssertionError("count is endless")


def check_free(folder: Path, stem: str, config: Config, overwrite: Overwrite) -> None:
    """Refuse, before any work, to make what `free_stem` would refuse to write: files of another config.

    Raises:
        InputError: overwrite is "error" and the name is taken.
    """
    taken = next(folder.glob(f"{escape(stem)}.*"), None)
    if overwrite != "error" or taken is None:
        return
    made_by = _recorded(folder / f"{stem}.json").get("config", {})
    ours = config.model_dump(mode="json")
    if {key: made_by.get(key) for key in ours.keys() - WHEREABOUTS} != {
        key: value for key, value in ours.items() if key not in WHEREABOUTS
    }:
        raise InputError(_exists(taken))


def _exists(taken: Path) -> str:
    return (
        f"output {taken}: it is there already, with other content; set overwrite=number to keep both, "
        "overwrite=replace, or another output folder"
    )


def _recorded(report: Path) -> dict[str, Any]:
    """What a report says; nothing where there is none."""
    content = read_json(report) if report.is_file() else {}
    return content if isinstance(content, dict) else {}


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
