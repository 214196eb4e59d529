"""What a user gives of a video to be made: pictures at some of its frames, or frames of another video.

Shapes: N given frames, H height, W width, C channels (RGB).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import Field

from .config import Config
from .data.buckets import shrunk_to_area
from .data.transforms import Box, Fit, fit_to_size, stride_box
from .images import read_image
from .models import TransformerConfig
from .video import VideoReader

HW_STRIDE = 32  # pixels; sizes that are multiples never need padding
MOVING = (".gif", ".mp4", ".mkv", ".avi", ".mov", ".webm", ".mpg", ".ts")
NOTHING = "-"  # the entry of a prompt for which nothing is given


class GivenConfig(Config):
    """The keys of a sampling run that say what is given. None of them: the prompt alone."""

    image: str | list[str] | None = (
        None  # a picture, or several with commas between; .txt: a line for each prompt
    )
    at: list[int] | None = None  # frames that pictures become, -1 the last; of one: 0, of two: 0 and -1
    video: str | list[str] | None = None  # instead of pictures, a clip
    start: int = 0  # its frame that becomes the first; a negative one counts from its end
    keep: str = "0"  # which frames are given of it: numbers and first:stop, such as 0:9 or 0,8,-1
    max_hxw: int | None = Field(
        default=None, ge=HW_STRIDE**2
    )  # take the size from what is given, up to so many
    noise_strength: float = Field(
        default=0.0, ge=0
    )  # standard deviation of noise on it, in pixels of [-1, 1]


class Given(NamedTuple):
    """Frames that are given, and which ones of the video they are."""

    pictures: tuple[np.ndarray, ...] = ()  # uint8 (H, W, 3); sizes may differ
    indices: tuple[int, ...] = ()

    def size(self, max_hxw: int | None, height: int, width: int) -> tuple[int, int]:
        """Height and width of the video: the wanted ones, or the largest that what is given has in common.

        Raises:
            ValueError: that is smaller than 32 pixels.
        """
        if max_hxw is None or not self.pictures:
            return height, width
        fit = self._free(max_hxw)
        if min(fit.after.height, fit.after.width) < HW_STRIDE:
            raise ValueError(
                f"image: got {fit.before.height}x{fit.before.width} pixels (what all given pictures cover), "
                f"wanted {HW_STRIDE} or more each way; give larger ones, or leave max_hxw out to enlarge them"
            )
        return fit.after.height, fit.after.width

    def fitted(self, max_hxw: int | None, height: int, width: int) -> np.ndarray:
        """The frames in that size (N,H,W,3), uint8: cut around their centre, and scaled."""
        frames = []
        for picture_HWC in self.pictures:
            H, W, _ = picture_HWC.shape
            fit = fit_to_size(H, W, height, width)
            if max_hxw is not None:
                fit = self._free(max_hxw)
                box = fit.before
                fit = fit._replace(before=box._replace(top=(H - box.height) // 2, left=(W - box.width) // 2))
            frames.append(np.rint(fit(picture_HWC[None])[0]).astype(np.uint8))
        return np.stack(frames) if frames else np.zeros((0, height, width, 3), np.uint8)

    def _free(self, max_hxw: int) -> Fit:
        """The part all pictures have, shrunk to the area, cut to the stride."""
        H, W = (min(picture.shape[axis] for picture in self.pictures) for axis in (0, 1))
        h, w = (int(side) for side in shrunk_to_area(H, W, max_hxw))
        return Fit(Box(0, 0, H, W), (h, w), stride_box(h, w, HW_STRIDE))


def read_given(config: GivenConfig, num_prompts: int, num_frames: int) -> list[Given]:
    """What is given for each prompt.

    Raises:
        ValueError: a file that is missing or does not decode, frames outside the video, not one entry for
            each prompt, or images and video at once.
    """
    if config.image is not None and config.video is not None:
        raise ValueError("image, video: got both, wanted one of them; leave the other out")
    if config.image is None and config.video is None:
        idle = [name for name in ("at", "max_hxw") if getattr(config, name) is not None]
        if idle:
            raise ValueError(f"{idle[0]}: it is about given frames, and none are given; set image or video")
        return [Given()] * num_prompts
    key = "image" if config.video is None else "video"
    entries = _entries(key, getattr(config, key))
    if len(entries) not in (1, num_prompts):
        raise ValueError(
            f"{key}: got {len(entries)} entries for {num_prompts} prompts, wanted one for each or one for all"
        )
    read = [_read(config, key, entry, num_frames) for entry in entries]
    return read * num_prompts if len(read) == 1 else read


def _entries(key: str, spec: str | Sequence[str]) -> list[str]:
    if not isinstance(spec, str):
        return list(spec)
    if not spec.endswith(".txt"):
        return [spec]
    try:
        lines = Path(spec).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{key} {spec}: got {error}, wanted a UTF-8 text file with a line for each prompt"
        ) from None
    return [line.strip() for line in lines if line.strip()]


def _read(config: GivenConfig, key: str, entry: str, num_frames: int) -> Given:
    if entry == NOTHING:
        return Given()
    if key == "video":
        return _of_video(entry, config.start, config.keep, num_frames)
    paths = [entry] if Path(entry).is_file() else [path.strip() for path in entry.split(",")]
    for path in paths:
        if path.lower().endswith(MOVING):
            raise ValueError(
                f"image {path}: got a moving picture, wanted a still one; give it as video={path} keep=0, or "
                "save the frame you want as PNG"
            )
    at = {1: [0], 2: [0, -1]}.get(len(paths)) if config.at is None else config.at
    if at is None or len(at) != len(paths):
        raise ValueError(
            f"at: got {at} for {len(paths)} pictures, wanted a frame for each, such as at=[0, 8, -1]"
        )
    return Given(tuple(map(read_image, paths)), _inside(at, num_frames, "at"))


def _of_video(path: str, start: int, keep: str, num_frames: int) -> Given:
    indices = _inside(parse_keep(keep, num_frames), num_frames, "keep")
    with VideoReader(path) as reader:
        total = reader.info.num_frames
        first = start if start >= 0 else total + start
        last = first + max(indices)
        if first < 0 or last >= total:
            raise ValueError(
                f"video {path}: got {total} frames, wanted frames {first} to {last} of it (start={start}, "
                f"keep={keep}); keep fewer, or start elsewhere"
            )
        return Given(tuple(reader.frames([first + index for index in indices])), indices)


def check_given(given: Sequence[Given], transformer: TransformerConfig) -> None:
    """Refuse to give frames to a model that takes none.

    Raises:
        ValueError: it is a text-to-video model.
    """
    if not transformer.mask_channels and any(entry.indices for entry in given):
        raise ValueError(
            "image, video: got a text-to-video transformer, wanted one that takes images: its config.json "
            "has vae_scale_factor_t; set transformer.path, or leave image and video out"
        )


def parse_keep(keep: str, num_frames: int) -> list[int]:
    """The frames that `keep` means: numbers and first:stop with commas between, negative ones from the end.

    Raises:
        ValueError: it is not of that form, or names no frame.
    """
    found: list[int] = []
    for part in keep.split(","):
        try:
            bounds = [int(bound) if bound.strip() else None for bound in part.split(":")]
        except ValueError:
            bounds = []
        if len(bounds) == 2:
            found += range(num_frames)[slice(*bounds)]
        elif len(bounds) == 1 and bounds[0] is not None:
            found.append(bounds[0])
        else:
            raise ValueError(f"keep: got {keep!r}, wanted frames such as 0:9 or 0,8,-1")
    if not found:
        raise ValueError(f"keep: got {keep!r}, which names none of {num_frames} frames; such as 0:9")
    return found


def _inside(indices: Sequence[int], num_frames: int, key: str) -> tuple[int, ...]:
    """Indices counted from the start, in order.

    Raises:
        ValueError: one is outside the video, or stands there twice.
    """
    places = [index + num_frames if index < 0 else index for index in indices]
    wrong = [index for index, place in zip(indices, places, strict=True) if not 0 <= place < num_frames]
    if wrong:
        raise ValueError(f"{key}: got frame {wrong[0]}, wanted one of {num_frames}: 0 to {num_frames - 1}")
    if len(set(places)) < len(places):
        raise ValueError(f"{key}: got {list(indices)} of {num_frames} frames, wanted each at most once")
    return tuple(places)
