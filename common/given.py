"""What a user gives of a video to be made: pictures at some of its frames, or frames of another video.

Shapes: N given frames, H height, W width, C channels (RGB).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .config import Config, key
from .data.buckets import HW_STRIDE, shrunk_to_area
from .data.transforms import Box, Fit, fit_to_size, stride_box
from .errors import InputError, MediaError
from .files import read_lines
from .images import MovingError, read_image
from .models import TransformerConfig
from .video import TooShortError, VideoReader

UNBOUNDED = 2**62  # frames: more than any file has
NOTHING = "-"  # the entry of a prompt for which nothing is given
ABOUT = {"image": ("at",), "video": ("start", "keep"), "image or video": ("max_hxw",)}  # keys that go with it


class GivenConfig(Config):
    """The size of a video, and what is given of it. Without `image` and `video`: the prompt alone."""

    num_frames: int = key(93, ge=1)
    height: int = key(352, ge=16)
    width: int = key(640, ge=16)
    # a picture, or several with commas between; a list or .txt has an entry for each prompt
    image: str | list[str] | None = key(None)
    at: list[int] | None = key(None)  # frames that pictures become, -1 the last; of one: 0, of two: 0 and -1
    video: str | list[str] | None = key(None)  # instead of pictures, a clip
    start: int | None = key(None)  # its frame that becomes the first; a negative one counts from its end
    keep: str | int | None = key(None)  # its frames that are given, such as "0:9" or "0,8,-1"; else its first
    max_hxw: int | None = key(None, ge=HW_STRIDE**2)  # pixels; the size is that of what is given
    # standard deviation of noise on what is given; pixels are in [-1, 1]
    noise_strength: float = key(0.0, ge=0)


class Given(NamedTuple):
    """What is given of one video."""

    frames_NHWC: np.ndarray  # uint8, in the size of the video
    indices: tuple[int, ...]  # which of its frames they are
    size: tuple[int, int]  # height and width of the video
    warnings: tuple[str, ...] = ()


class _Source(NamedTuple):
    """Frames as they were read; their sizes may differ."""

    pictures: tuple[np.ndarray, ...] = ()
    indices: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()


def read_given(config: GivenConfig, num_prompts: int, fps: float | None = None) -> list[Given]:
    """What is given for each prompt.

    Args:
        fps: of the video to be made; clips of another rate are told of.

    Raises:
        InputError: a file that is missing or does not decode, frames outside the video, not one entry for
            each prompt, or keys that contradict each other.
    """
    key = _which(config)
    if key is None:
        return [_fitted(config, _Source())] * num_prompts
    entries = _entries(key, getattr(config, key))
    if len(entries) not in (1, num_prompts):
        raise InputError(
            f"{key}: got {len(entries)} entries for {num_prompts} prompts, wanted one for each or one for "
            "all; commas join pictures of one prompt"
        )
    read = [_fitted(config, _read(config, key, entry, fps)) for entry in entries]
    return read * num_prompts if len(read) == 1 else read


def _which(config: GivenConfig) -> str | None:
    """Whether `image` or `video` is given, or neither."""
    if config.image is not None and config.video is not None:
        raise InputError("image, video: got both, wanted one of them; leave the other out")
    given = [key for key in ("image", "video") if getattr(config, key) is not None]
    for owner, keys in ABOUT.items():
        idle = [key for key in keys if getattr(config, key) is not None]
        if idle and not set(owner.split(" or ")) & set(given):
            raise InputError(
                f"{idle[0]}: it goes with {owner}, which is not given; set that, or leave it out"
            )
    return given[0] if given else None


def _entries(key: str, spec: str | Sequence[str]) -> list[tuple[str, ...]]:
    """The paths of each entry; those in a `.txt` begin at its folder."""
    if isinstance(spec, str) and spec.endswith(".txt"):
        lines = read_lines(spec, key, "a UTF-8 text file with a line for each prompt")
        return [_paths(key, line, Path(spec).parent) for _, line in lines]
    return [_paths(key, entry, Path()) for entry in ([spec] if isinstance(spec, str) else spec)]


def _paths(key: str, entry: str, folder: Path) -> tuple[str, ...]:
    if entry == NOTHING:
        return ()
    if key == "video" or (folder / entry).is_file():
        return (str(folder / entry),)
    return tuple(str(folder / path.strip()) for path in entry.split(","))


def _read(config: GivenConfig, key: str, paths: tuple[str, ...], fps: float | None) -> _Source:
    if not paths:
        return _Source()
    if key == "video":
        return _of_video(config, paths[0], fps)
    at = {1: [0], 2: [0, -1]}.get(len(paths)) if config.at is None else config.at
    if at is None or len(at) != len(paths):
        raise InputError(
            f"at: got {at} for {len(paths)} pictures, wanted a frame for each, such as at=[0, 8, -1]"
        )
    return _Source(tuple(map(_still, paths)), _inside(at, config.num_frames, "at"))


def _still(path: str) -> np.ndarray:
    """A still picture; its contents say whether it is one."""
    try:
        return read_image(path)
    except MediaError as error:
        if not isinstance(error, MovingError) and not _moves(path):
            raise
        raise InputError(
            f"image {path}: got a moving picture, wanted a still one; give it as video={path} keep=0, or "
            "save the frame you want as PNG"
        ) from None


def _moves(path: str) -> bool:
    """Whether a file that is no picture is a video."""
    try:
        with VideoReader(path) as reader:
            return not reader.is_picture
    except MediaError:
        return False


def _of_video(config: GivenConfig, path: str, fps: float | None) -> _Source:
    keep, start = "0" if config.keep is None else str(config.keep), config.start or 0
    indices = _inside(parse_keep(keep, config.num_frames), config.num_frames, "keep")

    def chosen(total: int) -> list[int]:
        first = start if start >= 0 else total + start
        last = first + max(indices)
        if first < 0 or last >= total:
            raise InputError(
                f"video {path}: got {total} frames, wanted frames {first} to {last} of it (start={start}, "
                f"keep={keep}); keep fewer, or start elsewhere"
            )
        return [first + index for index in indices]

    with VideoReader(path) as reader:
        if reader.is_still:
            raise InputError(
                f"video {path}: got a still picture, wanted a moving one; give it as image={path}, and as "
                "at=[0] the frame that it becomes"
            )
        frames = tuple(_chosen(reader, chosen, start))
        rate = reader.fps
    other_rate = fps is not None and len(indices) > 1 and abs(rate / fps - 1) > 0.05
    told = (
        f"video {path}: got {rate:.4g} frames a second, the video is written with fps={fps}: the given part "
        "will play at another speed; convert the clip to that rate"
    )
    return _Source(frames, indices, (told,) if other_rate else ())


def _chosen(reader: VideoReader, chosen: Callable[[int], list[int]], start: int) -> np.ndarray:
    """Frames counted from the end, or from the start: then it does not matter whether the end is damaged."""
    if start < 0:
        return reader.frames_chosen(chosen)
    try:
        return reader.frames(chosen(UNBOUNDED))
    except TooShortError:
        return reader.frames_chosen(chosen)  # it knows by now how many there are


def parse_keep(keep: str, num_frames: int) -> list[int]:
    """The frames that `keep` means: numbers and first:stop with commas between, negative ones from the end.

    Raises:
        InputError: it is not of that form, goes beyond the video, or names no frame.
    """
    found: list[int] = []
    for part in keep.split(","):
        try:
            bounds = [int(bound) if bound.strip() else None for bound in part.split(":")]
        except ValueError:
            bounds = []
        if len(bounds) == 2:
            beyond = [bound for bound in bounds if bound is not None and abs(bound) > num_frames]
            if beyond:
                raise InputError(f"keep: got {part}, wanted a part of the video's {num_frames} frames")
            found += range(num_frames)[slice(*bounds)]
        elif len(bounds) == 1 and bounds[0] is not None:
            found.append(bounds[0])
        else:
            raise InputError(f'keep: got {keep!r}, wanted frames such as "0:9" or "0,8,-1"')
    if not found:
        raise InputError(f"keep: got {keep!r}, which names none of {num_frames} frames; such as 0:9")
    return found


def _inside(indices: Sequence[int], num_frames: int, key: str) -> tuple[int, ...]:
    """Indices counted from the start.

    Raises:
        InputError: one is outside the video, or stands there twice.
    """
    places = [index + num_frames if index < 0 else index for index in indices]
    wrong = [index for index, place in zip(indices, places, strict=True) if not 0 <= place < num_frames]
    if wrong:
        raise InputError(f"{key}: got frame {wrong[0]}, wanted one of {num_frames}: 0 to {num_frames - 1}")
    if len(set(places)) < len(places):
        raise InputError(f"{key}: got {list(indices)} of {num_frames} frames, wanted each at most once")
    return tuple(places)


def _fitted(config: GivenConfig, source: _Source) -> Given:
    size = config.height, config.width
    fits = fits_of([(p.shape[0], p.shape[1]) for p in source.pictures], size, config.max_hxw)
    frames = [fit(picture[None])[0] for fit, picture in zip(fits, source.pictures, strict=True)]
    if not frames:
        return Given(np.zeros((0, *size, 3), np.uint8), (), size)
    frames_NHWC = np.rint(np.stack(frames)).astype(np.uint8)
    _, H, W, _ = frames_NHWC.shape
    return Given(frames_NHWC, source.indices, (H, W), source.warnings)


def fits_of(sizes: Sequence[tuple[int, int]], size: tuple[int, int], max_hxw: int | None) -> list[Fit]:
    """How pictures of these heights and widths come to one size: around their centres.

    Args:
        size: height and width of the video.
        max_hxw: instead, pictures are cut to what all of them have, then shrunk to at most so many pixels,
            and their sides cut to multiples of 32.

    Raises:
        InputError: that would be less than 32 pixels.
    """
    if max_hxw is None or not sizes:
        return [fit_to_size(H, W, *size) for H, W in sizes]
    common_H, common_W = (min(sides) for sides in zip(*sizes, strict=True))
    h, w = (int(side) for side in shrunk_to_area(common_H, common_W, max_hxw))
    after = stride_box(h, w, HW_STRIDE)
    if min(after.height, after.width) < HW_STRIDE:
        raise InputError(
            f"image: got pictures that have {common_H}x{common_W} pixels in common, which max_hxw={max_hxw} "
            f"makes {h}x{w}; wanted {HW_STRIDE} or more each way: give others, or leave max_hxw out"
        )
    return [
        Fit(Box((H - common_H) // 2, (W - common_W) // 2, common_H, common_W), (h, w), after)
        for H, W in sizes
    ]


def check_given(given: Sequence[Given], transformer: TransformerConfig) -> None:
    """Refuse to give frames to a model that takes none.

    Raises:
        InputError: it is a text-to-video model.
    """
    if not transformer.mask_channels and any(entry.indices for entry in given):
        raise InputError(
            "image, video: got a text-to-video transformer, wanted one that takes images: its config.json "
            "has vae_scale_factor_t; set transformer.path, or leave image and video out"
        )
