"""Videos, or with one frame images, from prompts and pictures: python -m ms.sample CONFIG [key=value ...]"""

import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import cli
from common.ascend import check_attention
from common.captions import read_prompts
from common.conditions import trim_text
from common.errors import InputError, NotFiniteError
from common.images import to_uint8
from common.models import TransformerConfig, VAEConfig
from common.outputs import (
    Job,
    batches,
    check_free,
    digest,
    free_stem,
    plan_jobs,
    write_frames,
    write_tensors,
)
from common.parallel import Mesh, meeting, mesh_from_environment
from common.provenance import strangers
from common.runs import SampleConfig
from common.sample_plan import VideoPlan, plan_videos
from common.text import check_encoder, tokenize
from common.windows import Join, check_joins

from . import runtime
from .loading import load_transformer, load_vae
from .long_video import Made, VideoMaker
from .parallel import Group, Ranks
from .pipeline import LatentSampler, Step
from .text import TextEncoder

USAGE = """
python -m ms.sample CONFIG [key=value ...]
    python -m ms.sample configs/sample_demo.yaml prompt="a red ball rolls over grass" seed=7
    python -m ms.sample configs/sample_demo.yaml prompt=prompts.txt     (a prompt per line; docs/inference.md)
    python -m ms.sample configs/sample_demo_i2v.yaml image=first.png prompt="the ball moves to the left"
    python -m ms.sample configs/sample_demo_i2v.yaml video=clip.mp4 keep=0:9 num_frames=33 prompt="it goes on"
"""


def sample(config: SampleConfig) -> None:
    """Make this rank's share of the videos and write each with a report beside it."""
    mesh = mesh_from_environment()
    device = runtime.setup(config.device, mesh.local_rank)
    runtime.compile_operators(device, config.op_compile)
    prompts = read_prompts(config.prompt)
    vae_config = config.vae.resolve(VAEConfig, "vae")
    transformer_config = config.transformer.resolve(TransformerConfig, "transformer")
    check_encoder(config.text, transformer_config.caption_channels)
    for source in (config.transformer, config.vae):
        source.check_files()
    runtime.check_dtypes(device, config.dtypes)
    rows = config.batch_size * (2 if config.sampler.guidance().on else 1)
    check_attention(device, transformer_config, rows)
    plan = plan_videos(config, len(prompts), vae_config, transformer_config)
    notes = [*plan.warnings, *strangers(config.transformer, config.vae, config.text)]
    for message in notes if mesh.rank == 0 else ():
        print(f"warning: {message}", file=sys.stderr)
    config.sampler.table()  # refused now, if it is
    samples_mesh = config.parallel.samples_mesh(mesh)
    folder = cli.prepare_folder(config.output)
    jobs = samples_mesh.share(plan_jobs(prompts, config.num_samples, config.seed))
    for job in jobs:
        check_free(folder, job.stem, config, config.overwrite)
    with meeting(Ranks(mesh if config.parallel.sequence > 1 else Mesh(), device)) as ranks:
        group = ranks.neighbours(config.parallel.sequence)
        make_videos(config, jobs, plan, folder, device, group, show=mesh.rank == 0)


def make_videos(
    config: SampleConfig,
    jobs: list[Job],
    plan: VideoPlan,
    folder: Path,
    device: str,
    group: Group,
    show: bool,
) -> None:
    """Load the models, make the videos, write them.

    Args:
        group: ranks that share the tokens of one video.
        show: a progress bar.
    """
    watch, prompts = cli.Stopwatch(), read_prompts(config.prompt)
    transformer_config = config.transformer.resolve(TransformerConfig, "transformer")
    with watch.stage("text"):  # before the transformer is loaded: both need not fit into memory together
        text = encode_prompts(config, prompts, device)
        runtime.free_memory()
    with watch.stage("load"):
        transformer = load_transformer(
            config.transformer,
            transformer_config,
            config.dtype,
            device,
            kind=config.parallel.kind,
            group=group,
        )
        vae = load_vae(config.vae, config.vae.resolve(VAEConfig, "vae"), config.vae_dtype, device)
        sampler = LatentSampler(transformer, config.sampler.table(), config.sampler.guidance(), config.dtype)
        make = VideoMaker(
            sampler,
            vae,
            watch,
            config.vae_chunk_frames,
            config.noise_strength,
            is_writer=group.rank == 0,
        )
    for batch, made in videos(plan, batches(jobs, config.batch_size, plan.sizes), make, text, show):
        if made.pixels_BCTHW is None or not make.is_writer:
            continue
        for place, job in enumerate(batch):
            frames_THWC = to_uint8(made.pixels_BCTHW[place])
            latents = [latent[place] for latent in made.latents]
            write_job(config, job, frames_THWC, latents, plan, folder, device, watch)


def videos(
    plan: VideoPlan, groups: Iterable[list[Job]], make: VideoMaker, text: tuple, show: bool
) -> Iterator[tuple[list[Job], Made]]:
    """Jobs that are made together, and their videos, with a progress bar for each group.

    Args:
        text: what `encode_prompts` returned.

    Raises:
        InputError: values that are not finite, with the prompts they were made for.
    """
    states, keep = text
    steps = len(make.sampler.table) * len(plan.windows)
    for jobs in groups:
        given = [plan.given[job.prompt_index] for job in jobs]
        selected = select_text(states, keep, jobs, make.sampler.guided)
        with tqdm(total=steps, desc=jobs[0].stem, unit="step", disable=not show) as bar:
            seeds, step_done = [job.seed for job in jobs], partial(advance, bar)
            try:
                made = make(selected, plan.windows, given, seeds, step_done)
            except NotFiniteError as error:
                prompts = ", ".join(repr(jobs[place].prompt) for place in error.places)
                raise InputError(
                    f"{error}; prompts: {prompts}; set dtype=bfloat16 or float32 (float16 overflows above "
                    "65504), or lower sampler.guidance_scale"
                ) from None
        yield jobs, made


def encode_prompts(config: SampleConfig, prompts: list[str], device: str) -> tuple:
    """Text states and mask, as `trim_text` gives them, of the negative prompt (row 0) and every prompt; the
    encoder is not referred to afterwards.

    Raises:
        InputError: states that are not finite.
    """
    texts = [config.negative_prompt, *(config.prompt_template.replace("{}", prompt) for prompt in prompts)]
    ids, keep, notes = tokenize(config.text, texts)
    for message in notes:
        print(f"warning: {message}", file=sys.stderr)
    encoder = TextEncoder(config.text, device)
    with runtime.inference():
        rows = [runtime.to_numpy(encoder(ids[i : i + 1], keep[i : i + 1])) for i in range(len(texts))]
    for text, row in zip(texts, rows, strict=True):
        if not np.isfinite(row).all():
            raise InputError(
                f"text: the states of {text!r} are not finite with dtype {config.text.dtype}; set "
                "text.dtype=float32 or bfloat16 (T5 overflows in float16)"
            )
    return trim_text(np.concatenate(rows), keep)


def select_text(states: np.ndarray, keep: np.ndarray | None, batch: list[Job], guided: bool) -> tuple:
    """States and masks of a batch, repeated alike; under guidance the negative prompt's rows stand first."""
    rows = [1 + job.prompt_index for job in batch]
    if guided:
        rows = [0] * len(batch) + rows
    return states[rows], None if keep is None else keep[rows]


def write_job(
    config: SampleConfig,
    job: Job,
    frames_THWC: np.ndarray,
    latents: list[np.ndarray],
    plan: VideoPlan,
    folder: Path,
    device: str,
    watch: cli.Stopwatch,
) -> None:
    """Write a video with its report, under a name that nothing else has, and say where it is."""
    content = digest(frames_THWC)
    stem = free_stem(folder, job.stem, content, config.overwrite)
    with watch.stage("write"):
        names = write_frames(folder, stem, frames_THWC, config.fps)
        if config.save_tensors:
            write_tensors(folder / f"{stem}.safetensors", frames_THWC=frames_THWC, **name_latents(latents))
    joins = check_joins(frames_THWC, plan.windows)
    warn_of_jumps(stem, joins)
    cli.write_report(
        folder / f"{stem}.json",
        config,
        prompt=job.prompt,
        seed=job.seed,
        files=names,
        sha256=content,
        joins=[{**join._asdict(), "jumps": join.jumps} for join in joins],
        device=runtime.device_name(device),
        versions=runtime.versions(),
        seconds_so_far=watch.seconds,
        peak_memory_mb=round(runtime.peak_memory_mb(device), 1),
    )
    print(f"{folder / names[0]}  seed {job.seed}  {job.prompt!r}")


def name_latents(latents: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Latents (C,T,H,W) of a video's windows by their names in a file."""
    if len(latents) == 1:
        return {"latent_CTHW": latents[0]}
    return {f"latent_{window}_CTHW": latent for window, latent in enumerate(latents)}


def warn_of_jumps(stem: str, joins: list[Join]) -> None:
    """Say where a video that was made in windows changes more than it should."""
    for join in joins:
        least, most = join.usual_motion
        if join.jumps:
            print(
                f"warning: {stem}: frame {join.frame} begins a window with a jump: brightness changes by "
                f"{join.brightness:.1f} grey levels (usual: {join.usual_brightness:.1f}), pixels by "
                f"{join.motion:.1f} (usual: {least:.1f} to {most:.1f}); raise overlap_frames",
                file=sys.stderr,
            )


def advance(bar: tqdm, step: Step) -> None:
    """One step done."""
    bar.update()


if __name__ == "__main__":
    cli.main(SampleConfig, sample, USAGE)
