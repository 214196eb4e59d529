"""Makes a release of a trained text-to-video transformer, and measures if its videos show what captions say.

    python -m tools.release_t2v make outputs/train_tiny_2/checkpoints/STEP/model assets/t2v_tiny
    python -m tools.release_t2v measure configs/sample_demo.yaml --tree pt --sheet t2v.png [key=value ...]

The config is one of `sample`; its prompt is replaced by the captions of held-out scenes, of which the oracle
reads colour, shape and motion back. Exit code 0: every goal is met; 1: one is missed; 2: could not run.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common import cli
from common.checkpoint import StoredWeights, save_weights, weight_files
from common.config import load
from common.data.drawing import render
from common.data.scenes import Scene
from common.images import resize_crop, to_model, to_uint8, write_png
from common.models import TransformerConfig, VAEConfig, read_hub_config, read_json
from common.oracle import Reading, read_back
from common.outputs import Job, batches, plan_jobs
from common.runs import RoundTripConfig, SampleConfig, latent_size
from common.sample_plan import VideoPlan, plan_videos
from tools.oracle import (
    ATTRIBUTES,
    SHEET_CELL,
    Triple,
    accuracy,
    clip_of,
    confusions,
    heading,
    in_columns,
    row,
    strip,
)
from tools.parity.tree import Tree

MAX_PARAMETERS = 4_000_000
GOALS = {"colour": 0.95, "shape": 0.90, "motion": 0.85, "all": 0.80}  # share of the samples that show it
SHEET_VIDEOS, SHEET_FRAMES = 24, 6


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run; the exit code."""
    top = parser()
    given, rest = top.parse_known_args(argv)  # key=value may stand anywhere
    if any("=" not in word or word.startswith("-") for word in rest) or (rest and "config" not in given):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    given.override = rest
    cv2.setNumThreads(1)
    try:
        return given.run(given)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


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
    sub = commands.add_parser("measure", help="sample held-out captions and read the videos back")
    sub.add_argument("config", help="config of `sample`; key=value changes it")
    sub.add_argument("--tree", choices=("ms", "pt"), default="ms")
    sub.add_argument("--clips", type=int, default=200)
    sub.add_argument("--batch", type=int, default=10, help="videos denoised together")
    sub.add_argument("--seed", type=int, default=0, help="of the scenes; the noise has the config's seed")
    sub.add_argument("--sheet", metavar="FILE.png", help=f"write the first {SHEET_VIDEOS} samples as strips")
    sub.add_argument("--json", metavar="FILE.json", help="write every reading, the config and the versions")
    sub.set_defaults(run=run_measure)
    return top


def run_make(given: argparse.Namespace) -> int:
    """Write the release, say how large it is."""
    weights = StoredWeights(given.model)
    read_hub_config(TransformerConfig, given.model)  # refuses what is no transformer's
    num_parameters = sum(int(np.prod(shape)) for shape in weights.shapes.values())
    if num_parameters > MAX_PARAMETERS:
        raise ValueError(
            f"{given.model}: got {num_parameters:,} parameters, wanted at most {MAX_PARAMETERS:,}; "
            "the release must stay small, train a smaller model"
        )
    if Path(given.target).resolve() == Path(given.model).resolve():
        raise ValueError(f"{given.target}: the release would overwrite its checkpoint; give another folder")
    halves = {name: _in_float16(weights, name, given.model) for name in weights}
    save_weights(given.target, halves, read_json(Path(given.model) / "config.json"))
    num_bytes = sum(file.stat().st_size for file in weight_files(given.target))
    print(f"{given.target}: {num_parameters / 1e6:.2f} M parameters, {num_bytes / 1e6:.2f} MB in float16")
    return 0


def _in_float16(weights: StoredWeights, name: str, where: str) -> np.ndarray:
    if weights.dtype(name) != "F32":
        raise ValueError(f"{where}: {name} is {weights.dtype(name)}, wanted F32; give the trained checkpoint")
    with np.errstate(over="ignore"):
        half = weights[name].astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(f"{where}: {name} has values that float16 cannot hold; did the training diverge?")
    return half


def run_measure(given: argparse.Namespace) -> int:
    """Sample, read back, tell how often the videos show what their captions say."""
    if given.clips < 2 or given.batch < 1 or given.seed < 0:
        raise ValueError(
            f"measure: got {given.clips} clips in batches of {given.batch} from seed {given.seed}; "
            "wanted at least 2, 1 and 0"
        )
    clips = [clip_of(given.seed, index, heldout=True) for index in range(given.clips)]
    scenes, captions = [scene for scene, _ in clips], [caption for _, caption in clips]
    config = load(SampleConfig, given.config, given.override)
    config = config.replace(prompt=captions, num_samples=1, batch_size=given.batch)
    for file in filter(None, (given.sheet, given.json)):
        cli.prepare_folder(str(Path(file).parent))
    tree = Tree(given.tree, config.device)
    vae_config = config.vae.resolve(VAEConfig, "vae")
    latent_size(config, vae_config, config.transformer.resolve(TransformerConfig, "transformer"))
    vae = tree.loading.load_vae(config.vae, vae_config, config.vae_dtype, tree.device)

    jobs = plan_jobs(captions, 1, config.seed)
    videos, samples, seconds = read_samples(tree, config, jobs, vae)
    rendered, restored = read_bounds(tree, config, scenes, vae)
    truth = [scene.things[0].triple for scene in scenes]
    reached = accuracy(*map(triples, (samples, truth)))
    missed = [name for name, share in zip(ATTRIBUTES, reached, strict=True) if share < GOALS[name]]

    corner = f"{given.clips} held-out captions, {config.num_frames} x {config.height} x {config.width}"
    print(table(corner, samples, rendered, restored, truth))
    print(f"\n{seconds:.3g} s per video, {given.batch} together ({tree.name}, {device_name(tree)}).")
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
            device=device_name(tree),
            versions=tree.runtime.versions(),
            readings=records,
        )
    return 1 if missed else 0


def read_samples(
    tree: Tree, config: SampleConfig, jobs: list[Job], vae: Any
) -> tuple[list[np.ndarray], list[Reading], float]:
    """The first videos, the readings of all, and the seconds that one takes.

    The first batch loads the model and in MindSpore compiles it; if there are others, it does not count.
    """
    videos, readings, seconds = [], [], []
    start = time.perf_counter()
    for batch in sample_videos(tree, config, jobs, vae):
        seconds.append((time.perf_counter() - start) / len(batch))
        videos += batch[: SHEET_VIDEOS - len(videos)]
        readings += map(read_back, batch)
        start = time.perf_counter()
    return videos, readings, float(np.median(seconds[1:] or seconds))


def sample_videos(
    tree: Tree, config: SampleConfig, jobs: list[Job], vae: Any, plan: VideoPlan | None = None
) -> Iterator[list[np.ndarray]]:
    """Batches of videos, uint8 (T, H, W, 3), as `sample` of the tree makes them.

    Args:
        plan: what is given of each; none: what the config says.
    """
    transformer_config = config.transformer.resolve(TransformerConfig, "transformer")
    plan = plan_videos(config, len(jobs), vae.config, transformer_config) if plan is None else plan
    transformer = tree.loading.load_transformer(
        config.transformer, transformer_config, config.dtype, tree.device
    )
    guidance = (config.sampler.guidance_scale, config.sampler.guidance_rescale)
    sampler = tree.pipeline.LatentSampler(transformer, config.sampler.table(), *guidance, config.dtype)
    make = tree.long_video.VideoMaker(sampler, vae, cli.Stopwatch(), config.vae_chunk_frames)
    prompts = [job.prompt for job in jobs]
    text = tree.sample.encode_prompts(config, prompts, tree.device, transformer_config.caption_channels)
    groups = batches(jobs, config.batch_size, plan.sizes)
    for _, made in tree.sample.videos(plan, groups, make, text, True):
        yield [to_uint8(pixels_CTHW) for pixels_CTHW in made.pixels_BCTHW]


def read_bounds(
    tree: Tree, config: SampleConfig, scenes: list[Scene], vae: Any
) -> tuple[list[Reading], list[Reading]]:
    """Readings of the scenes themselves, as rendered and through the VAE: no sample can be expected to be
    read better.
    """
    chunk_frames = config.vae_chunk_frames * vae.config.stride_thw[0]
    trip = RoundTripConfig(vae=config.vae, input="", vae_dtype=config.vae_dtype, chunk_frames=chunk_frames)
    rendered, restored = [], []
    for start in range(0, len(scenes), config.batch_size):
        some = scenes[start : start + config.batch_size]
        drawn = [render(scene, config.num_frames, config.height, config.width) for scene in some]
        rendered += map(read_back, drawn)
        pixels_BCTHW = tree.reconstruct.round_trip(vae, np.concatenate([*map(to_model, drawn)]), trip)
        restored += [read_back(to_uint8(pixels_CTHW)) for pixels_CTHW in pixels_BCTHW]
    return rendered, restored


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


def triples(found: list[Reading] | list[Triple]) -> np.ndarray:
    """Colour, shape and motion as an array (clips, 3)."""
    return np.array([one[:3] for one in found])


def sample_strip(frames_THWC: np.ndarray, caption: str, reading: Reading, truth: Triple) -> np.ndarray:
    """Frames of a sample under its caption, what was read, and what should have been where that differs."""
    T, H, W, _ = frames_THWC.shape
    picked_THWC = frames_THWC[np.linspace(0, T - 1, SHEET_FRAMES).round().astype(int)]
    wrong = [want for want, got in zip(truth, reading.triple) if want != got]
    verdict = f"read: {' '.join(reading.triple)}" + (f"; wanted: {' '.join(wrong)}" if wrong else "")
    cells_THWC = resize_crop(picked_THWC, SHEET_CELL, round(SHEET_CELL * W / H))
    return strip(cells_THWC, f"{caption}\n{verdict}", num_lines=3)


def device_name(tree: Tree) -> str:
    """What the tree's device calls itself."""
    return tree.runtime.device_name(tree.device)


if __name__ == "__main__":
    sys.exit(main())
