"""Latents and text states computed once and kept: what `python -m ms.encode` writes and training reads.

A cache is a folder of safetensors shards with an `index.json`. It belongs to what it was made with
(common/fingerprint.py), and may be moved.

Shape legend: Z latent channels, T frames, H height, W width (latent cells); L text tokens, E text width.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from .checkpoint import read_metadata
from .config import Config
from .data.buckets import Bucket
from .data.t2v_config import T2VDataConfig
from .errors import InputError
from .files import parse_json, read_json, write_json, write_safetensors
from .fingerprint import check_fingerprint
from .i2v_training import I2VConfig
from .runs import Device, DType, ModelSource
from .text import TextConfig

INDEX = "index.json"
NO_CAPTION = "no_caption.safetensors"  # text states of the empty caption, for guidance
ARRAYS = {"moments": "moments_ZTHW", "text": "text_LE", "shown": "shown_ZTHW", "given": "given_T"}
FORMAT = 1
STORED_DTYPES = Literal["float16", "float32"]


class EncodeConfig(Config):
    """`python -m ms.encode` / `python -m pt.encode`: a cache of latents and text states."""

    vae: ModelSource
    text: TextConfig
    data: T2VDataConfig  # captions are not dropped here but in training
    conditions: I2VConfig | None = None  # what an image-to-video model is shown of each clip, drawn once
    clips: int | None = Field(default=None, ge=1)  # generated scenes; annotated clips are all taken
    passes: int = Field(default=1, ge=1)  # over annotated clips, each with other excerpts and captions
    batch_size: int = Field(default=1, ge=1)  # clips that go through the VAE together
    clips_per_shard: int = Field(default=256, ge=1, le=16384)  # held in memory before they are written
    seed: int = Field(default=0, ge=0)
    device: Device = "auto"
    op_compile: bool = (
        True  # on Ascend, of what has no aclnn kernel; false: prebuilt kernels (docs/ascend.md)
    )
    vae_dtype: DType = "float32"
    vae_chunk_frames: int = Field(default=0, ge=0)  # pixel frames encoded at a time after the first; 0: all
    stored_dtype: STORED_DTYPES = "float16"
    output: str = "outputs/encoded"

    @model_validator(mode="after")
    def _check(self) -> "EncodeConfig":
        if self.data.generated == (self.clips is None):
            raise InputError(
                "clips says how many generated scenes to encode: give it with them, and only then"
            )
        if self.data.generated and self.passes > 1:
            raise InputError("passes is for annotated clips; generated scenes never repeat: raise clips")
        if self.clips is not None and self.clips % self.batch_size:
            raise InputError(f"clips: got {self.clips}, wanted a multiple of batch_size={self.batch_size}")
        if self.data.encoded is not None:
            raise InputError("data.encoded is a cache already; encode reads the clips themselves")
        if self.conditions is not None:
            self.conditions.check_one_stage()
        if not self.data.group:
            raise InputError("data.group: false pads batches; encoded clips have no padding")
        return self


class Item(NamedTuple):
    """One clip of a cache, its arrays as they are kept."""

    name: str  # of the file
    number: int  # of the clip: a file may give several
    epoch: int  # 0, 1, ...: in which pass
    caption: str
    bucket: Bucket
    moments_ZTHW: np.ndarray  # of the posterior: means, then log variances
    text_LE: np.ndarray  # without padding
    shown_ZTHW: np.ndarray | None = None  # moments of what an image-to-video model is shown
    given_T: np.ndarray | None = None  # and which of its frames are given, as 0 and 1


def order_of(config: EncodeConfig) -> str:
    """What decides which clips lie in which shard: the same to go on with, of no concern to training."""
    return f"seed={config.seed}, batch_size={config.batch_size}, clips_per_shard={config.clips_per_shard}"


def plan_shards(config: EncodeConfig, steps_per_epoch: int | None) -> list[range]:
    """The steps of the loader that make up each shard.

    Args:
        steps_per_epoch: of annotated clips; None: generated ones.
    """
    if steps_per_epoch is None:
        steps = (config.clips or 0) // config.batch_size
    else:
        steps = steps_per_epoch * config.passes
    each = max(1, config.clips_per_shard // config.batch_size)
    return [range(start, min(start + each, steps)) for start in range(0, steps, each)]


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"{number:06d}.safetensors"


def as_stored(array: np.ndarray, dtype: STORED_DTYPES, what: str) -> np.ndarray:
    """An array as it is kept.

    Raises:
        InputError: a value that is not finite, or that `dtype` cannot hold.
    """
    with np.errstate(over="ignore"):
        stored = array.astype(dtype)
    if np.isfinite(stored).all():
        return stored
    if np.isfinite(array).all():
        raise InputError(
            f"encode: {what} goes up to {np.abs(array).max():.4g}, wanted what {dtype} holds; set "
            "stored_dtype=float32 and go on, the shards that are there stay"
        )
    raise InputError(
        f"encode: {what} is not finite, wanted numbers; encode in float32 (vae_dtype, text.dtype), or check "
        "the model's weights"
    )


def write_shard(path: Path, items: Sequence[Item], steps: range, made_with: dict[str, str]) -> None:
    """One shard, whole or not at all; its metadata names what is in it.

    Args:
        steps: of the loader, which gave these items.
    """
    arrays = {}
    for place, item in enumerate(items):
        values = item._asdict()
        arrays |= {f"{place}.{name}": values[key] for name, key in ARRAYS.items() if values[key] is not None}
    listed = [item._asdict() for item in items]
    for entry in listed:
        for key in ARRAYS.values():
            del entry[key]
    metadata = {"steps": json.dumps([steps.start, steps.stop]), "items": json.dumps(listed)}
    _write(path, arrays, metadata, made_with)


def shard_items(path: Path, steps: range, made_with: dict[str, str]) -> list[dict] | None:
    """What a shard holds; None if there is none of just these steps.

    Raises:
        InputError: it was made with something else, or is not readable.
    """
    metadata = _read(path, made_with)
    if metadata is None or json.loads(metadata["steps"]) != [steps.start, steps.stop]:
        return None
    return json.loads(metadata["items"])


def write_no_caption(folder: Path, text_LE: np.ndarray, made_with: dict[str, str]) -> None:
    """Keep the text states of the empty caption."""
    _write(folder / NO_CAPTION, {"text": text_LE}, {}, {"text": made_with["text"]})


def has_no_caption(folder: Path, made_with: dict[str, str]) -> bool:
    """Whether the text states of the empty caption are there.

    Raises:
        InputError: they are of another text encoder, or not readable.
    """
    return _read(folder / NO_CAPTION, {"text": made_with["text"]}) is not None


def list_shards(
    folder: Path, shards: Sequence[range], made_with: dict[str, str], text_length: int
) -> dict[str, Any] | None:
    """The content of an index; None as long as a shard is missing. A clip that filled up a batch is listed
    once.

    Args:
        shards: the steps of each.
    """
    if not has_no_caption(folder, made_with):
        return None
    listed, seen = [], set()
    buckets: dict[tuple, int] = {}
    for number, steps in enumerate(shards):
        path = shard_path(folder, number)
        items = shard_items(path, steps, made_with)
        if items is None:
            return None
        places, numbers = [], []
        for place, item in enumerate(items):
            clip = item["number"], item["epoch"]
            if clip not in seen:
                seen.add(clip)
                places.append(place)
                numbers.append(buckets.setdefault(tuple(item["bucket"]), len(buckets)))
        listed.append({**_size(path), "items": places, "bucket": numbers})
    return {
        "format": FORMAT,
        "fingerprint": made_with,
        "clips": len(seen),
        "text_length": text_length,
        "buckets": [list(bucket) for bucket in buckets],
        "no_caption": _size(folder / NO_CAPTION),
        "shards": listed,
    }


def write_index(folder: Path, content: dict[str, Any]) -> bool:
    """Write what list_shards gave, unless just this is there; whether it was written.

    Raises:
        InputError: there is no clip to list.
    """
    if not content["clips"]:
        raise InputError(f"encoded {folder}: got no clip that could be read, wanted some; see max_bad_share")
    path = folder / INDEX
    if path.is_file() and read_json(path) == content:
        return False
    write_json(path, content)
    return True


def read_index(folder: str | Path, wanted: dict[str, str]) -> dict[str, Any]:
    """The index of a complete cache.

    Raises:
        InputError: none there, made with something else, or a shard is missing or cut off.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise InputError(
            f"encoded {folder}: no {INDEX}; wanted a cache that python -m ms.encode has finished: "
            "run it again, it goes on where it stopped"
        )
    index = read_json(folder / INDEX)
    if index.get("format") != FORMAT:
        raise InputError(f"encoded {folder}: format {index.get('format')}, wanted {FORMAT}; encode anew")
    check_fingerprint(index["fingerprint"], wanted, folder)
    for shard in (index["no_caption"], *index["shards"]):
        path = folder / shard["file"]
        size = path.stat().st_size if path.is_file() else None
        if size != shard["bytes"]:
            raise InputError(
                f"encoded {path}: {'missing' if size is None else f'{size} bytes'}, wanted {shard['bytes']} "
                "bytes; copy it again, or delete it and run encode again"
            )
    return index


def _write(
    path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str], made_with: dict[str, str]
) -> None:
    fingerprint = {"format": "np", "fingerprint": json.dumps(made_with)}
    write_safetensors(path, arrays, {**fingerprint, **metadata})


def _read(path: Path, made_with: dict[str, str]) -> dict[str, str] | None:
    """The metadata of a file of the cache; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        metadata = read_metadata(path)
        found = parse_json(metadata["fingerprint"], str(path))
    except (KeyError, InputError) as error:
        raise InputError(f"encoded {path}: not a readable shard ({error}); delete it") from None
    check_fingerprint(found, made_with, path.parent)
    return metadata


def _size(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size}
