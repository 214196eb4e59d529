"""A small cache of latents and text states, and what its tests share."""

import json

import numpy as np
import pytest
from safetensors import safe_open

from common.config import build
from common.data.buckets import Bucket
from common.data.encoded import EncodedLoader
from common.data.t2v_config import T2VDataConfig
from common.encoding import (
    EncodeConfig,
    Item,
    list_shards,
    shard_path,
    write_index,
    write_no_caption,
    write_shard,
)
from common.parallel import Mesh

LONG, IMAGE = Bucket(5, 32, 48), Bucket(1, 32, 32)
LATENT = {LONG: (4, 2, 4, 6), IMAGE: (4, 1, 4, 4)}
L, E = 6, 3
MADE_WITH = {"vae": "v", "text": "t", "data": "d"}
SEED = 5


def item(number, bucket, epoch=0, name=None, dtype="float16"):
    """Clip `number`, and arrays that tell it from any other."""
    rng = np.random.default_rng([number, epoch])
    moments_ZTHW = rng.standard_normal(LATENT[bucket]).astype(dtype)
    text_LE = rng.standard_normal((1 + number % L, E)).astype(dtype)
    return Item(name or f"{number}.mp4", number, epoch, f"clip {number}", bucket, moments_ZTHW, text_LE)


def write_cache(folder, shards, made_with=MADE_WITH):
    """A whole cache of lists of items."""
    folder.mkdir(exist_ok=True)
    steps = [range(i, i + 1) for i in range(len(shards))]
    write_no_caption(folder, np.full((2, E), 7, np.float16), made_with)
    for number, items in enumerate(shards):
        write_shard(shard_path(folder, number), items, steps[number], made_with)
    content = list_shards(folder, steps, made_with, L)
    write_index(folder, content)
    return content


def items_of_two_sizes():
    """21 long clips and 9 pictures, in shards of 7."""
    items = [item(number, IMAGE if number % 10 in (2, 5, 8) else LONG) for number in range(30)]
    return [items[i : i + 7] for i in range(0, 30, 7)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoded") / "cache"
    write_cache(folder, items_of_two_sizes())
    return folder


def data(folder, **changes):
    tree = {
        "annotations": "anything.jsonl",
        "sizes": {"max_tokens": 6},
        "encoded": str(folder),
        "drop_caption_ratio": 0.0,
        "workers": 0,
    }
    return build(T2VDataConfig, {**tree, **changes}, where="test")


def loader(folder, batch_size=2, mesh=Mesh(), made_with=MADE_WITH, **changes):  # noqa: B008
    return EncodedLoader(data(folder, **changes), made_with, batch_size, SEED, mesh)


def batches(folder, start=0, stop=40, **kwargs):
    return dict(loader(folder, **kwargs).batches(start, stop))


def rows(batches):
    """The samples of all batches, as bytes."""
    return [
        tuple(batch[key][i].tobytes() for key in ("moments_BZTHW", "text_BLE", "keep_BL"))
        for batch in batches.values()
        for i in range(len(batch["names"]))
    ]


def numbers(folder, batches):
    """Which clips the batches hold, by what the shards say of themselves."""
    found = []
    for batch in batches.values():
        for name in batch["names"]:
            file, _, place = name.split()
            with safe_open(folder / file, framework="numpy") as shard:
                found.append(json.loads(shard.metadata()["items"])[int(place)]["number"])
    return found


def settings(**changes):
    tree = {
        "vae": {"config": {}, "random_seed": 0},
        "text": {"kind": "minilm"},
        "data": {"generated": True, "generated_sizes": [[5, 32, 32]]},
        "clips": 8,
    }
    return build(EncodeConfig, {**tree, **changes}, where="test")
