"""Which clips are used, at which length, and which frames of a clip: or why not.

Frames are taken `fps` a second, of whatever a file has. Lengths are 4k+1, so that the VAE needs no padding.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from .buckets import VAE_STRIDE, SizesConfig, sizes_of

MIN_FRAMES = 29
SAME_FPS = 0.1  # rates this close are one: no frame is left out or repeated
UNKNOWN_FPS = 24.0  # is assumed where an annotation has none
KEPT = 0
REASONS = (  # why a clip is dropped, by number; the first that holds counts
    "kept",
    "unreadable entry",
    "no caption",
    "no resolution",
    "file type unknown",
    "score missing or too low",
    "smaller than the stride",
    "too small",
    "too wide or too tall",
    "no number of frames",
    "too long",
    "left out as short (drop_short_ratio)",
    "too short",
    "bucket too small (min_bucket_batches)",
)


class LengthConfig(Protocol):
    """What decides the length of a clip; see T2VDataConfig."""

    num_frames: int
    min_frames: int
    fps: float
    speed_factor: float
    max_excerpt: float
    drop_short_ratio: float
    latent_multiple: int


class Columns(NamedTuple):
    """What the selection looks at, an array each; see annotations.py."""

    unreadable: np.ndarray
    has_caption: np.ndarray
    known_type: np.ndarray
    is_image: np.ndarray
    height: np.ndarray  # 0 if not given
    width: np.ndarray
    num_frames: np.ndarray  # 0 if not given
    fps: np.ndarray  # NaN if not given


class Selection:
    """The verdict on every entry: `reason` (a number of REASONS), and its bucket if that is KEPT."""

    def __init__(self, reason: np.ndarray, num_frames: np.ndarray, height: np.ndarray, width: np.ndarray):
        self.reason = reason
        self.num_frames, self.height, self.width = num_frames, height, width

    def counts(self) -> dict[str, int]:
        """How many entries there are of each verdict that occurs."""
        found = np.bincount(self.reason, minlength=len(REASONS))
        return {name: int(count) for name, count in zip(REASONS, found) if count}


def select(
    columns: Columns,
    lengths: LengthConfig,
    sizes: SizesConfig,
    short_draw: np.ndarray,
    low_score: np.ndarray | bool = False,
) -> Selection:
    """Judge every entry.

    Args:
        short_draw: uniform numbers in [0, 1), one per entry, that decide about clips below `num_frames`.
        low_score: entries whose scores the config rejects.
    """
    video = ~columns.is_image
    fps = np.where(np.isnan(columns.fps), UNKNOWN_FPS, columns.fps)
    available = resampled_length(columns.num_frames, fps, lengths.fps)
    longest = lengths.max_excerpt * lengths.num_frames * lengths.speed_factor * fps / lengths.fps
    used = closest_length(
        np.minimum(available, lengths.num_frames), lengths.min_frames, lengths.latent_multiple
    )
    used = np.where(video, used, 1)
    size = sizes_of(sizes, columns.height, columns.width)
    short = video & (available < lengths.num_frames)
    faults = {
        "unreadable entry": columns.unreadable,
        "no caption": ~columns.has_caption,
        "no resolution": (columns.height <= 0) | (columns.width <= 0),
        "file type unknown": ~columns.known_type,
        "score missing or too low": low_score,
        "smaller than the stride": size.below_stride,
        "too small": size.too_small,
        "too wide or too tall": size.bad_aspect,
        "no number of frames": video & (columns.num_frames <= 0),
        "too long": video & (columns.num_frames > longest),
        "left out as short (drop_short_ratio)": short & (short_draw < lengths.drop_short_ratio),
        "too short": used < 1,
    }
    reason = np.zeros(len(fps), np.uint8)
    for number, name in reversed([*enumerate(REASONS)]):  # the first fault is written last
        if name in faults:
            reason[faults[name]] = number
    return Selection(reason, used.astype(np.int32), size.height.astype(np.int32), size.width.astype(np.int32))


def resampled_length(num_frames: Any, fps: Any, wanted_fps: float) -> Any:
    """How many frames a clip has at the wanted rate."""
    return np.ceil(num_frames / frame_interval(fps, wanted_fps)).astype(np.int64)


def frame_interval(fps: Any, wanted_fps: float) -> Any:
    """Frames of the file per frame taken; below 1 frames repeat."""
    return np.where(np.abs(fps - wanted_fps) < SAME_FPS, 1.0, fps / wanted_fps)


def closest_length(
    num_frames: Any, min_frames: int = MIN_FRAMES, latent_multiple: int = 1, stride: int = VAE_STRIDE[0]
) -> Any:
    """The greatest usable length up to `num_frames`, or -1 where that is below `min_frames`.

    Usable: one more than a multiple of `stride`, and the latent frames a multiple of `latent_multiple`.
    """
    latent = (num_frames - 1) // stride + 1
    length = (latent // latent_multiple * latent_multiple - 1) * stride + 1
    return np.where(length < max(min_frames, 1), -1, length)


def choose_frames(
    start: int,
    num_frames: int,
    fps: float,
    lengths: LengthConfig,
    begin: Callable[[int, int], int],
    speed_factor: float = 1.0,
) -> np.ndarray:
    """Indices of the frames to read of a clip that has `num_frames` from `start` on.

    A clip longer than wanted is first thinned, up to `speed_factor` times and not below the wanted length,
    then an excerpt is taken where `begin(total, length)` says.
    """
    interval = float(frame_interval(fps, lengths.fps))
    total = int(resampled_length(num_frames, fps, lengths.fps))
    # with a start other than 0 this rounds a few frames down by one, as in training of the released models
    frames = np.arange(start, start + num_frames, interval).astype(np.int64)[:total]
    wanted = lengths.num_frames
    if total > wanted and speed_factor > 1:
        count = max(wanted, int(total / speed_factor))
        frames = frames[np.linspace(0, total - 1, count, dtype=np.int64)]
    if len(frames) > wanted:
        first = begin(len(frames), wanted)
        frames = frames[first : first + wanted]
    length = int(closest_length(len(frames), lengths.min_frames, lengths.latent_multiple))
    assert length > 0, f"{len(frames)} frames: select() drops such clips"
    return frames[:length]
