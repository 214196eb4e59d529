"""A cache of latents and text states, for training: python -m ms.encode CONFIG [key=value ...]"""

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import cli
from common.data.buckets import Bucket
from common.data.t2v import T2VLoader
from common.encoding import (
    EncodeConfig,
    Item,
    as_stored,
    has_no_caption,
    list_shards,
    order_of,
    plan_shards,
    shard_items,
    shard_path,
    write_index,
    write_no_caption,
    write_shard,
)
from common.fingerprint import fingerprint
from common.i2v_training import Draw, show
from common.models import VAEConfig
from common.parallel import mesh_from_environment

from . import runtime
from .encoders import CaptionEncoder, ClipEncoder

USAGE = """
python -m ms.encode CONFIG [key=value ...]
    python -m ms.encode configs/encode_tiny.yaml output=outputs/encoded
"""


def encode(config: EncodeConfig) -> None:
    """Write this rank's shards that are not there yet; the last rank to be ready lists them all.

    Ranks do not talk, so none waits for another.
    """
    mesh = mesh_from_environment()
    device = runtime.setup(config.device, mesh.local_rank)
    runtime.check_dtypes(device, {"vae_dtype": config.vae_dtype, "text.dtype": config.text.dtype})
    runtime.compile_operators(device, config.op_compile)
    folder = cli.prepare_folder(config.output)
    vae_config: VAEConfig = config.vae.resolve(VAEConfig, "vae")
    made_with = fingerprint(config.vae, config.text, config.data, config.conditions)
    made_with["order"] = order_of(config)
    data = config.data.replace(drop_caption_ratio=0.0, min_bucket_batches=0)
    loader = T2VLoader(data, config.batch_size, config.seed, substitute=False)
    report = loader.report()
    if mesh.rank == 0:
        print(report)
    shards = plan_shards(config, report.steps_per_epoch)
    missing = {
        shard_path(folder, number): shards[number]
        for number in mesh.share(range(len(shards)))
        if shard_items(shard_path(folder, number), shards[number], made_with) is None
    }
    lacks_no_caption = mesh.rank == 0 and not has_no_caption(folder, made_with)
    if missing or lacks_no_caption:
        clips = ClipEncoder(config.vae, vae_config, config.vae_dtype, device, config.vae_chunk_frames)
        captions = CaptionEncoder(config.text, device)
        if lacks_no_caption:
            write_no_caption(folder, encode_nothing(config, captions), made_with)
        with tqdm(total=sum(map(len, missing.values())), unit="batch", disable=mesh.rank > 0) as bar:
            for path, steps in missing.items():
                items: list[Item] = []
                for step, batch in loader.batches(steps.start, steps.stop):
                    epoch = step // report.steps_per_epoch if report.steps_per_epoch else 0
                    items += encode_batch(config, step, epoch, batch, clips, captions)
                    bar.update()
                write_shard(path, items, steps, made_with)
        warn_of_cuts(captions)
    print(f"rank {mesh.rank}: {len(missing)} shards written; {loader.summary()}")
    finish(config, folder, shards, made_with)


def encode_nothing(config: EncodeConfig, captions: CaptionEncoder) -> np.ndarray:
    """The text states (L,E) of the empty caption; in a batch of the usual size, which is compiled anyway."""
    states_BLE, keep_BL = captions([""] * config.batch_size)
    return as_stored(states_BLE[0][keep_BL[0]], config.stored_dtype, "text of an empty caption")


def encode_batch(
    config: EncodeConfig, step: int, epoch: int, batch: dict, clips: ClipEncoder, captions: CaptionEncoder
) -> list[Item]:
    """The items of a cache that a batch becomes."""
    x_BCTHW = batch["x_BCTHW"]
    B, C, T, H, W = x_BCTHW.shape
    moments_BZTHW = clips(x_BCTHW)
    states_BLE, keep_BL = captions(batch["captions"])
    shown = encode_shown(config, step, batch, clips)
    return [
        Item(
            batch["names"][i],
            batch["numbers"][i],
            epoch,
            batch["captions"][i],
            Bucket(T, H, W),
            as_stored(moments_BZTHW[i], config.stored_dtype, f"latent of {batch['names'][i]}"),
            as_stored(states_BLE[i][keep_BL[i]], config.stored_dtype, f"text of {batch['names'][i]}"),
            *shown[i],
        )
        for i in range(B)
    ]


def encode_shown(config: EncodeConfig, step: int, batch: dict, clips: ClipEncoder) -> list[tuple]:
    """What an image-to-video model is shown of each clip, as moments, and which frames; else nothing."""
    x_BCTHW, places = batch["x_BCTHW"], range(len(batch["names"]))
    if config.conditions is None:
        return [() for _ in places]
    stride, (masks, *_) = clips.vae.config.stride_thw, config.conditions.stages
    shown = show(config.conditions, masks, x_BCTHW, None, stride, Draw(config.seed, step, places))
    moments_BZTHW = clips(shown.x_BCTHW)
    return [
        (
            as_stored(
                moments_BZTHW[i], config.stored_dtype, f"latent of what is shown of {batch['names'][i]}"
            ),
            shown.given_BT[i].astype(np.uint8),
        )
        for i in places
    ]


def warn_of_cuts(captions: CaptionEncoder) -> None:
    """Say which captions were longer than the encoder takes."""
    if captions.num_cut:
        print(f"warning: {captions.num_cut} captions were cut; the first of them:", file=sys.stderr)
    for message in captions.cut:
        print(f"warning: {message}", file=sys.stderr)


def finish(config: EncodeConfig, folder: Path, shards: list[range], made_with: dict[str, str]) -> None:
    """The index and the report, if all shards are there."""
    content = list_shards(folder, shards, made_with, config.text.max_length)
    if content is None:
        print(f"{folder}  is not complete: other ranks are at work; if one failed, run encode again")
        return
    if write_index(folder, content):
        cli.write_report(folder / "encode.json", config, clips=content["clips"], versions=runtime.versions())
    print(f"{folder}  {content['clips']} clips in {len(shards)} shards")


if __name__ == "__main__":
    cli.main(EncodeConfig, encode, USAGE)
