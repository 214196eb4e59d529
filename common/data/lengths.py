"""How long clips are whose annotations do not say so: from the headers of their files."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np

from common.errors import MediaError
from common.media_file import open_media

from .annotations import LARGEST, Annotations, Entry

AT_ONCE = 4096  # so that a million of them do not wait in memory
THREADS = 16  # opening files means waiting for a disk or a network


def add_lengths(annotations: Annotations, lacking: Sequence[int] | np.ndarray) -> np.ndarray:
    """Give entries without `num_frames` what is left of their file after the cut; and its rate, if need be.

    Returns:
        The indices of those among `lacking` whose file told.
    """
    found = []
    with ThreadPoolExecutor(THREADS) as pool:
        for place in range(0, len(lacking), AT_ONCE):
            indices = [int(index) for index in lacking[place : place + AT_ONCE]]
            told = pool.map(lambda index: _from_header(annotations.entry(index)), indices)
            for index, length in zip(indices, told, strict=True):
                if length is not None:
                    annotations.set_length(index, *length)
                    found.append(index)
    return np.array(found, np.int64)


def _from_header(entry: Entry) -> tuple[int, float] | None:
    """Number of frames and rate; None if there is no file, or its header says neither length nor frames."""
    try:
        with closing(open_media(Path(entry.path))) as file:
            rate = float(file.rate or 0)
            total = file.num_listed or int(file.duration_s * rate + 0.01)  # 0.01: times are rounded
    except (MediaError, OSError):
        return None
    if not 0 < total - entry.start <= LARGEST:
        return None
    return total - entry.start, rate if np.isnan(entry.fps) else entry.fps
