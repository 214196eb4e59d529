"""Makes a release of a trained transformer, and measures if a text-to-video one shows what captions say.

    python -m tools.release_t2v shorten assets/t2v_tiny outputs/t2v_short --without 4
    python -m tools.release_t2v make outputs/train_tiny_2/checkpoints/STEP/model assets/t2v_tiny
    python -m tools.release_t2v measure configs/sample_demo.yaml --tree pt --sheet t2v.png [key=value ...]
    python -m tools.release_t2v compare pt.json ms.json

The config is one of `sample`; its prompt is replaced by the captions of held-out scenes, of which the oracle
reads colour, shape and motion back. `compare` takes what `measure --json` wrote, and wants scores within 1 %.
Exit code 0: every goal is met; 1: one is missed; 2: could not run.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from common import cli
from common.checkpoint import StoredWeights, save_weights, weight_files
from common.data.drawing import render
from common.errors import InputError
from common.files import read_json
from common.images import write_png
from common.model_record import copy_record
from common.models import TransformerConfig, read_hub_config
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
from tools.oracle import (
    ATTRIBUTES,
    Triple,
    accuracy,
    confusions,
    heading,
    in_columns,
    row,
)
from tools.releasing import in_float16, refuse_overwriting

MAX_PARAMETERS = 4_000_000
BLOCKS = "transformer_blocks."
TREES_APART = 0.01  # of a score
GOALS = {"colour": 0.95, "shape": 0.90, "motion": 0.85, "all": 0.80}  # share of the samples that show it


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run; the exit code."""
    return run_command(parser(), argv)


def parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        prog="python -m tools.release_t2v", description=__doc__, formatter_class=formatter
    )
    commands = top.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("make", help="a model directory in float16")
    sub.add_argument("model", help="model directory of a checkpoint, float32")
    sub.add_argument("target", help="folder to write")
    sub.set_defaults(run=run_make)
    sub = commands.add_parser("shorten", help="a model directory without one block, to train on")
    sub.add_argument("model", help="model directory")
    sub.add_argument("target", help="folder to write")
    sub.add_argument("--without", type=int, required=True, metavar="BLOCK", help="counted from 0")
    sub.set_defaults(run=run_shorten)
    sub = commands.add_parser("measure", help="sample held-out captions and read the videos back")
    add_arguments(sub, 200, run_measure)
    sub = commands.add_parser("compare", help="whether two trees were measured alike")
    sub.add_argument("reports", nargs=2, metavar="FILE.json", help="what measure --json wrote")
    sub.set_defaults(run=run_compare)
    return top


def run_make(given: argparse.Namespace) -> int:
    """Write the release, say how large it is."""
    weights = StoredWeights(given.model)
    read_hub_config(TransformerConfig, given.model)  # refuses what is no transformer's
    num_parameters = sum(int(np.prod(shape)) for shape in weights.shapes.values())
    if num_parameters > MAX_PARAMETERS:
        raise InputError(
            f"{given.model}: got {num_parameters:,} parameters, wanted at most {MAX_PARAMETERS:,}; "
            "the release must stay small, train a smaller model"
        )
    refuse_overwriting(given.model, given.target)
    halves = {name: in_float16(weights, name, given.model) for name in weights}
    save_weights(given.target, halves, read_json(Path(given.model) / "config.json"))
    copy_record(given.model, given.target)
    num_bytes = sum(file.stat().st_size for file in weight_files(given.target))
    print(f"{given.target}: {num_parameters / 1e6:.2f} M parameters, {num_bytes / 1e6:.2f} MB in float16")
    return 0


def run_shorten(given: argparse.Namespace) -> int:
    """Leave a block out and number those behind it anew; the others must keep their arrangement."""
    weights = StoredWeights(given.model)
    config: TransformerConfig = read_hub_config(TransformerConfig, given.model)
    if not 0 <= given.without < config.num_layers or config.num_layers == 1:
        raise InputError(
            f"shorten: got block {given.without}, wanted one of several: 0 to {config.num_layers - 1}"
        )
    shorter = config.replace(num_layers=config.num_layers - 1)
    left = [block for block in range(config.num_layers) if block != given.without]
    if [config.plan[block] for block in left] != list(shorter.plan):
        raise InputError(
            f"shorten: without block {given.without} the arrangements {', '.join(config.plan)} would not be "
            f"{', '.join(shorter.plan)}; leave out another"
        )
    refuse_overwriting(given.model, given.target)
    renamed = {f"{BLOCKS}{old}.": f"{BLOCKS}{new}." for new, old in enumerate(left)}
    kept = {}
    for name in weights:
        block = next((prefix for prefix in renamed if name.startswith(prefix)), None)
        if block is not None:
            kept[renamed[block] + name.removeprefix(block)] = weights[name]
        elif not name.startswith(BLOCKS):
            kept[name] = weights[name]
    save_weights(given.target, kept, shorter.hub_dict())
    print(f"{given.target}: {shorter.num_layers} blocks: {', '.join(shorter.plan)}")
    return 0


def run_measure(given: argparse.Namespace) -> int:
    """Sample, read back, tell how often the videos show what their captions say."""
    setting = prepare(given)
    config, tree, _, scenes, captions, jobs, _ = setting
    videos, samples, seconds = read_samples(setting)
    rendered, restored = read_bounds(setting)
    truth = [scene.things[0].triple for scene in scenes]
    reached = accuracy(*map(triples, (samples, truth)))
    missed = [name for name, share in zip(ATTRIBUTES, reached, strict=True) if share < GOALS[name]]

    corner = f"{given.clips} held-out captions, {config.num_frames} x {config.height} x {config.width}"
    print(table(corner, samples, rendered, restored, truth))
    print(f"\n{seconds:.3g} s per video, {given.batch} together ({tree.name}, {setting.device}).")
    print(f"Goals missed: {', '.join(missed)}." if missed else "All goals are met.")
    if given.sheet:
        shown = zip(videos, captions, samples, truth)
        write_png(given.sheet, in_columns([sample_strip(*clip) for clip in shown]))
    if given.json:
        records = [
            {
                "caption": job.prompt,
                "seed": job.seed,
                "truth": truth[job.index],
                "sample": samples[job.index]._asdict(),
                "rendered": rendered[job.index]._asdict(),
                "restored": restored[job.index]._asdict(),
            }
            for job in jobs
        ]
        cli.write_report(
            Path(given.json),
            config,
            scene_seed=given.seed,
            goals=GOALS,
            reached=dict(zip(ATTRIBUTES, reached, strict=True)),
            missed=missed,
            seconds_per_video=round(seconds, 4),
            tree=tree.name,
            device=setting.device,
            versions=tree.runtime.versions(),
            readings=records,
        )
    return 1 if missed else 0


def run_compare(given: argparse.Namespace) -> int:
    """How many readings are the same, and how far the scores are apart."""
    one, other = map(read_json, given.reports)
    try:
        asked = [[(r["caption"], r["seed"]) for r in report["readings"]] for report in (one, other)]
        read = [triples([tuple(r["sample"].values()) for r in report["readings"]]) for report in (one, other)]
        apart = max(abs(one["reached"][name] - other["reached"][name]) for name in ATTRIBUTES)
        trees = f"{one['tree']} and {other['tree']}"
    except (KeyError, TypeError) as error:
        raise InputError(f"compare: {error} is missing; wanted two files of measure --json") from None
    if asked[0] != asked[1]:
        raise InputError("compare: got reports of other captions or seeds, wanted two of the same")
    same = int((read[0] == read[1]).sum())
    print(
        f"{trees}: {same} of {read[0].size} readings are the same, scores at most {100 * apart:.1f} % apart"
    )
    return 0 if apart <= TREES_APART else 1


def read_samples(setting: Setting) -> tuple[list[np.ndarray], list[Reading], float]:
    """The first videos, the readings of all, and the seconds that one takes.

    The first batch loads the model and in MindSpore compiles it; if there are others, it does not count.
    """
    videos, readings, seconds = [], [], []
    start = time.perf_counter()
    for batch in Sampler(setting)(setting.plan):
        seconds.append((time.perf_counter() - start) / len(batch))
        videos += batch[: SHEET_VIDEOS - len(videos)]
        readings += map(read_back, batch)
        start = time.perf_counter()
    return videos, readings, float(np.median(seconds[1:] or seconds))


def read_bounds(setting: Setting) -> tuple[list[Reading], list[Reading]]:
    """Readings of the scenes themselves, as rendered and through the VAE: no sample can be expected to be
    read better.
    """
    config = setting.config
    drawn = [render(scene, config.num_frames, config.height, config.width) for scene in setting.scenes]
    restored = [read_back(frames) for batch in restore(setting, drawn) for frames in batch]
    return [*map(read_back, drawn)], restored


def table(
    corner: str,
    samples: list[Reading],
    rendered: list[Reading],
    restored: list[Reading],
    truth: list[Triple],
) -> str:
    """Accuracies as a Markdown table, and the confusions of each attribute in the samples.

    Under shuffled captions each reading is compared with another clip's truth: what guessing would score.
    """
    read, wanted = triples(samples), triples(truth)
    lines = [
        heading(corner),
        row("samples", read, wanted),
        "| goal, at least | " + " | ".join(f"{100 * GOALS[name]:.1f} %" for name in ATTRIBUTES) + " |",
        row("samples, captions shuffled", read, np.roll(wanted, len(wanted) // 2, axis=0)),
        row("bound: the scenes as rendered", triples(rendered), wanted),
        row("bound: the scenes through the VAE", triples(restored), wanted),
        "",
        "Confusions in the samples:",
    ]
    columns = zip(ATTRIBUTES, read.T, wanted.T)  # "all" has none of its own
    return "\n".join([*lines, *(f"* {name}: {confusions(got, want)}" for name, got, want in columns)])


if __name__ == "__main__":
    sys.exit(main())
