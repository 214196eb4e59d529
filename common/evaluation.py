"""What evaluating a VAE does beside the networks: clips cut from files, scores, a table and a picture.

Shape legend: N clips or frames; T frames, H height, W width, C channels (RGB). Pixels are uint8.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError, MediaError
from .fvd import FEW_CLIPS, frechet_distance
from .images import resize_crop
from .runs import EvaluateVAEConfig
from .video import VideoReader

GRID_ROWS = 8
NAME_COLUMNS = 40
FVD_CONVENTION = "I3D (Kinetics-400) logits; frames resized to 224x224 bilinearly and scaled to [-1, 1]"


@dataclass(frozen=True)
class Clip:
    """Consecutive frames of one file, at the size of the evaluation."""

    name: str  # of the file
    start: int  # index of the first frame
    frames_THWC: np.ndarray


@dataclass(frozen=True)
class Score:
    """How close one clip came, the mean over its frames; higher PSNR and SSIM and lower LPIPS are better."""

    file: str
    start: int
    psnr_db: float
    ssim: float
    lpips: float | None

    def row(self) -> str:
        return _row(f"{self.file} @{self.start}", self.psnr_db, self.ssim, self.lpips)


def read_clips(paths: Sequence[Path], config: EvaluateVAEConfig, skipped: dict[str, str]) -> Iterator[Clip]:
    """The clips of every file, one after the other.

    A file that cannot be read enters `skipped` with the reason; clips that it gave before that count.
    """
    folder = Path(config.input)
    for path in paths:
        name = str(path.relative_to(folder)) if folder.is_dir() else path.name
        try:
            with VideoReader(path) as reader:
                for start in _starts(reader, config):
                    indices = range(start, start + config.num_frames * config.stride, config.stride)
                    frames_THWC = reader.frames(indices)
                    yield Clip(name, start, resize_crop(frames_THWC, config.height, config.width))
        except (InputError, OSError) as error:
            skipped[name] = str(error)


def _starts(reader: VideoReader, config: EvaluateVAEConfig) -> Iterator[int]:
    """Where the clips of a file begin. What is asked for after a clip was read knows the file better."""
    span = config.num_frames * config.stride
    yield 0
    if config.clips_per_video == 1:
        return
    try:
        total = reader.num_frames
    except MediaError:  # damaged where its length takes decoding: clips up to there
        yield from islice(count(span, span), config.clips_per_video - 1 if config.clips_per_video else None)
    else:
        yield from clip_starts(total, span, config.clips_per_video)[1:]


def clip_starts(total: int | None, span: int, clips: int) -> list[int]:
    """Where the clips of a file of `total` frames begin: one after the other, at most `clips` of them.

    0 covers the file, the last clip moved back to end with it. The first begins at 0 in any case.
    """
    if total is None or total < span:
        return [0]  # reading it will say if the file is too short
    starts = list(range(0, total - span + 1, span))
    if clips:
        return starts[:clips]
    return starts if starts[-1] + span == total else [*starts, total - span]


def groups_of(clips: Iterator[Clip], size: int) -> Iterator[list[Clip]]:
    """Lists of `size` clips; the last may be shorter."""
    group: list[Clip] = []
    for clip in clips:
        group.append(clip)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def in_groups(function: Callable[..., np.ndarray], size: int, *arrays: np.ndarray) -> np.ndarray:
    """`function` of `size` rows of the arrays at a time, so that one graph does for all.

    The last group is filled up with repeats, and what comes of them is dropped.
    """
    num = len(arrays[0])
    results = []
    for start in range(0, num, size):
        rows = np.minimum(np.arange(start, start + size), num - 1)
        results.append(function(*(array[rows] for array in arrays))[: num - start])
    return np.concatenate(results)


def summary(scores: Sequence[Score], features_NF: Sequence[np.ndarray]) -> dict[str, Any]:
    """Means over the clips, and FVD from the features of (originals, reconstructions) if there are any."""
    means = {name: _mean([getattr(score, name) for score in scores]) for name in ("psnr_db", "ssim", "lpips")}
    facts: dict[str, Any] = {"num_clips": len(scores), **means, "fvd": None}
    if not features_NF:
        return facts
    facts["fvd_convention"] = FVD_CONVENTION
    if len(scores) < 2:
        facts["fvd_note"] = "FVD wants 2 clips or more"
        return facts
    facts["fvd"] = round(frechet_distance(*features_NF), 3)
    if len(scores) < FEW_CLIPS:
        facts["fvd_note"] = (
            f"{len(scores)} clips are few, most of this FVD is bias: compare it only with one of as many"
        )
    return facts


def header() -> str:
    """The first line of the table."""
    return f"{'clip':<{NAME_COLUMNS}}  PSNR dB    SSIM   LPIPS"


def footer(facts: dict, skipped: dict[str, str], num_files: int) -> list[str]:
    """The last lines of the table."""
    lines = [_row(f"all {facts['num_clips']} clips", facts["psnr_db"], facts["ssim"], facts["lpips"])]
    if "fvd_convention" in facts:
        lines.append(f"FVD  {'-' if facts['fvd'] is None else facts['fvd']}")
    if "fvd_note" in facts:
        lines.append(f"     {facts['fvd_note']}")
    if skipped:
        lines.append(f"skipped {len(skipped)} of {num_files} files:")
        lines += [f"  {name}: {reason}" for name, reason in skipped.items()]
    return lines


def as_records(scores: Sequence[Score]) -> list[dict]:
    """The scores for a JSON file, rounded as printed."""
    digits = {"psnr_db": 3, "ssim": 4, "lpips": 4}
    return [
        {k: round(v, digits[k]) if k in digits and v is not None else v for k, v in asdict(score).items()}
        for score in scores
    ]


def grid_row(original_THWC: np.ndarray, restored_THWC: np.ndarray, error_gain: float) -> np.ndarray:
    """The middle frame of a clip, its reconstruction, and `error_gain` times their difference."""
    original, restored = (x[len(x) // 2].astype(np.float32) for x in (original_THWC, restored_THWC))
    error = np.clip(np.abs(original - restored) * error_gain, 0, 255)
    return np.concatenate([original, restored, error], axis=1).astype(np.uint8)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 4) if known else None


def _row(name: str, psnr_db: float, ssim: float, lpips: float | None) -> str:
    name = name if len(name) <= NAME_COLUMNS else f"..{name[2 - NAME_COLUMNS :]}"
    distance = f"{'-':>7}" if lpips is None else f"{lpips:7.4f}"
    return f"{name:<{NAME_COLUMNS}}  {psnr_db:7.2f}  {ssim:6.4f} {distance}"
