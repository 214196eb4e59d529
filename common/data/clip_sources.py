"""Where clips come from: the user's files, drawn scenes, and photographs under a moving camera.

A source draws one sample, given its place in the source's own sequence and the sample's own random stream, so
that a sample is a pure function of (seed, index).

Shape legend: T frames, H height, W width, C channels (RGB). Pixels are uint8.
"""

from collections.abc import Hashable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
from pydantic import model_validator

from common.config import Config, key
from common.errors import InputError
from common.images import read_image, resize_crop
from common.noise import generator, index_of
from common.video import TooShortError

from .broken import MAX_TRIES, Defect
from .clip_file import read_clip
from .photographs import find_photographs, glide, read_photograph
from .video_files import IMAGE_SUFFIXES, find_videos


class SourceConfig(Config):
    """One source of clips; exactly one of `videos`, `generated` and `photographs`."""

    videos: str | None = key(None)  # a folder searched recursively, a video or image file, or a .txt list
    generated: bool = key(False)  # scenes drawn on the fly (common/data/scenes.py)
    heldout: bool = key(False)  # generated scenes kept out of training, to measure on
    photographs: bool = key(False)  # freely licensed ones that the pip package scikit-image ships
    weight: float = key(1.0, gt=0, allow_inf_nan=False)  # share of the samples, relative to the others

    @model_validator(mode="after")
    def _one_kind(self) -> "SourceConfig":
        kinds = (self.videos is not None) + self.generated + self.photographs
        if kinds != 1:
            raise InputError(
                f"give exactly one of videos, generated: true and photographs: true, not {kinds}"
            )
        if self.heldout and not self.generated:
            raise InputError("heldout: true chooses among generated scenes; set generated: true or drop it")
        return self


class Want(NamedTuple):
    """What a sample has to be. `rates`: the least and the greatest step from frame to frame of a file."""

    num_frames: int
    height: int
    width: int
    rates: tuple[int, int] = (1, 1)
    random_crop: bool = False
    random_flip: bool = False


class Drawn(NamedTuple):
    """One sample, and the files that were opened for it, by number."""

    frames_THWC: np.ndarray | None  # None: MAX_TRIES files in a row were broken
    tried: tuple[int, ...] = ()
    broken: Mapping[Hashable, Defect] = {}  # by path
    name: str = ""  # of the file, or what was drawn


class Source(Protocol):
    """What the loader asks of a source; `position` counts its clips and its single frames apart."""

    has_clips: bool  # else only single frames

    def draw(self, position: int, rng: np.random.Generator, want: Want) -> Drawn: ...

    def describe(self) -> str: ...


def open_source(config: SourceConfig, seed: int) -> Source:
    """The source a config names; files are found now and opened later.

    Raises:
        InputError: nothing there, or a package is missing.
    """
    if config.videos is not None:
        return Files(config.videos, seed)
    return Scenes(config.heldout) if config.generated else Photographs()


class Files:
    """Video and image files, each once per epoch, in an order drawn anew for each epoch."""

    def __init__(self, videos: str, seed: int):
        paths = find_videos(videos, images=True)
        self.seed = seed
        self.images = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
        self.videos = [path for path in paths if path.suffix.lower() not in IMAGE_SUFFIXES]
        self.has_clips = bool(self.videos)

    def describe(self) -> str:
        counts = ((len(self.videos), "video"), (len(self.images), "image"))
        return ", ".join(f"{count} {name}{'s' * (count != 1)}" for count, name in counts if count)

    def draw(self, position: int, rng: np.random.Generator, want: Want) -> Drawn:
        """The file whose turn it is, or, while that is broken, others in an order drawn for this sample."""
        from_images = want.num_frames == 1 and bool(self.images)
        paths = self.images if from_images else self.videos
        tried, broken = [], {}
        for index in self._candidates(position, rng, "image" if from_images else "video", len(paths)):
            tried.append(index + from_images * len(self.videos))
            path = paths[index]
            frame = Frame(rng, want)
            try:
                if from_images:
                    frames_THWC = frame.cut(read_image(path)[None])
                else:
                    frames_THWC = read_clip(path, want.num_frames, want.rates, rng, frame.cut)
            except TooShortError as error:
                broken[str(path)] = Defect("too short", str(error), str(path))
            except (InputError, OSError) as error:
                broken[str(path)] = Defect("undecodable", str(error), str(path))
            else:
                return Drawn(frames_THWC, tuple(tried), broken, str(path))
        return Drawn(None, tuple(tried), broken)

    def _candidates(
        self, position: int, rng: np.random.Generator, kind: str, num_files: int
    ) -> Iterator[int]:
        epoch, place = divmod(position, num_files)
        first = int(_epoch_order(num_files, self.seed, f"{kind} epoch {epoch}")[place])
        yield first
        others = rng.permutation(num_files)[:MAX_TRIES]
        yield from (int(index) for index in others if index != first)


@lru_cache(maxsize=4)
def _epoch_order(num_files: int, seed: int, name: str) -> np.ndarray:
    return generator(seed, index_of(name)).permutation(num_files)


class Frame:
    """How the frames of one clip are cut to size: drawn once, applied to any number of frames."""

    def __init__(self, rng: np.random.Generator, want: Want):
        self.want = want
        self.top, self.left = rng.random(2) if want.random_crop else (0.5, 0.5)
        self.mirrored = want.random_flip and rng.random() < 0.5

    def cut(self, frames_THWC: np.ndarray) -> np.ndarray:
        """Scaled to cover the wanted size and cut: around the centre, or where the draw says."""
        if self.want.random_crop:
            _, H, W, _ = frames_THWC.shape
            scale = max(self.want.height / H, self.want.width / W)
            h, w = min(H, round(self.want.height / scale)), min(W, round(self.want.width / scale))
            top, left = round(self.top * (H - h)), round(self.left * (W - w))
            frames_THWC = frames_THWC[:, top : top + h, left : left + w]
        return self.flip(resize_crop(frames_THWC, self.want.height, self.want.width))

    def flip(self, frames_THWC: np.ndarray) -> np.ndarray:
        """Left and right exchanged, if the draw says so."""
        return np.ascontiguousarray(frames_THWC[:, :, ::-1]) if self.mirrored else frames_THWC


class Scenes:
    """Scenes drawn from the sample's random stream; they never repeat."""

    has_clips = True

    def __init__(self, heldout: bool):
        self.heldout = heldout

    def describe(self) -> str:
        return "generated scenes" + ", held out" * self.heldout

    def draw(self, position: int, rng: np.random.Generator, want: Want) -> Drawn:
        from .drawing import render
        from .scenes import draw_scene

        frames_THWC = render(draw_scene(rng, heldout=self.heldout), want.num_frames, want.height, want.width)
        return Drawn(Frame(rng, want).flip(frames_THWC), name=f"scene {position}")


class Photographs:
    """Photographs, seen by a camera that pans and zooms smoothly."""

    has_clips = True

    def __init__(self) -> None:
        self.paths = find_photographs()

    def describe(self) -> str:
        return f"{len(self.paths)} photographs"

    def draw(self, position: int, rng: np.random.Generator, want: Want) -> Drawn:
        path = self.paths[rng.integers(len(self.paths))]
        frames_THWC = glide(read_photograph(path), rng, want.num_frames, want.height, want.width)
        return Drawn(Frame(rng, want).flip(frames_THWC), name=path.name)
