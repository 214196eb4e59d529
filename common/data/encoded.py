"""Batches of latents and text states from a cache that `python -m ms.encode` made.

Shape legend: B batch, Z latent channels, T frames, H height, W width (latent cells); L text tokens, E text
width.
"""

from collections.abc import Iterator
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from common.data.loader import Loader
from common.encoding import NO_CAPTION, read_index
from common.errors import InputError
from common.noise import generator, index_of
from common.parallel import Mesh

from .annotated import padding_share
from .buckets import Bucket
from .grouping import Dealer, by_size
from .report import BucketReport, Report
from .t2v_config import T2VDataConfig

OPEN_SHARDS = 64


class Place(NamedTuple):
    """Where a clip lies, and whether it comes without its caption."""

    file: str
    number: int
    dropped: bool


class Stored(NamedTuple):
    """What lies there."""

    moments_ZTHW: np.ndarray
    text_LE: np.ndarray
    name: str
    shown_ZTHW: np.ndarray | None
    given_T: np.ndarray | None


class EncodedLoader:
    """Batches for one rank. In a step all ranks have clips of one size; rank r of P has every P-th."""

    def __init__(
        self, config: T2VDataConfig, fingerprint: dict[str, str], batch_size: int, seed: int, mesh: Mesh
    ):
        """Read the index.

        Args:
            fingerprint: what the cache must have been made with (common.encoding.fingerprint).

        Raises:
            InputError: no complete cache there, or one made with something else.
        """
        assert config.encoded is not None
        self.config, self.seed, self.mesh = config, seed, mesh
        self.folder = Path(config.encoded)
        self.batch = batch_size * mesh.size
        index = read_index(self.folder, fingerprint)
        self.text_length = index["text_length"]
        buckets = [Bucket(*size) for size in index["buckets"]]
        self.files = [shard["file"] for shard in index["shards"]]
        self.shard = np.concatenate([np.full(len(s["items"]), i) for i, s in enumerate(index["shards"])])
        self.number = np.concatenate([np.asarray(s["items"], int) for s in index["shards"]])
        bucket = np.concatenate([np.asarray(s["bucket"], int) for s in index["shards"]])
        groups = by_size(bucket[:, None])
        least = config.min_bucket_batches * self.batch
        self.groups = [group for group in groups if len(group) >= least]
        self.dropped = sum(len(group) for group in groups if len(group) < least)
        if not self.groups:
            raise InputError(
                f"encoded {self.folder}: no bucket of {len(bucket)} clips fills {config.min_bucket_batches} "
                f"batches of {self.batch}; lower batch_size or min_bucket_batches, or encode more clips"
            )
        self.buckets = [buckets[bucket[group[0]]] for group in self.groups]
        self._deal = Dealer(self.groups, self.batch, seed)
        self._places = mesh.share(range(self.batch))
        self._read = StoredReader(str(self.folder), "conditions" in fingerprint)

    def report(self) -> Report:
        """What there is, and what an epoch is; `str` of it is a table."""
        clips = [len(group) for group in self.groups]
        steps = self._deal.steps_per_epoch
        return Report(
            source=str(self.folder),
            scanned=sum(clips) + self.dropped,
            kept=sum(clips),
            dropped={"bucket too small (min_bucket_batches)": self.dropped} if self.dropped else {},
            unreadable=[],
            assumed_fps=0,
            batch=self.batch,
            ranks=self.mesh.size,
            buckets=[
                BucketReport(str(bucket), count, bucket.num_tokens, -(-count // self.batch))
                for bucket, count in zip(self.buckets, clips)
            ],
            steps_per_epoch=steps,
            repeated=steps * self.batch - sum(clips),
            padding_share=padding_share(self.buckets, clips, None, self.config.token_multiple),
        )

    def batches(
        self, start_step: int = 0, stop_step: int | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(step, batch) for each step before `stop_step`; None: endlessly.

        A batch has `moments_BZTHW`, `text_BLE` and `keep_BL` (padded to the encoder's length), and `names`;
        and for an image-to-video model `shown_BZTHW` and `given_BT`.
        """
        loader = Loader(self.plan, self._read, self.config.workers, self.config.prefetch)
        with closing(loader.batches(start_step, stop_step)) as batches:
            for step, stored in batches:
                yield step, self._batch(stored)

    def plan(self, step: int) -> list[Place]:
        """This rank's clips of a step; captions are dropped by the number of the sample."""
        _, samples = self._deal(step)
        return [self._place(step, place, int(samples[place])) for place in self._places]

    def summary(self) -> str:
        """Nothing is ever skipped."""
        return "skipped: none"

    def _place(self, step: int, place: int, clip: int) -> Place:
        draw = generator(self.seed, index_of(f"drop caption step {step} sample {place}")).random()
        file = self.files[self.shard[clip]]
        return Place(file, int(self.number[clip]), draw < self.config.drop_caption_ratio)

    def _batch(self, stored: list[Stored]) -> dict[str, Any]:
        _, E = stored[0].text_LE.shape
        text_BLE = np.zeros((len(stored), self.text_length, E), np.float32)
        keep_BL = np.zeros(text_BLE.shape[:2], bool)
        for row, keep, item in zip(text_BLE, keep_BL, stored):
            row[: len(item.text_LE)] = item.text_LE
            keep[: len(item.text_LE)] = True
        shown = {}
        if self._read.with_conditions:
            shown = {
                "shown_BZTHW": np.stack([x for item in stored if (x := item.shown_ZTHW) is not None]),
                "given_BT": np.stack([x for item in stored if (x := item.given_T) is not None]).astype(bool),
            }
        return {
            **shown,
            "moments_BZTHW": np.stack([item.moments_ZTHW for item in stored]),
            "text_BLE": text_BLE,
            "keep_BL": keep_BL,
            "names": [item.name for item in stored],
        }


class StoredReader:
    """Reads one clip; travels to the worker processes."""

    def __init__(self, folder: str, with_conditions: bool):
        self.folder, self.with_conditions = folder, with_conditions

    def __call__(self, place: Place) -> Stored:
        moments = self._tensor(place.file, f"{place.number}.moments")
        if place.dropped:
            text = self._tensor(NO_CAPTION, "text")
        else:
            text = self._tensor(place.file, f"{place.number}.text")
        shown = given = None
        if self.with_conditions:
            shown = self._tensor(place.file, f"{place.number}.shown")
            given = self._tensor(place.file, f"{place.number}.given")
        return Stored(moments, text, f"{place.file} clip {place.number}", shown, given)

    def _tensor(self, file: str, name: str) -> np.ndarray:
        path = Path(self.folder) / file
        try:
            return _open(str(path)).get_tensor(name).astype(np.float32)
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"encoded {path}: got {error}, wanted tensor {name}; copy the file again, or delete it and "
                "run encode again"
            ) from None


@lru_cache(maxsize=OPEN_SHARDS)
def _open(path: str) -> Any:
    """A shard, mapped into memory."""
    return safe_open(path, framework="numpy")
