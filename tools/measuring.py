"""What the tools share that measure a release: held-out scenes, a tree with its models, videos of a plan."""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from common import cli
from common.config import load
from common.data.scenes import Scene
from common.errors import InputError
from common.images import resize_crop, to_model, to_uint8
from common.models import TransformerConfig, VAEConfig
from common.oracle import Reading
from common.outputs import Job, batches, plan_jobs
from common.runs import RoundTripConfig, SampleConfig
from common.sample_plan import VideoPlan, plan_videos
from common.text import check_encoder
from tools.oracle import SHEET_CELL, Triple, clip_of, strip
from tools.parity.tree import Tree

SHEET_VIDEOS, SHEET_FRAMES = 24, 6
Run = Callable[[argparse.Namespace], int]


class Setting(NamedTuple):
    """Held-out scenes of one thing, and what makes videos of their captions."""

    config: SampleConfig
    tree: Tree
    vae: Any
    scenes: list[Scene]
    captions: list[str]
    jobs: list[Job]
    plan: VideoPlan

    @property
    def device(self) -> str:
        """What the tree's device calls itself."""
        return self.tree.runtime.device_name(self.tree.device)


def run_command(parser: argparse.ArgumentParser, argv: list[str] | None) -> int:
    """Parse a command line whose key=value may stand anywhere, and run it; the exit code."""
    given, rest = parser.parse_known_args(argv)
    if any("=" not in word or word.startswith("-") for word in rest) or (rest and "config" not in given):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    given.override = rest
    cv2.setNumThreads(1)
    try:
        return given.run(given)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def add_arguments(parser: argparse.ArgumentParser, clips: int, run: Run) -> None:
    """The arguments of a command that measures."""
    parser.add_argument("config", help="config of `sample`; key=value changes it")
    parser.add_argument("--tree", choices=("ms", "pt"), default="ms")
    parser.add_argument("--clips", type=int, default=clips)
    parser.add_argument("--batch", type=int, default=10, help="videos denoised together")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes; the noise has the config's seed")
    parser.add_argument("--sheet", metavar="FILE.png", help="write the first samples as strips")
    parser.add_argument(
        "--json", metavar="FILE.json", help="write every reading, the config and the versions"
    )
    parser.set_defaults(run=run)


def prepare(given: argparse.Namespace) -> Setting:
    """Draw the scenes, read the config, load the VAE.

    Raises:
        InputError: numbers of clips that cannot be, a config of another kind, or models that do not fit.
    """
    if given.clips < 2 or given.batch < 1 or given.seed < 0:
        raise InputError(
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
    model = config.transformer.resolve(TransformerConfig, "transformer")
    plan = plan_videos(config, len(captions), vae_config, model)
    vae = tree.loading.load_vae(config.vae, vae_config, config.vae_dtype, tree.device)
    return Setting(config, tree, vae, scenes, captions, plan_jobs(captions, 1, config.seed), plan)


class Sampler:
    """Makes the videos of a setting as `sample` of its tree does."""

    def __init__(self, setting: Setting):
        self.setting, config, tree = setting, setting.config, setting.tree
        model = config.transformer.resolve(TransformerConfig, "transformer")
        transformer = tree.loading.load_transformer(config.transformer, model, config.dtype, tree.device)
        table, guidance = config.sampler.table(), config.sampler.guidance()
        sampler = tree.pipeline.LatentSampler(transformer, table, guidance, config.dtype)
        chunks, noise = config.vae_chunk_frames, config.noise_strength
        self.make = tree.long_video.VideoMaker(sampler, setting.vae, cli.Stopwatch(), chunks, noise)
        check_encoder(config.text, model.caption_channels)
        self.text = tree.sample.encode_prompts(config, setting.captions, tree.device)

    def __call__(self, plan: VideoPlan) -> Iterator[list[np.ndarray]]:
        """Batches of videos, uint8 (T, H, W, 3), of which the plan gives frames."""
        groups = batches(self.setting.jobs, self.setting.config.batch_size, plan.sizes)
        for _, made in self.setting.tree.sample.videos(plan, groups, self.make, self.text, True):
            yield [to_uint8(pixels_CTHW) for pixels_CTHW in made.pixels_BCTHW]


def restore(setting: Setting, videos: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Batches of videos through the VAE and back, uint8 (T, H, W, 3)."""
    config, vae, batch = setting.config, setting.vae, setting.config.batch_size
    chunk_frames = config.vae_chunk_frames * vae.config.stride_thw[0]
    trip = RoundTripConfig(vae=config.vae, input="", vae_dtype=config.vae_dtype, chunk_frames=chunk_frames)
    for start in range(0, len(videos), batch):
        x_BCTHW = np.concatenate([*map(to_model, videos[start : start + batch])])
        pixels_BCTHW = setting.tree.reconstruct.round_trip(vae, x_BCTHW, trip)
        yield [to_uint8(pixels_CTHW) for pixels_CTHW in pixels_BCTHW]


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
