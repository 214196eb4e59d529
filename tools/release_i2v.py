"""Measures an image-to-video transformer: does it keep what it is given, and go on as captioned?

    python -m tools.release_i2v configs/sample_demo_i2v.yaml --tree pt --sheet i2v.png [key=value ...]

Held-out scenes are drawn; each is sampled from its first frame (image to video), and from its first and last
(transition). Exit code 0: every goal is met; 1: one is missed; 2: could not run.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common import cli
from common.data.drawing import render
from common.given import Given
from common.images import write_png
from common.metrics import psnr_T
from common.oracle import Reading, read_back
from tools.measuring import (
    SHEET_VIDEOS,
    Sampler,
    Setting,
    add_arguments,
    prepare,
    restore,
    run_command,
    sample_strip,
    triples,
)
from tools.oracle import ATTRIBUTES, accuracy, in_columns

GOALS = {"first frame": 27.0, "last frame": 25.0, "motion": 0.85}  # dB, dB, share of the samples


class Task(NamedTuple):
    """What one way of giving frames came to."""

    videos: list[np.ndarray]  # the first, for a sheet
    readings: list[Reading]
    psnr_first: list[float]  # dB against what was given, or would have been
    psnr_last: list[float]


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run; the exit code."""
    top = argparse.ArgumentParser(
        prog="python -m tools.release_i2v",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(top, 100, run_measure)
    return run_command(top, argv)


def run_measure(given: argparse.Namespace) -> int:
    """Sample both tasks, compare with the scenes, tell what was reached."""
    setting = prepare(given)
    config = setting.config
    scenes = [render(scene, config.num_frames, config.height, config.width) for scene in setting.scenes]
    truth = [scene.things[0].triple for scene in setting.scenes]
    sampler = Sampler(setting)
    tasks = {
        "image to video": judge(setting, sampler, scenes, (0,)),
        "transition": judge(setting, sampler, scenes, (0, config.num_frames - 1)),
    }
    restored = [frames for batch in restore(setting, scenes) for frames in batch]
    bound = Task([], [*map(read_back, restored)], *ends(restored, scenes))
    reached = {
        "first frame": float(np.mean(tasks["image to video"].psnr_first)),
        "last frame": float(np.mean(tasks["transition"].psnr_last)),
        "motion": accuracy(triples(tasks["image to video"].readings), triples(truth))[2],
    }
    missed = [name for name, goal in GOALS.items() if reached[name] < goal]
    print(table(f"{given.clips} held-out clips ({setting.tree.name})", {**tasks, "bound: VAE": bound}, truth))
    print(f"Goals missed: {', '.join(missed)}." if missed else "All goals are met.")
    if given.sheet:
        write_png(given.sheet, sheet(setting, tasks, truth))
    if given.json:
        cli.write_report(
            Path(given.json),
            config,
            scene_seed=given.seed,
            goals=GOALS,
            reached=reached,
            missed=missed,
            tree=setting.tree.name,
            device=setting.device,
            versions=setting.tree.runtime.versions(),
            truth=truth,
            tasks={name: {**task._asdict(), "videos": None} for name, task in tasks.items()},
        )
    return 1 if missed else 0


def judge(setting: Setting, sampler: Sampler, scenes: list[np.ndarray], indices: tuple[int, ...]) -> Task:
    """Sample every scene from these of its frames, read it back, and compare its ends with the scene's."""
    size = setting.config.height, setting.config.width
    given = [Given(frames_THWC[list(indices)], indices, size) for frames_THWC in scenes]
    plan = setting.plan._replace(given=given)
    videos = [frames_THWC for batch in sampler(plan) for frames_THWC in batch]
    return Task(videos[:SHEET_VIDEOS], [*map(read_back, videos)], *ends(videos, scenes))


def ends(videos: list[np.ndarray], scenes: list[np.ndarray]) -> tuple[list[float], list[float]]:
    """PSNR in dB of first and last frames."""
    pairs = list(zip(videos, scenes, strict=True))
    first, last = ([float(psnr_T(a[[i]], b[[i]])[0]) for a, b in pairs] for i in (0, -1))
    return first, last


def table(corner: str, tasks: dict[str, Task], truth: list) -> str:
    """What each task reached, as a Markdown table; in brackets the worst clip."""
    lines = [
        f"| {corner} | first frame, dB | last frame, dB | {' | '.join(ATTRIBUTES)} |",
        "|---" * (3 + len(ATTRIBUTES)) + "|",
    ]
    for name, task in tasks.items():
        decibels = [f"{np.mean(db):.1f} ({np.min(db):.1f})" for db in (task.psnr_first, task.psnr_last)]
        shares = [f"{100 * share:.1f} %" for share in accuracy(triples(task.readings), triples(truth))]
        lines.append(f"| {name} | {' | '.join([*decibels, *shares])} |")
    return "\n".join(lines)


def sheet(setting: Setting, tasks: dict[str, Task], truth: list) -> np.ndarray:
    """Samples of both tasks side by side under their captions."""
    strips = []
    for shown in zip(*(zip(task.videos, task.readings) for task in tasks.values())):
        index = len(strips) // len(tasks)
        caption = setting.captions[index]
        strips += [sample_strip(video, caption, reading, truth[index]) for video, reading in shown]
    return in_columns(strips)


if __name__ == "__main__":
    sys.exit(main())
