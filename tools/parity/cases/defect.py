"""What a case returns for an output in which the reference itself is wrong."""

from typing import NamedTuple

import numpy as np


class Defect(NamedTuple):
    """An output in which the reference is wrong: ours must equal our own computation done another way."""

    ours: np.ndarray
    instead: np.ndarray
    why: str


class Unsupported(NamedTuple):
    """An output that this version cannot compute, where the case's others can be."""

    why: str


class NotApplicable(NamedTuple):
    """An output of something our design does not have; it is neither passed nor failed."""

    why: str
