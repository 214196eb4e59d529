"""Transparency: pixels laid on white, and what the header of a MOV file says of its alpha.

Shape legend: H height, W width; pixels are uint8 RGBA or RGB, with channels last.
"""

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import BinaryIO

import numpy as np


class Alpha(Enum):
    """What the colours beside an alpha channel are."""

    STRAIGHT = "not yet multiplied by it"
    ON_BLACK = "already multiplied by it"
    ON_WHITE = "already laid on white"


# Graphics modes of a `vmhd` atom (QuickTime File Format, "Graphics Modes"); 0x100 is straight alpha.
GRAPHICS_MODES = {0x101: Alpha.ON_WHITE, 0x102: Alpha.ON_BLACK}

Span = tuple[int, int]  # of the contents of an atom: where they begin and end in the file


def on_white(pixels_HW4: np.ndarray, alpha: Alpha = Alpha.STRAIGHT) -> np.ndarray:
    """RGBA pixels as RGB, seen before a white background and rounded to the nearest level."""
    colours, opacity = pixels_HW4[..., :3], pixels_HW4[..., 3:]
    if alpha is Alpha.ON_WHITE or (opacity == 255).all():
        return np.ascontiguousarray(colours)
    if alpha is Alpha.ON_BLACK:
        return np.minimum(colours.astype(np.uint16) + (255 - opacity), 255).astype(np.uint8)
    lacking = (255 - colours).astype(np.uint16) * opacity  # 255 * 255 at most
    return (255 - (lacking + np.uint16(127)) // 255).astype(np.uint8)


def mov_alpha(path: Path, track: int) -> Alpha:
    """What a MOV or MP4 file says of the alpha of track number `track`; most files say nothing."""
    with path.open("rb") as file:
        size = path.stat().st_size
        for moov in _atoms(file, b"moov", (0, size)):
            for trak in _atoms(file, b"trak", moov):
                if _track_id(file, trak) == track:
                    return GRAPHICS_MODES.get(_graphics_mode(file, trak), Alpha.STRAIGHT)
    return Alpha.STRAIGHT


def _track_id(file: BinaryIO, trak: Span) -> int:
    for start, _ in _atoms(file, b"tkhd", trak):
        version = _number(file, start, 1)
        return _number(file, start + (20 if version == 1 else 12), 4)
    return 0


def _graphics_mode(file: BinaryIO, trak: Span) -> int:
    for mdia in _atoms(file, b"mdia", trak):
        for minf in _atoms(file, b"minf", mdia):
            for start, _ in _atoms(file, b"vmhd", minf):
                return _number(file, start + 4, 2)
    return 0


def _atoms(file: BinaryIO, kind: bytes, inside: Span) -> Iterator[Span]:
    """The contents of each atom of this kind, of those that lie directly in `inside`."""
    place, stop = inside
    while place + 8 <= stop:
        size, header = _number(file, place, 4), 8
        file.seek(place + 4)
        found = file.read(4)
        if size == 1:
            size, header = _number(file, place + 8, 8), 16
        end = stop if size == 0 else place + size  # 0: up to the end
        if end < place + header or end > stop:
            return
        if found == kind:
            yield place + header, end
        place = end


def _number(file: BinaryIO, place: int, size: int) -> int:
    file.seek(place)
    return int.from_bytes(file.read(size), "big")
