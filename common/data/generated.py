"""Scenes drawn on the fly as training data: without end, each with its caption, none twice."""

from .annotated import padding_share
from .buckets import Bucket
from .items import SceneItem
from .report import BucketReport, Report
from .t2v_config import T2VDataConfig


class GeneratedClips:
    """Which scene is where in which step: they are numbered, and a number is a scene."""

    def __init__(self, config: T2VDataConfig, batch: int):
        self.config, self.batch = config, batch
        self.buckets = config.buckets

    def item(self, step: int, place: int) -> SceneItem:
        """One of the batch of all ranks together; the sizes take turns."""
        bucket = self.buckets[step % len(self.buckets)]
        number = step * self.batch + place
        return SceneItem(bucket, f"scene {number}", number)

    def pad_to(self) -> Bucket | None:
        """Batches are of one size."""
        return None

    def report(self, ranks: int = 1) -> Report:
        """The sizes; there is no epoch."""
        multiple = self.config.token_multiple
        return Report(
            source="generated scenes",
            scanned=0,
            kept=0,
            dropped={},
            unreadable=[],
            assumed_fps=0,
            batch=self.batch,
            ranks=ranks,
            buckets=[BucketReport(str(bucket), 0, bucket.num_tokens, 0) for bucket in self.buckets],
            steps_per_epoch=None,
            repeated=0,
            padding_share=padding_share(self.buckets, [1] * len(self.buckets), None, multiple),
        )
