"""One conversion from beginning to end; what it does, it tells line by line."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError
from common.host import peak_process_memory_mb

from .casting import Rounding, cast
from .companions import check_companions, find_config, write_companions
from .foreign import translate
from .kinds import Kind
from .layouts import Weights, find_weights
from .outputs import (
    Target,
    Written,
    check_room,
    cut_into_shards,
    find_target,
    whole_target,
    write_index,
    write_verified,
)
from .pytorch_file import import_torch
from .sources import open_source, sha256_of
from .tensors import Content, Tensor, in_words

TOOL = "open-sora-plan-twins tools.convert"
Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the command line says."""

    source: Path
    destination: Path
    also: tuple[Path, ...] = ()  # other parts of the same model
    to: str | None = None  # a format's name; None: by the suffix of the destination
    kind: str = "auto"
    dtype: str = "keep"
    shard_gb: float | None = None  # None: one file
    config: Path | None = None
    use_ema: bool = True
    drop: tuple[str, ...] = ()  # beginnings of names
    allow_overflow: bool = False


def convert(job: Job, say: Tell = print, warn: Tell = print) -> list[Written]:
    """Convert, verify and tell. The destination appears whole or not at all.

    Raises:
        InputError: where, what was there, what was wanted and what to do.
    """
    start = time.perf_counter()
    content = open_source(job.source, job.use_ema, job.also)
    if job.kind != "any":
        content = translate(content)
    target = find_target(job.destination, job.to, content.files)
    _check_sharding(job.shard_gb, target)
    if target.format.name == "pt":
        import_torch(f"writing {target.path}")
    weights = find_weights(content, job.kind, job.use_ema, job.drop)
    tensors, rounding = cast(weights.tensors, job.dtype, job.allow_overflow)
    config, origin = find_config(job.config, content, job.destination)
    check_room(target, tensors)
    if target.is_folder:
        check_companions(target.path, config)

    hashes = {file: sha256_of(file) for file in content.files}
    for line in _lines_before(content, hashes, weights):
        say(line)
    if config is not None:
        say(f"config    {_fate_of_config(target)}{origin}")
    elif weights.kind.needs_config and target.format.name == "safetensors":
        warn(
            f"no config.json beside {content.files[0]} or in it, and weights cannot be loaded without one: "
            "add the one they were trained with, or convert again with --config FILE"
        )
    metadata = {"format": "pt", "source_sha256": _sums(hashes), "tool": TOOL}
    metadata |= {"config": json.dumps(config)} if config is not None else {}
    copied = []
    with whole_target(target) as temporary:
        written = _write(target, temporary, weights.kind, tensors, metadata, job.shard_gb)
        if target.is_folder:
            copied = write_companions(temporary, target.path, content.files[0].parent, weights.kind, config)
    for line in [*_lines_after(tensors, rounding, written, copied), _cost(start)]:
        say(line)
    return written


def _fate_of_config(target: Target) -> str:
    if target.is_folder:
        return ""
    if target.format.name == "safetensors":
        return "into the metadata, "
    return f"not written, a {target.path.suffix} has no place for it: keep the one "


def _lines_before(content: Content, hashes: Mapping[Path, str], weights: Weights) -> Iterator[str]:
    """What was found."""
    for file, digest in hashes.items():
        yield f"read      {file} ({content.format}, {in_words(file.stat().st_size)}) sha256 {digest}"
    for note in weights.notes:
        yield f"          {note}"
    yield f"kind      {weights.kind.name}"


def _lines_after(
    tensors: Mapping[str, Tensor], rounding: Rounding, written: Sequence[Written], copied: Sequence[str]
) -> Iterator[str]:
    """What came of it."""
    for line in rounding.lines() if rounding.num_tensors else []:
        yield f"cast      {line}"
    for file in written:
        yield f"wrote     {file.path} ({in_words(file.num_bytes)}) sha256 {file.sha256}"
    if copied:
        yield f"copied    {', '.join(copied)}"
    total = in_words(sum(tensor.nbytes for tensor in tensors.values()))
    yield f"verified  {len(tensors)} tensors, {total}: read back, equal"


def _cost(start: float) -> str:
    seconds, peak = time.perf_counter() - start, int(peak_process_memory_mb() * 2**20)
    return f"took      {seconds:.1f} s, at most {peak / 1e6:.0f} MB of memory"


def _check_sharding(shard_gb: float | None, target: Target) -> None:
    if shard_gb is None or (target.is_folder and target.format.name == "safetensors" and shard_gb > 0):
        return
    raise InputError(
        f"destination {target.path} as {target.format.name}: --shard-gb {shard_gb:g} wants a positive number "
        "and a model directory of safetensors; leave it out, or choose a directory"
    )


def _write(
    target: Target,
    temporary: Path,
    kind: Kind,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    shard_gb: float | None,
) -> list[Written]:
    """Write the weights to `temporary`, which will become the target."""
    if not target.is_folder:
        return [Written(target.path, *write_verified(target.format, temporary, tensors, metadata))]
    stem, suffix = kind.stem_in(target.format.name), target.format.folder_suffix
    shards = cut_into_shards(tensors, stem, suffix, shard_gb)
    if len(shards) > 1:
        write_index(temporary, f"{stem}{suffix}.index.json", shards)
    return [
        Written(target.path / name, *write_verified(target.format, temporary / name, shard, metadata))
        for name, shard in shards.items()
    ]


def _sums(hashes: Mapping[Path, str]) -> str:
    """The hashes as sha256sum prints them."""
    names = {file: file.name.encode(errors="backslashreplace").decode() for file in hashes}
    return "\n".join(f"{digest}  {names[file]}" for file, digest in hashes.items())
