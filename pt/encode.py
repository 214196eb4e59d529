"""A cache of latents and text states, for training: python -m pt.encode CONFIG [key=value ...]"""

import sys
from pathlib import Path

from tqdm import tqdm

from common import cli
from common.data.buckets import Bucket
from common.data.t2v import T2VLoader
from common.encoding import (
    NO_CAPTION,
    EncodeConfig,
    Item,
    fingerprint,
    plan_shards,
    shard_items,
    shard_path,
    write_index,
    write_shard,
)
from common.files import write_safetensors
from common.models import VAEConfig
from common.parallel import mesh_from_environment
from common.training.ranks import together

from . import runtime
from .encoders import CaptionEncoder, ClipEncoder
from .parallel import Ranks

USAGE = """
python -m pt.encode CONFIG [key=value ...]
    python -m pt.encode configs/encode_tiny.yaml output=outputs/encoded
"""
SHOWN = 10  # messages about captions that were cut


def encode(config: EncodeConfig) -> None:
    """Write this rank's shards that are not there yet; then rank 0 lists them all."""
    mesh = mesh_from_environment()
    device = runtime.setup(config.device, mesh.local_rank)
    ranks = Ranks(mesh, device)
    folder = cli.prepare_folder(config.output)
    vae_config: VAEConfig = config.vae.resolve(VAEConfig, "vae")
    made_with = fingerprint(config.vae, config.text, config.data)
    data = config.data.replace(drop_caption_ratio=0.0, min_bucket_batches=0)
    loader = T2VLoader(data, config.batch_size, config.seed)
    if ranks.rank == 0:
        print(loader.report())
    steps_per_epoch = loader.report().steps_per_epoch
    shards = plan_shards(config, steps_per_epoch)
    missing = [n for n in mesh.share(range(len(shards))) if not shard_items(shard_path(folder, n), made_with)]
    clips = ClipEncoder(config.vae, vae_config, config.vae_dtype, device, config.vae_chunk_frames)
    captions = CaptionEncoder(config.text, device)
    with tqdm(total=sum(len(shards[n]) for n in missing), unit="batch", disable=ranks.rank > 0) as bar:
        for number in missing:
            items: list[Item] = []
            for step, batch in loader.batches(shards[number].start, shards[number].stop):
                items.extend(encode_batch(batch, step // (steps_per_epoch or step + 1), clips, captions))
                bar.update()
            write_shard(shard_path(folder, number), items, made_with, config.stored_dtype)
    if ranks.rank == 0:
        states_BLE, keep_BL = captions([""])
        nothing = states_BLE[0][keep_BL[0]].astype(config.stored_dtype)
        write_safetensors(folder / NO_CAPTION, {"text": nothing}, {"format": "np"})
    for message in captions.cut[:SHOWN]:
        print(f"warning: {message}", file=sys.stderr)
    print(f"rank {ranks.rank}: {len(missing)} shards written; {loader.summary()}")
    together(ranks, lambda: None)  # every rank's shards are there
    if ranks.rank == 0:
        finish(config, folder, len(shards), made_with)


def encode_batch(batch: dict, epoch: int, clips: ClipEncoder, captions: CaptionEncoder) -> list:
    """The items of a cache that a batch becomes."""
    x_BCTHW = batch["x_BCTHW"]
    B, C, T, H, W = x_BCTHW.shape
    moments_BZTHW = clips(x_BCTHW)
    states_BLE, keep_BL = captions(batch["captions"])
    again = f" #{epoch + 1}" if epoch else ""
    return [
        Item(
            f"{batch['names'][i]}{again}",
            batch["captions"][i],
            Bucket(T, H, W),
            moments_BZTHW[i],
            states_BLE[i][keep_BL[i]],
        )
        for i in range(B)
    ]


def finish(config: EncodeConfig, folder: Path, num_shards: int, made_with: dict[str, str]) -> None:
    """The index and the report."""
    paths = [shard_path(folder, number) for number in range(num_shards)]
    count = write_index(folder, paths, made_with, config.text.max_length)
    cli.write_report(folder / "encode.json", config, clips=count, versions=runtime.versions())
    print(f"{folder}  {count} clips in {num_shards} shards")


if __name__ == "__main__":
    cli.main(EncodeConfig, encode, USAGE)
