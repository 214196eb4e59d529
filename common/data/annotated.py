"""The clips that annotations name: selected, grouped by size, dealt out step by step."""

from collections.abc import Sequence

import numpy as np

from common.errors import InputError
from common.noise import generator, index_of

from .annotations import Annotations, read_annotations
from .buckets import Bucket, rounded_up
from .grouping import Dealer, by_size
from .items import ClipItem
from .lengths import add_lengths
from .report import BucketReport, Report
from .selection import KEPT, REASONS, select
from .t2v_config import T2VDataConfig

SCORES = {"aesthetic": "min_aesthetic", "motion": "min_motion", "tech": "min_tech"}


class AnnotatedClips:
    """Which clip is where in which step; a pure function of (config, batch, seed)."""

    def __init__(self, config: T2VDataConfig, batch: int, seed: int):
        """Scan the annotations.

        Args:
            batch: samples of all ranks together.

        Raises:
            InputError: a file is missing or of another format, or no clip is left.
        """
        assert config.annotations is not None
        assert config.sizes is not None
        self.config, self.batch, self.seed = config, batch, seed
        self.annotations = read_annotations(config.annotations, config.root)
        draws = generator(seed, index_of("drop short")).random(len(self.annotations))
        low = _low_scores(config, self.annotations)
        self.selection = select(self.annotations.columns(), config, config.sizes, draws, low)
        lacking = np.flatnonzero(self.selection.reason == REASONS.index("no number of frames"))
        probed = add_lengths(self.annotations, lacking)
        columns = self.annotations.columns()
        if len(probed):
            self.selection = select(columns, config, config.sizes, draws, low)
        members = np.flatnonzero(self.selection.reason == KEPT)
        chosen = self.selection
        sizes = np.stack([chosen.num_frames, chosen.height, chosen.width], axis=1)[members]
        groups = [members[group] for group in by_size(sizes)]
        if config.group:
            groups = self._large(groups)
        self.buckets = [self._bucket(group[0]) for group in groups]
        if not groups:
            told = "".join(f"\n  {what}" for what in self.annotations.unreadable_named)
            raise InputError(
                f"annotations {config.annotations}: got no usable clip, wanted some; "
                f"dropped: {self._dropped()}{told}"
            )
        kept = self.selection.reason == KEPT
        self.assumed_fps = int((kept & np.isnan(columns.fps) & ~columns.is_image).sum())
        self.derived_lengths = int((kept & self.annotations.column("derived") & ~columns.is_image).sum())
        self.probed_lengths = int(kept[probed].sum())
        self.groups = groups
        self._deal = Dealer(groups if config.group else [members], batch, seed)

    def item(self, step: int, place: int) -> ClipItem:
        """One of the batch of all ranks together."""
        _, samples = self._deal(step)
        return self._item(samples[place], f"step {step} sample {place}")

    def substitute(self, step: int, place: int, attempt: int) -> ClipItem:
        """Another clip of the same bucket for one that turned out broken."""
        group, _ = self._deal(step)
        members = self._deal.groups[group]
        stream = f"step {step} sample {place} attempt {attempt}"
        other = generator(self.seed, index_of(f"{stream} which")).integers(len(members))
        return self._item(members[other], stream)

    def pad_to(self) -> Bucket | None:
        """The size all clips are padded to; None where batches are of one size."""
        return None if self.config.group else Bucket(*(max(sides) for sides in zip(*self.buckets)))

    def report(self, ranks: int = 1) -> Report:
        """What the scan found and how an epoch is made of it."""
        batches = [-(-len(group) // self.batch) for group in self.groups]
        clips = sum(map(len, self.groups))
        steps, size = self._deal.steps_per_epoch, self.pad_to()
        return Report(
            source=str(self.config.annotations),
            scanned=len(self.annotations),
            kept=clips,
            dropped=self._dropped(),
            unreadable=self.annotations.unreadable_named,
            assumed_fps=self.assumed_fps,
            derived_lengths=self.derived_lengths,
            probed_lengths=self.probed_lengths,
            batch=self.batch,
            ranks=ranks,
            buckets=[
                BucketReport(str(bucket), len(group), bucket.num_tokens, number if self.config.group else 0)
                for bucket, group, number in zip(self.buckets, self.groups, batches)
            ],
            steps_per_epoch=steps,
            repeated=steps * self.batch - clips,
            padding_share=padding_share(
                self.buckets, [len(group) for group in self.groups], size, self.config.token_multiple
            ),
            padded_to=size and size.num_tokens,
        )

    def _large(self, groups: list[np.ndarray]) -> list[np.ndarray]:
        """The groups that fill enough batches; the others are dropped."""
        least = self.config.min_bucket_batches * self.batch
        for group in groups:
            if len(group) < least:
                self.selection.reason[group] = REASONS.index("bucket too small (min_bucket_batches)")
        return [group for group in groups if len(group) >= least]

    def _dropped(self) -> dict[str, int]:
        return {reason: count for reason, count in self.selection.counts().items() if reason != REASONS[KEPT]}

    def _bucket(self, index: int) -> Bucket:
        chosen = self.selection
        return Bucket(int(chosen.num_frames[index]), int(chosen.height[index]), int(chosen.width[index]))

    def _item(self, index: int, stream: str) -> ClipItem:
        return ClipItem(self.annotations.entry(int(index)), self._bucket(index), stream, int(index))


def _low_scores(config: T2VDataConfig, annotations: Annotations) -> np.ndarray:
    """The entries below one of the least scores, or without it."""
    low = np.zeros(len(annotations), bool)
    for column, option in SCORES.items():
        least = getattr(config, option)
        if least is not None:
            low |= ~(annotations.column(column) >= least)  # not <: NaN is not enough either
    return low


def padding_share(
    buckets: Sequence[Bucket], clips: Sequence[int], pad_to: Bucket | None, multiple: int
) -> float:
    """The share of padding among the tokens of all clips, the filling up to `multiple` included."""
    real = sum(bucket.num_tokens * count for bucket, count in zip(buckets, clips))
    computed = sum(
        rounded_up((pad_to or bucket).num_tokens, multiple) * count for bucket, count in zip(buckets, clips)
    )
    return 1 - real / computed
