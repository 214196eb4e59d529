"""Training data of the video VAE: clips and single frames from several sources.

The samples of all ranks together are numbered: step s of P ranks with batches of B takes samples s*B*P up to
(s+1)*B*P, rank r the r-th B of them. So two ranks read what one would read with twice the batch.

Shape legend: B batch, C channels, T frames, H height, W width.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from math import floor
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import field_validator

from common.config import Config, key
from common.errors import InputError
from common.images import to_model
from common.noise import generator, index_of
from common.parallel import Mesh

from .broken import BrokenFiles
from .clip_sources import Drawn, Files, SourceConfig, Want, open_source
from .loader import Loader

ONE_PROCESS = Mesh()


class ClipsConfig(Config):
    """Clips of one size and length from one or more sources."""

    sources: list[SourceConfig] = key(..., min_length=1)
    num_frames: int = key(..., ge=1)
    height: int = key(..., ge=16)
    width: int = key(..., ge=16)
    # take every n-th frame of a file, or n drawn from [least, greatest]
    sample_rate: int | tuple[int, int] = key(1)
    image_share: float = key(0.0, ge=0, le=1)  # of the batches; 0.25: every fourth is of single frames
    crop: Literal["centre", "random"] = key("centre")  # of files, once scaled to cover height x width
    random_flip: bool = key(False)  # left and right, in half of the clips
    workers: int = key(2, ge=0, affects_result=False)  # processes that read; 0: a thread of the trainer
    prefetch: int = key(2, ge=0, affects_result=False)  # batches read ahead
    # of the files tried; more broken ones stop the run
    max_bad_share: float = key(0.01, ge=0, le=1, affects_result=False)

    @field_validator("sample_rate")
    @classmethod
    def _rates(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        least, greatest = value if isinstance(value, tuple) else (value, value)
        if not 1 <= least <= greatest:
            raise InputError("wanted a number of at least 1, or [least, greatest]")
        return value

    def want(self, num_frames: int) -> Want:
        """What a sample of `num_frames` has to be."""
        rate = self.sample_rate
        rates = rate if isinstance(rate, tuple) else (rate, rate)
        return Want(num_frames, self.height, self.width, rates, self.crop == "random", self.random_flip)


def turn(index: int, shares: Sequence[float]) -> tuple[int, int]:
    """Whose turn is number `index` of turns taken in proportion to `shares`, and how many it had before.

    Evenly spread and in closed form, so that a run can start anywhere in the sequence.
    """
    for which, share in enumerate(shares):
        portion = share / sum(shares[which:])  # of the turns that those before have left; the last has 1
        before = floor(index * portion)
        if floor((index + 1) * portion) > before:
            return which, before
        index -= before
    raise AssertionError(f"shares {shares}: nobody's turn")


class ClipItem(NamedTuple):
    """Sample number `index` among the clips, or among the single frames."""

    index: int
    single: bool


class ClipReader:
    """Reads any sample of a config: a pure function of (config, seed, item), to be used in any process."""

    def __init__(self, config: ClipsConfig, seed: int):
        self.seed = seed
        self.wants = config.want(config.num_frames), config.want(1)
        self.sources = [open_source(source, seed) for source in config.sources]
        self.shares = (
            [s.weight * opened.has_clips for s, opened in zip(config.sources, self.sources)],
            [s.weight for s in config.sources],
        )

    def __call__(self, item: ClipItem) -> tuple[int, Drawn]:
        """The source's number, and what it drew."""
        which, position = turn(item.index, self.shares[item.single])
        rng = generator(self.seed, index_of(f"{'frame' if item.single else 'clip'} {item.index}"))
        return which, self.sources[which].draw(position, rng, self.wants[item.single])


class ClipLoader:
    """Batches of clips for one rank, read ahead by worker processes; broken files are counted and named."""

    def __init__(self, config: ClipsConfig, batch_size: int, seed: int, mesh: Mesh = ONE_PROCESS):
        """Find the files.

        Raises:
            InputError: a source has nothing, or nothing that the config can use.
        """
        if batch_size < 1:
            raise InputError(f"clips: got batch_size={batch_size}, wanted 1 or more")
        self.config, self.batch_size, self.mesh = config, batch_size, mesh
        self.reader = ClipReader(config, seed)
        self.image_share = 1.0 if config.num_frames == 1 else config.image_share
        for source, opened in zip(config.sources, self.reader.sources):
            if self.image_share == 0 and not opened.has_clips:
                raise InputError(
                    f"videos {source.videos}: got only images, wanted videos; "
                    "set image_share or num_frames=1 to read them, or leave the source out"
                )
        if self.image_share < 1 and not any(self.reader.shares[0]):
            raise InputError("clips: got only images, wanted videos; set image_share=1 or num_frames=1")
        files = [source for source in self.reader.sources if isinstance(source, Files)]
        number = sum(len(source.videos) + len(source.images) for source in files)
        self.broken = BrokenFiles("files", number, config.max_bad_share)

    def batches(
        self, start_step: int = 0, stop_step: int | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(step, {"x_BCTHW": float32 in [-1, 1], "names": list}) for each step before `stop_step`.

        Without `stop_step` it never ends.

        Raises:
            InputError: more than `max_bad_share` of the files tried so far are broken.
            ChildProcessError: a worker died.
        """
        loader = Loader(self.plan, self.reader, self.config.workers, self.config.prefetch)
        with closing(loader.batches(start_step, stop_step)) as batches:
            for step, samples in batches:
                clips = [to_model(self._accept(*sample)) for sample in samples]
                yield step, {"x_BCTHW": np.concatenate(clips), "names": [drawn.name for _, drawn in samples]}

    def plan(self, step: int) -> list[ClipItem]:
        """This rank's samples of a step."""
        which, ordinal = turn(step, (self.image_share, 1 - self.image_share))
        first = (ordinal * self.mesh.size + self.mesh.rank) * self.batch_size
        return [ClipItem(index, which == 0) for index in range(first, first + self.batch_size)]

    def summary(self) -> str:
        """What the loader has, and what it skipped so far."""
        has = "; ".join(source.describe() for source in self.reader.sources)
        if self.image_share == 0 and any(isinstance(s, Files) and s.images for s in self.reader.sources):
            has += " (images are not read: image_share is 0)"
        return f"{has}; {self.broken.summary()}" if self.broken else has

    def _accept(self, which: int, drawn: Drawn) -> np.ndarray:
        """The frames of a sample, once its broken files are counted."""
        self.broken.tried |= {(which, file) for file in drawn.tried}
        self.broken.defects.update(drawn.broken)
        if drawn.frames_THWC is None:
            raise self.broken.too_many()
        self.broken.check()
        return drawn.frames_THWC
