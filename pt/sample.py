"""Videos, or with one frame images, from prompts and pictures: python -m pt.sample CONFIG [key=value ...]"""

import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import cli
from common.captions import read_prompts
from common.errors import InputError
from common.images import to_uint8
from common.models import TransformerConfig, VAEConfig
from common.outputs import Job, batches, plan_jobs, write_frames, write_tensors
from common.parallel import mesh_from_environment
from common.runs import SampleConfig
from common.sample_plan import VideoPlan, plan_videos
from common.text import tokenize
from common.windows import Join, check_joins

from . import runtime
from .loading import load_transformer, load_vae
from .long_video import Made, VideoMaker
from .parallel import ALONE, Ranks
from .pipeline import LatentSampler, Step
from .text import TextEncoder

USAGE = """
python -m pt.sample CONFIG [key=value ...]
    python -m pt.sample configs/sample_demo.yaml prompt="a red ball rolls over grass" seed=7
    python -m pt.sample configs/sample_demo.yaml prompt=prompts.txt     (a prompt per line; docs/inference.md)
    python -m pt.sample configs/sample_demo_i2v.yaml image=first.png prompt="the ball moves to the left"
    python -m pt.sample configs/sample_demo_i2v.yaml video=clip.mp4 keep=0:9 num_frames=33 prompt="it goes on"
"""


def sample(config: SampleConfig) -> None:
    """Make this rank's share of the videos and write each with a report beside it."""
    mesh = mesh_from_environment()
    device = runtime.setup(config.device, mesh.local_rank)
    runtime.compile_operators(device, config.op_compile)
    prompts = read_prompts(config.prompt)
    vae_config = config.vae.resolve(VAEConfig, "vae")
    transformer_config = config.transformer.resolve(TransformerConfig, "transformer")
    plan = plan_videos(config, len(prompts), vae_config, transformer_config)
    for message in plan.warnings if mesh.rank == 0 else ():
        print(f"warning: {message}", file=sys.stderr)
    table = config.sampler.table()
    samples_mesh = config.parallel.samples_mesh(mesh)
    folder = cli.prepare_folder(config.output)
    group = ALONE
    if config.parallel.sequence > 1:
        group = Ranks(mesh, device).neighbours(config.parallel.sequence)
    jobs = samples_mesh.share(plan_jobs(prompts, config.num_samples, config.seed))
    watch = cli.Stopwatch()

    with watch.stage("load"):
        transformer = load_transformer(
            config.transformer,
            transformer_config,
            config.dtype,
            device,
            kind=config.parallel.kind,
            group=group,
        )
        vae = load_vae(config.vae, vae_config, config.vae_dtype, device)
        guidance = (config.sampler.guidance_scale, config.sampler.guidance_rescale)
        sampler = LatentSampler(transformer, table, *guidance, config.dtype)
        make = VideoMaker(
            sampler,
            vae,
            watch,
            config.vae_chunk_frames,
            config.noise_strength,
            is_writer=group.rank == 0,
        )
    with watch.stage("text"):
        text = encode_prompts(config, prompts, device, transformer_config.caption_channels)
    for batch, made in videos(plan, batches(jobs, config.batch_size, plan.sizes), make, text, mesh.rank == 0):
        if made.pixels_BCTHW is None or not make.is_writer:
            continue
        for place, job in enumerate(batch):
            with watch.stage("write"):
                frames = to_uint8(made.pixels_BCTHW[place])
                names = write_frames(folder, job.stem, frames, config.fps)
                if config.save_tensors:
                    latents = name_latents([latent[place] for latent in made.latents])
                    write_tensors(folder / f"{job.stem}.safetensors", frames_THWC=frames, **latents)
            joins = check_joins(frames, plan.windows)
            warn_of_jumps(job, joins)
            report(config, job, names, watch, device, folder, joins)


def videos(
    plan: VideoPlan, groups: Iterable[list[Job]], make: VideoMaker, text: tuple, show: bool
) -> Iterator[tuple[list[Job], Made]]:
    """Jobs that are made together, and their videos, with a progress bar for each group.

    Args:
        text: what `encode_prompts` returned.
    """
    states, keep = text
    steps = len(make.sampler.table) * len(plan.windows)
    for jobs in groups:
        given = [plan.given[job.prompt_index] for job in jobs]
        selected = select_text(states, keep, jobs, make.sampler.guided)
        with tqdm(total=steps, desc=jobs[0].stem, unit="step", disable=not show) as bar:
            seeds, step_done = [job.seed for job in jobs], partial(advance, bar)
            made = make(selected, plan.windows, given, seeds, step_done)
        yield jobs, made


def encode_prompts(config: SampleConfig, prompts: list[str], device: str, width: int) -> tuple:
    """Text states and mask of the negative prompt (row 0) and every prompt, as NumPy; the encoder is freed
    again.

    Raises:
        InputError: the encoder is not as wide as the transformer's captions.
    """
    texts = [config.negative_prompt, *(config.prompt_template.format(prompt) for prompt in prompts)]
    ids, keep, cut = tokenize(config.text, texts)
    for message in cut:
        print(f"warning: {message}", file=sys.stderr)
    encoder = TextEncoder(config.text, device)
    if encoder.width != width:
        raise InputError(
            f"text: the encoder's states are {encoder.width} wide, the transformer was trained on {width}; "
            "use the text encoder the transformer was trained with"
        )
    with runtime.inference():
        rows = [runtime.to_numpy(encoder(ids[i : i + 1], keep[i : i + 1])) for i in range(len(texts))]
    return np.concatenate(rows), keep


def select_text(states: np.ndarray, keep: np.ndarray, batch: list[Job], guided: bool) -> tuple:
    """States and masks of a batch, repeated alike; under guidance the negative prompt's rows stand first."""
    rows = [1 + job.prompt_index for job in batch]
    if guided:
        rows = [0] * len(batch) + rows
    return states[rows], keep[rows]


def name_latents(latents: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Latents (C,T,H,W) of a video's windows by their names in a file."""
    if len(latents) == 1:
        return {"latent_CTHW": latents[0]}
    return {f"latent_{window}_CTHW": latent for window, latent in enumerate(latents)}


def warn_of_jumps(job: Job, joins: list[Join]) -> None:
    """Say where a video that was made in windows changes more than it should."""
    for join in joins:
        least, most = join.usual_motion
        if join.jumps:
            print(
                f"warning: {job.stem}: frame {join.frame} begins a window with a jump: brightness changes by "
                f"{join.brightness:.1f} grey levels (usual: {join.usual_brightness:.1f}), pixels by "
                f"{join.motion:.1f} (usual: {least:.1f} to {most:.1f}); raise overlap_frames",
                file=sys.stderr,
            )


def advance(bar: tqdm, step: Step) -> None:
    """One step done."""
    bar.update()


def report(
    config: SampleConfig,
    job: Job,
    names: list[str],
    watch: cli.Stopwatch,
    device: str,
    folder: Path,
    joins: list[Join],
) -> None:
    """Write what made a video beside it, and say where it is."""
    cli.write_report(
        folder / f"{job.stem}.json",
        config,
        prompt=job.prompt,
        seed=job.seed,
        files=names,
        joins=[{**join._asdict(), "jumps": join.jumps} for join in joins],
        device=runtime.device_name(device),
        versions=runtime.versions(),
        seconds_so_far=watch.seconds,
        peak_memory_mb=round(runtime.peak_memory_mb(device), 1),
    )
    print(f"{folder / names[0]}  seed {job.seed}  {job.prompt!r}")


if __name__ == "__main__":
    cli.main(SampleConfig, sample, USAGE)
