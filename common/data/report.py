"""What training is going to see, before it starts."""

from dataclasses import asdict, dataclass
from typing import Any

MAX_LINES = 40  # buckets in the table


@dataclass(frozen=True)
class BucketReport:
    """One bucket: how many clips, tokens of all of them, and batches of an epoch (0: without end)."""

    bucket: str
    clips: int
    tokens_per_clip: int
    batches: int


@dataclass(frozen=True)
class Report:
    """Which clips are used, why others are not, and how an epoch is made of them."""

    source: str
    scanned: int  # 0: clips are drawn, without end
    kept: int
    dropped: dict[str, int]
    unreadable: list[str]  # the first of them
    assumed_fps: int  # kept videos without fps
    batch: int  # samples of all ranks
    ranks: int
    buckets: list[BucketReport]
    steps_per_epoch: int | None
    repeated: int  # samples that fill up the last batch of a bucket
    padding_share: float  # of the tokens that the model computes
    derived_lengths: int = 0  # kept videos whose num_frames is fps times duration
    probed_lengths: int = 0  # kept videos whose num_frames is that of the file's header
    padded_to: int | None = None  # tokens of every clip, where all are padded to one size

    @property
    def tokens(self) -> list[int]:
        """Of a clip of each bucket, as the model computes it."""
        return [self.padded_to or line.tokens_per_clip for line in self.buckets]

    @property
    def sizes(self) -> list[tuple[int, int, int]]:
        """Frames, height and width of each bucket."""
        sizes = (map(int, line.bucket.split("x")) for line in self.buckets)
        return [(frames, height, width) for frames, height, width in sizes]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [self._first_line(), *self._dropped(), *self._table()]
        end = f"padding {self.padding_share:.2%} of the tokens"
        if self.steps_per_epoch is not None:
            end = f"{self.repeated} samples repeated to fill batches; {end}"
            end = f"{self.steps_per_epoch} steps an epoch, {end}"
        return "\n".join([*lines, f"batch of {self.batch} over {self.ranks} ranks; {end}"])

    def _first_line(self) -> str:
        if not self.scanned:
            return f"data: {self.source}"
        notes = {
            "without fps, taken as 24": self.assumed_fps,
            "without num_frames, taken as fps times duration": self.derived_lengths,
            "without num_frames, taken from the file": self.probed_lengths,
        }
        told = "".join(f"; {number} {note}" for note, number in notes.items() if number)
        return f"data: {self.source}: {self.kept} of {self.scanned} clips are used{told}"

    def _dropped(self) -> list[str]:
        lines = [f"  dropped {count:>9}  {reason}" for reason, count in self.dropped.items()]
        return lines + [f"    {what}" for what in self.unreadable]

    def _table(self) -> list[str]:
        total = sum(line.clips * line.tokens_per_clip for line in self.buckets)
        lines = [f"  {'bucket':<14}{'clips':>9}{'tokens/clip':>13}{'of all tokens':>15}{'batches':>9}"]
        for line in self.buckets[:MAX_LINES]:
            if not self.scanned:
                lines.append(f"  {line.bucket:<14}{'drawn':>9}{line.tokens_per_clip:>13}")
                continue
            share = line.clips * line.tokens_per_clip / total
            lines.append(
                f"  {line.bucket:<14}{line.clips:>9}{line.tokens_per_clip:>13}{share:>15.1%}{line.batches:>9}"
            )
        more = len(self.buckets) - MAX_LINES
        return lines + [f"  and {more} smaller ones"] * (more > 0)
