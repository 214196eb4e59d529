"""Latents and text states computed once and kept: what `python -m ms.encode` writes and training reads.

A cache is a folder of safetensors shards with an `index.json`. It belongs to one VAE, one text encoder and
one selection of clips: a hash of each is kept, and a cache made with others is refused.

Shape legend: Z latent channels, T frames, H height, W width (latent cells); L text tokens, E text width.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from .checkpoint import read_metadata, weight_files
from .config import Config
from .data.annotations import annotation_files
from .data.buckets import Bucket
from .data.t2v_config import T2VDataConfig
from .files import write_json, write_safetensors
from .models import read_json
from .runs import Device, DType, ModelSource
from .text import TextConfig, model_dir

INDEX = "index.json"
NO_CAPTION = "no_caption.safetensors"  # text states of the empty caption, for guidance
FORMAT = 1
# keys of the data section that do not change what a clip or its caption is; files are known by their content
UNBOUND = (
    "annotations",
    "root",
    "encoded",
    "group",
    "min_bucket_batches",
    "token_multiple",
    "drop_caption_ratio",
    "stock_caption_ratio",
    "workers",
    "prefetch",
    "max_bad_share",
)
REMEDY = "encode the clips anew into another folder, or train with what the cache was made with"


class EncodeConfig(Config):
    """`python -m ms.encode` / `python -m pt.encode`: a cache of latents and text states."""

    vae: ModelSource
    text: TextConfig
    data: T2VDataConfig  # captions are not dropped here but in training
    clips: int | None = Field(default=None, ge=1)  # generated scenes; annotated clips are all taken
    passes: int = Field(default=1, ge=1)  # over annotated clips, each with other excerpts and captions
    batch_size: int = Field(default=1, ge=1)  # clips that go through the VAE together
    clips_per_shard: int = Field(default=512, ge=1)
    seed: int = Field(default=0, ge=0)
    device: Device = "auto"
    vae_dtype: DType = "float32"
    vae_chunk_frames: int = Field(default=0, ge=0)  # pixel frames encoded at a time after the first; 0: all
    stored_dtype: Literal["float16", "float32"] = "float16"
    output: str = "outputs/encoded"

    @model_validator(mode="after")
    def _check(self) -> "EncodeConfig":
        if self.data.generated == (self.clips is None):
            raise ValueError(
                "clips says how many generated scenes to encode: give it with them, and only then"
            )
        if self.data.encoded is not None:
            raise ValueError("data.encoded is a cache already; encode reads the clips themselves")
        if not self.data.group:
            raise ValueError("data.group: false pads batches; encoded clips have no padding")
        return self


class Item(NamedTuple):
    """One clip of a cache."""

    name: str
    caption: str
    bucket: Bucket
    moments_ZTHW: np.ndarray  # of the posterior: means, then log variances
    text_LE: np.ndarray  # without padding


def fingerprint(vae: ModelSource, text: TextConfig, data: T2VDataConfig) -> dict[str, str]:
    """A hash of each thing that decides what a cache holds."""
    settings = text.model_dump(exclude={"path", "dtype"})
    clips = data.model_dump(exclude=set(UNBOUND), exclude_defaults=True)
    return {
        "vae": _hash_of_model(vae),
        "text": _hash([settings, *_files(sorted(model_dir(text).iterdir()))]),
        "data": _hash([clips, *_files(annotation_files(data.annotations))]),
    }


def check_fingerprint(made_with: dict[str, str], wanted: dict[str, str], folder: Path) -> None:
    """Refuse a cache made with something else.

    Raises:
        ValueError: names what differs.
    """
    what = {
        "vae": "another VAE",
        "text": "another text encoder or max_length",
        "data": "other clips: annotations, sizes, lengths or captions",
    }
    wrong = [what[key] for key in wanted if made_with.get(key) != wanted[key]]
    if wrong:
        raise ValueError(f"encoded {folder}: it was made with {' and '.join(wrong)}; {REMEDY}")


def plan_shards(config: EncodeConfig, steps_per_epoch: int | None) -> list[range]:
    """The steps of the loader that make up each shard.

    Args:
        steps_per_epoch: of annotated clips; None: generated ones.
    """
    if steps_per_epoch is None:
        steps = -(-(config.clips or 0) // config.batch_size)
    else:
        steps = steps_per_epoch * config.passes
    each = max(1, config.clips_per_shard // config.batch_size)
    return [range(start, min(start + each, steps)) for start in range(0, steps, each)]


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"{number:06d}.safetensors"


def write_shard(
    path: Path, items: Sequence[Item], made_with: dict[str, str], dtype: Literal["float16", "float32"]
) -> None:
    """One shard, whole or not at all; its metadata names what is in it.

    Raises:
        ValueError: a value that `dtype` cannot hold.
    """
    arrays = {}
    for number, item in enumerate(items):
        for kind, array in (("moments", item.moments_ZTHW), ("text", item.text_LE)):
            stored = array.astype(dtype)
            if not np.isfinite(stored).all():
                raise ValueError(
                    f"encoded {path}: {kind} of {item.name} do not fit into {dtype}; set stored_dtype=float32"
                )
            arrays[f"{number}.{kind}"] = stored
    listed = [{"name": item.name, "caption": item.caption, "bucket": item.bucket} for item in items]
    metadata = {"format": "np", "fingerprint": json.dumps(made_with), "items": json.dumps(listed)}
    write_safetensors(path, arrays, metadata)


def shard_items(path: Path, made_with: dict[str, str]) -> list[dict] | None:
    """What a shard holds; None if there is none.

    Raises:
        ValueError: it was made with something else, or is not readable.
    """
    if not path.is_file():
        return None
    try:
        metadata = read_metadata(path)
        found, items = json.loads(metadata["fingerprint"]), json.loads(metadata["items"])
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"encoded {path}: not a readable shard ({error}); delete it") from None
    check_fingerprint(found, made_with, path.parent)
    return items


def write_index(folder: Path, shards: Iterable[Path], made_with: dict[str, str], text_length: int) -> int:
    """List what all shards hold; the number of clips. A clip that filled up a batch is listed once."""
    listed, seen = [], set()
    buckets: dict[tuple, int] = {}
    for path in shards:
        places, numbers = [], []
        for place, item in enumerate(shard_items(path, made_with) or []):
            if item["name"] not in seen:
                seen.add(item["name"])
                places.append(place)
                numbers.append(buckets.setdefault(tuple(item["bucket"]), len(buckets)))
        listed.append({"file": path.name, "bytes": path.stat().st_size, "items": places, "bucket": numbers})
    content = {
        "format": FORMAT,
        "fingerprint": made_with,
        "text_length": text_length,
        "buckets": list(buckets),
        "shards": listed,
    }
    write_json(folder / INDEX, content)
    return len(seen)


def read_index(folder: str | Path, wanted: dict[str, str]) -> dict[str, Any]:
    """The index of a complete cache.

    Raises:
        ValueError: none there, made with something else, or a shard is missing or cut off.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise ValueError(
            f"encoded {folder}: no {INDEX}; wanted a cache that python -m ms.encode has finished: "
            "run it again, it goes on where it stopped"
        )
    index = read_json(folder / INDEX)
    if index.get("format") != FORMAT:
        raise ValueError(f"encoded {folder}: format {index.get('format')}, wanted {FORMAT}; encode anew")
    check_fingerprint(index["fingerprint"], wanted, folder)
    for shard in index["shards"]:
        path = folder / shard["file"]
        size = path.stat().st_size if path.is_file() else None
        if size != shard["bytes"]:
            raise ValueError(
                f"encoded {path}: {'missing' if size is None else f'{size} bytes'}, wanted {shard['bytes']} "
                "bytes; copy it again, or delete it and run encode again"
            )
    return index


def _hash_of_model(source: ModelSource) -> str:
    if source.path is None:
        return _hash([source.model_dump()])
    path = Path(source.path)
    config = [path / "config.json"] if path.is_dir() else []
    return _hash([source.overrides, *_files([*config, *weight_files(path)])])


def _files(paths: Iterable[Path]) -> Iterable[bytes]:
    """The digest of each file's content: where they lie does not matter."""
    for path in paths:
        if path.is_file():
            with open(path, "rb") as file:
                yield hashlib.file_digest(file, "sha256").digest()


def _hash(parts: Iterable[Any]) -> str:
    """One hash of digests and of values that JSON can tell."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode())
    return total.hexdigest()
