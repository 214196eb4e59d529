"""Videos, or with one frame images, from prompts: python -m ms.sample CONFIG [key=value ...]"""

import math
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import cli
from common.captions import read_prompts
from common.images import to_uint8
from common.models import TransformerConfig, VAEConfig
from common.outputs import Job, batches, plan_jobs, write_frames, write_tensors
from common.parallel import mesh_from_environment
from common.runs import SampleConfig, latent_size
from common.sharing import check_tokens
from common.text import tokenize

from . import runtime
from .loading import load_transformer, load_vae
from .parallel import ALONE, Ranks
from .pipeline import LatentSampler, decode, seeded_noise
from .text import TextEncoder

USAGE = """
python -m ms.sample CONFIG [key=value ...]
    python -m ms.sample configs/sample_demo.yaml prompt="a red ball rolls over grass" seed=7
    python -m ms.sample configs/sample_demo.yaml prompt=prompts.txt     (a prompt per line; docs/inference.md)
"""


def sample(config: SampleConfig) -> None:
    """Make this rank's share of the videos and write each with a report beside it."""
    mesh = mesh_from_environment()
    device = runtime.setup(config.device, mesh.local_rank)
    prompts = read_prompts(config.prompt)
    vae_config = config.vae.resolve(VAEConfig, "vae")
    transformer_config = config.transformer.resolve(TransformerConfig, "transformer")
    latent_thw = latent_size(config, vae_config, transformer_config)
    num_tokens = math.prod(latent_thw) // transformer_config.patch_size**2
    check_tokens(config.parallel.sequence, transformer_config, num_tokens)
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
    with watch.stage("text"):
        states, keep = encode_prompts(config, prompts, device, transformer_config.caption_channels)
    for batch in batches(jobs, config.batch_size):
        text = select_text(states, keep, batch, sampler.guided)
        shape = (len(batch), transformer_config.in_channels, *latent_thw)
        with watch.stage("denoise"):
            latents = draw(sampler, text, shape, batch, mesh.rank == 0)
        if group.rank > 0:  # the first of those that share a sequence writes
            continue
        with watch.stage("decode"):
            pixels = decode(vae, latents, config.vae_chunk_frames)
        latents = runtime.to_numpy(latents)
        for job, video, latent in zip(batch, pixels, latents, strict=True):
            with watch.stage("write"):
                frames = to_uint8(video)
                names = write_frames(folder, job.stem, frames, config.fps)
                if config.save_tensors:
                    write_tensors(folder / f"{job.stem}.safetensors", frames_THWC=frames, latent_CTHW=latent)
            report(config, job, names, watch, device, folder)


def encode_prompts(config: SampleConfig, prompts: list[str], device: str, width: int) -> tuple:
    """Text states and mask of the negative prompt (row 0) and every prompt, as NumPy; the encoder is freed
    again.

    Raises:
        ValueError: the encoder is not as wide as the transformer's captions.
    """
    texts = [config.negative_prompt, *(config.prompt_template.format(prompt) for prompt in prompts)]
    ids, keep, cut = tokenize(config.text, texts)
    for message in cut:
        print(f"warning: {message}", file=sys.stderr)
    encoder = TextEncoder(config.text, device)
    if encoder.width != width:
        raise ValueError(
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


def draw(sampler: LatentSampler, text: tuple, shape: tuple, batch: list[Job], show: bool):
    """Latents of a batch, with a progress bar."""
    states, keep = text
    noise = seeded_noise(shape, [job.seed for job in batch])
    with tqdm(total=len(sampler.table), desc=batch[0].stem, unit="step", disable=not show) as bar:
        return sampler(states, keep, shape, noise, lambda step: advance(bar))


def advance(bar: tqdm) -> None:
    """One step done."""
    bar.update()


def report(
    config: SampleConfig, job: Job, names: list[str], watch: cli.Stopwatch, device: str, folder: Path
) -> None:
    """Write what made a video beside it, and say where it is."""
    cli.write_report(
        folder / f"{job.stem}.json",
        config,
        prompt=job.prompt,
        seed=job.seed,
        files=names,
        device=runtime.device_name(device),
        versions=runtime.versions(),
        seconds_so_far=watch.seconds,
        peak_memory_mb=round(runtime.peak_memory_mb(device), 1),
    )
    print(f"{folder / names[0]}  seed {job.seed}  {job.prompt!r}")


if __name__ == "__main__":
    cli.main(SampleConfig, sample, USAGE)
