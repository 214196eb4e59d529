"""The `data` section of a run that trains the transformer."""

from pydantic import model_validator

from common.config import Config, key
from common.errors import InputError

from .buckets import TOKEN, Bucket, SizesConfig
from .selection import MIN_FRAMES, closest_length


class T2VDataConfig(Config):
    """Clips with captions: those that annotations name, or scenes drawn on the fly."""

    # data.txt with lines `root,file`; or one .json, .jsonl or .parquet file
    annotations: str | None = key(None, affects_result=False)
    # where the paths of a single annotation file begin; None: in its own folder
    root: str | None = key(None, affects_result=False)
    generated: bool = key(False)  # scenes (common/data/scenes.py), without those held out to measure on
    # num_frames, height, width: in turns, one a batch
    generated_sizes: tuple[tuple[int, int, int], ...] = key(())

    # a folder that python -m ms.encode made of these very clips, read instead
    encoded: str | None = key(None, affects_result=False)

    sizes: SizesConfig | None = key(None)  # of annotated clips
    num_frames: int = key(93, ge=1)  # at most; one more than a multiple of 4
    min_frames: int = key(MIN_FRAMES, ge=1)  # videos that give fewer are dropped
    fps: float = key(16.0, gt=0)  # frames are chosen so
    speed_factor: float = key(1.0, ge=1)  # clips longer than num_frames go up to so much faster
    max_excerpt: float = key(5.0, ge=1)  # clips this many times longer than num_frames are dropped
    drop_short_ratio: float = key(0.0, ge=0, le=1)  # of the clips shorter than num_frames
    latent_multiple: int = key(1, ge=1)  # of latent frames: the ranks that share a sequence by frames
    min_aesthetic: float | None = key(None)  # entries with a lower score, or none, are dropped
    min_motion: float | None = key(None)
    min_tech: float | None = key(None)

    # batches of one bucket; false: batches padded to one size, with a mask
    group: bool = key(True, affects_encoding=False)
    # buckets with fewer full batches are dropped
    min_bucket_batches: int = key(1, ge=0, affects_encoding=False)
    # the model's skip_stride squared, for the report alone
    token_multiple: int = key(16, ge=1, affects_result=False)
    # trained without text, for guidance
    drop_caption_ratio: float = key(0.1, ge=0, le=1, affects_encoding=False)
    # of those: a sentence that always fits
    stock_caption_ratio: float = key(0.0, ge=0, le=1, affects_encoding=False)
    keep_chinese: bool = key(True)  # False for text encoders that know no Chinese
    masking_notice: bool = key(False)  # tell of blurred faces in images whose path has /sam/ in it

    workers: int = key(2, ge=0, affects_result=False)  # processes that read; 0: a thread of the trainer
    prefetch: int = key(2, ge=0, affects_result=False)  # batches read ahead
    # of the clips tried; more broken ones stop the run
    max_bad_share: float = key(0.01, ge=0, le=1, affects_result=False)

    @model_validator(mode="after")
    def _one_source(self) -> "T2VDataConfig":
        if (self.annotations is not None) == self.generated:
            raise InputError("give exactly one of annotations and generated: true")
        if self.generated and not self.generated_sizes:
            raise InputError("generated: true needs generated_sizes, such as [[17, 64, 64], [1, 64, 64]]")
        if self.encoded is not None and (not self.group or self.stock_caption_ratio):
            raise InputError(
                "encoded clips are neither padded nor described anew: leave out group and stock_caption_ratio"
            )
        if not self.generated and self.sizes is None:
            raise InputError("annotations need sizes, such as {height: 352, width: 640} or {max_tokens: 924}")
        return self

    @model_validator(mode="after")
    def _usable_sizes(self) -> "T2VDataConfig":
        for size in self.generated_sizes:
            num_frames, height, width = size
            if (
                num_frames < 1
                or num_frames % 4 != 1
                or min(height, width) < 1
                or height % TOKEN
                or width % TOKEN
            ):
                raise InputError(
                    f"generated_sizes: {list(size)} is not of 4k+1 frames and multiples of {TOKEN} pixels"
                )
        nearest = int(closest_length(self.num_frames, 1, self.latent_multiple))
        if nearest != self.num_frames and not self.generated:
            raise InputError(
                f"num_frames: {self.num_frames} is not 4k+1 with k+1 a multiple of {self.latent_multiple} "
                f"(latent_multiple); the next below is {nearest}"
            )
        if self.num_frames < self.min_frames and not self.generated:
            raise InputError(f"num_frames: {self.num_frames} is below min_frames={self.min_frames}")
        return self

    @property
    def buckets(self) -> list[Bucket]:
        """The sizes of generated clips."""
        return [Bucket(*size) for size in self.generated_sizes]
