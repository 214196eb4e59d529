"""Turns one item of a batch into pixels and text: a pure function of (config, seed, item), in any process.

Shape legend: C channels, T frames, H height, W width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from common.errors import InputError, MediaError
from common.images import read_image, to_model
from common.noise import generator, index_of
from common.video import TooShortError

from .annotations import NO_CROP, Entry
from .broken import Defect
from .buckets import Bucket
from .frames import OtherRateError, read_frames
from .selection import UNKNOWN_FPS, choose_frames
from .t2v_config import T2VDataConfig
from .text import chooser, training_text
from .transforms import Box, fit_of

NEARLY = 0.02  # of the annotated height and width: encoders round
UNDECODABLE, TOO_SHORT = "undecodable", "shorter than annotated"
OTHER_SIZE, OTHER_RATE = "not of the annotated size", "not of the annotated rate"


class ClipItem(NamedTuple):
    """A clip of the annotations, to be cut and described by the random stream `stream`."""

    entry: Entry
    bucket: Bucket
    stream: str
    number: int  # of the entry


class SceneItem(NamedTuple):
    """A scene to be drawn by the random stream `stream`."""

    bucket: Bucket
    stream: str
    number: int


class Sample(NamedTuple):
    """One clip with its text; or what is wrong with it."""

    name: str  # of the file: clips cut from one have the same
    x_CTHW: np.ndarray | None
    caption: str = ""
    defect: Defect | None = None
    number: int = -1  # no other clip has this one


class OtherSizeError(MediaError):
    """The frames are not of the size that their annotation says."""


class T2VReader:
    """Reads any item; travels to the worker processes."""

    def __init__(self, config: T2VDataConfig, seed: int):
        self.config, self.seed = config, seed

    def __call__(self, item: ClipItem | SceneItem) -> Sample:
        rng = generator(self.seed, index_of(item.stream))
        return self._draw(item, rng) if isinstance(item, SceneItem) else self._read(item, rng)

    def _read(self, item: ClipItem, rng: np.random.Generator) -> Sample:
        path = item.entry.path
        try:
            x_CTHW = self._pixels(item, rng)
        except (InputError, OSError) as error:
            kinds = {OtherSizeError: OTHER_SIZE, OtherRateError: OTHER_RATE, TooShortError: TOO_SHORT}
            defect = Defect(kinds.get(type(error), UNDECODABLE), str(error), path)
            return Sample(path, None, defect=defect, number=item.number)
        return Sample(path, x_CTHW, self._text(item.entry.captions, item, rng), number=item.number)

    def _draw(self, item: SceneItem, rng: np.random.Generator) -> Sample:
        from common.data.drawing import render
        from common.data.scenes import caption, draw_scene

        scene = draw_scene(rng, heldout=False)
        sentence = caption(scene, rng)
        x_CTHW = to_model(render(scene, *item.bucket))[0]
        return Sample(item.stream, x_CTHW, self._text([sentence], item, rng), number=item.number)

    def _text(self, captions: Sequence[str], item: ClipItem | SceneItem, rng: np.random.Generator) -> str:
        kind = "image" if item.bucket.num_frames == 1 else "video"
        path, score = (item.entry.path, item.entry.aesthetic) if isinstance(item, ClipItem) else ("", np.nan)
        return training_text(self.config, captions, score, kind, path, chooser(rng), rng.random)

    def _pixels(self, item: ClipItem, rng: np.random.Generator) -> np.ndarray:
        entry = item.entry

        def fit(frames_THWC: np.ndarray) -> np.ndarray:
            return self._fit(frames_THWC, item)

        if entry.is_image:
            x_THWC = fit(read_image(entry.path)[None])
        else:
            fps = None if np.isnan(entry.fps) else entry.fps
            indices = choose_frames(
                entry.start,
                entry.num_frames,
                fps or UNKNOWN_FPS,
                self.config,
                lambda total, length: int(rng.integers(total - length + 1)),
                self.config.speed_factor,
            )
            x_THWC = read_frames(entry.path, indices, fit, fps)
        x_THWC *= np.float32(2 / 255)
        x_THWC -= 1
        return np.ascontiguousarray(x_THWC.transpose(3, 0, 1, 2))

    def _fit(self, frames_THWC: np.ndarray, item: ClipItem) -> np.ndarray:
        """Frames cut as annotated and brought to the size of the bucket."""
        entry, (_, H, W, _) = item.entry, frames_THWC.shape
        if entry.crop != NO_CROP:
            left, right, top, bottom = entry.crop
            if right > W or bottom > H:
                raise OtherSizeError(
                    f"{entry.path}: got frames of {H}x{W}, wanted rows {top} to {bottom} and columns {left} "
                    f"to {right} of them; correct crop"
                )
            frames_THWC = Box(top, left, bottom - top, right - left).cut(frames_THWC)
        elif not (np.isclose(H, entry.height, rtol=NEARLY) and np.isclose(W, entry.width, rtol=NEARLY)):
            raise OtherSizeError(
                f"{entry.path}: got frames of {H}x{W}, wanted {entry.height}x{entry.width} as annotated; "
                "correct resolution"
            )
        _, H, W, _ = frames_THWC.shape
        assert self.config.sizes is not None
        fit = fit_of(self.config.sizes, H, W) if H and W else None
        if fit is None or (fit.after.height, fit.after.width) != item.bucket[1:]:
            raise OtherSizeError(
                f"{entry.path}: got frames of {H}x{W}, wanted the annotated size, which gives "
                f"{item.bucket.height}x{item.bucket.width}; correct resolution or crop"
            )
        return fit(frames_THWC)
