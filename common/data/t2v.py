"""Batches of clips with captions for the transformer: read ahead, the same for any number of workers.

Shape legend: B batch, C channels, T frames, H height, W width.
"""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from common.data.loader import Loader
from common.errors import InputError
from common.parallel import Mesh

from .annotated import AnnotatedClips
from .batch import pad, stack
from .broken import MAX_TRIES, BrokenFiles
from .generated import GeneratedClips
from .items import ClipItem, Sample, SceneItem, T2VReader
from .report import Report
from .t2v_config import T2VDataConfig

ONE_PROCESS = Mesh()


class T2VLoader:
    """Batches for one rank. In a step all ranks have clips of one size; rank r of P has every P-th."""

    def __init__(
        self,
        config: T2VDataConfig,
        batch_size: int,
        seed: int,
        mesh: Mesh = ONE_PROCESS,
        substitute: bool = True,
    ):
        """Scan the annotations.

        Args:
            substitute: another clip takes the place of a broken one; False: it stays empty.

        Raises:
            InputError: a file is missing or of another format, or no clip is left.
        """
        if batch_size < 1:
            raise InputError(f"data: got batch_size={batch_size}, wanted 1 or more")
        self.config, self.batch_size, self.mesh = config, batch_size, mesh
        self.substitute = substitute
        batch = batch_size * mesh.size
        self.source = (
            GeneratedClips(config, batch) if config.generated else AnnotatedClips(config, batch, seed)
        )
        self._places = mesh.share(range(batch))  # ours in the batch of all ranks
        self.reader = T2VReader(config, seed)
        self.broken = BrokenFiles("clips", self.source.report().kept, config.max_bad_share)

    def report(self) -> Report:
        """What there is, what was dropped and why, and what an epoch is; `str` of it is a table."""
        return self.source.report(self.mesh.size)

    def batches(
        self, start_step: int = 0, stop_step: int | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(step, batch) for each step before `stop_step`; None: endlessly.

        A batch has `x_BCTHW` (float32 in [-1, 1]), `captions`, `names` and `numbers` (lists; a number is that
        of one clip), and `keep_BTHW`: which latent cells hold video, or None where batches are not padded.

        Raises:
            InputError: more than `max_bad_share` of the clips tried so far are broken.
            ChildProcessError: a worker died.
        """
        loader = Loader(self.plan, self.reader, self.config.workers, self.config.prefetch)
        with closing(loader.batches(start_step, stop_step)) as batches:
            for step, samples in batches:
                tried = [self._accept(step, *pair) for pair in zip(self._places, samples)]
                accepted = [sample for sample in tried if sample is not None]
                if accepted:
                    yield step, self._batch(accepted)

    def plan(self, step: int) -> list[ClipItem | SceneItem]:
        """This rank's items of a step."""
        return [self.source.item(step, place) for place in self._places]

    def summary(self) -> str:
        """What was skipped so far."""
        return self.broken.summary()

    def _batch(self, samples: list[Sample]) -> dict[str, Any]:
        clips = [sample.x_CTHW for sample in samples if sample.x_CTHW is not None]
        size = self.source.pad_to()
        x_BCTHW, keep_BTHW = (stack(clips), None) if size is None else pad(clips, size)
        return {
            "x_BCTHW": x_BCTHW,
            "captions": [sample.caption for sample in samples],
            "keep_BTHW": keep_BTHW,
            "names": [sample.name for sample in samples],
            "numbers": [sample.number for sample in samples],
        }

    def _accept(self, step: int, place: int, sample: Sample) -> Sample | None:
        """The sample, or for a broken one another of its bucket, or none; broken ones are counted."""
        for attempt in range(MAX_TRIES):
            self.broken.tried.add(sample.number)
            if sample.defect is None:
                return sample
            self.broken.defects[sample.number] = sample.defect
            self.broken.check()
            if not self.substitute:
                return None
            assert isinstance(self.source, AnnotatedClips)
            sample = self.reader(self.source.substitute(step, place, attempt))
        raise self.broken.too_many()
