"""Loss curves as a picture: one panel per scalar of a `losses.jsonl`, drawn with OpenCV alone.

Each step is a pale line, the running mean a dark one; a scalar known at few steps gets dots. An axis is
logarithmic where positive values span more than a factor of 30.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike

from common.errors import InputError
from common.images import write_png

from .log import read_rows

SCALE = 2  # drawn larger and shrunk, for even lines
WIDTH, HEIGHT = 960, 300  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 96, 24, 44, 40  # margins
INK, GRID, PALE, DARK = (60, 60, 60), (225, 225, 225), (170, 200, 235), (25, 95, 170)  # RGB
SEVERAL = ((25, 95, 170), (200, 90, 30), (40, 140, 70), (140, 60, 150))
FEW = 60  # values up to which they are dots
LOG_FROM = 30.0


def plot_losses(jsonl: str | Path, png: str | Path, keys: Sequence[str] = ()) -> None:
    """Draw the named scalars, by default all of the first row, one above the other.

    Raises:
        InputError: no rows, or a key that no row has.
    """
    rows = read_rows(jsonl)
    if not rows:
        raise InputError(f"curve {jsonl}: no rows; wanted the losses.jsonl of a run that did a step")
    known = list(dict.fromkeys(key for row in rows for key in row if math.isfinite(row[key])))[1:]
    keys = list(keys) or [key for key in rows[0] if key != "step"]
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise InputError(
            f"curve {jsonl}: no row has a number for {', '.join(unknown)}; there are {', '.join(known)}"
        )
    last = rows[-1]["step"]
    panels = []
    for key in keys:
        points = np.array([(row["step"], row[key]) for row in rows if math.isfinite(row.get(key, np.nan))])
        panels.append(panel(key, points[:, 0], points[:, 1], rows[0]["step"], last))
    write_png(png, np.concatenate(panels))


def panel(title: str, steps: np.ndarray, values: np.ndarray, first: float, last: float) -> np.ndarray:
    """One curve with its axes, uint8 RGB (HEIGHT, WIDTH, 3)."""
    axes = Axes(title, (first, max(last, first + 1)), values)
    axes.note(f"last {values[-1]:.4g}")
    if len(values) <= FEW:
        axes.line(steps, values, DARK, 2)
        axes.dots(steps, values, DARK)
    else:
        axes.line(steps, values, PALE, 1)
        axes.line(steps, values, DARK, 2, smooth=len(values) // 50 + 1)
    return axes.picture()


def comparison(title: str, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Several named curves (x, y) in one panel, each in its colour, which its name has too."""
    x, y = (np.concatenate([curve[i] for curve in curves.values()]) for i in (0, 1))
    axes = Axes(title, (x.min(), x.max()), y)
    for number, (name, (x, y)) in enumerate(curves.items()):
        colour = SEVERAL[number % len(SEVERAL)]
        axes.line(x, y, colour, 2)
        axes.dots(x, y, colour)
        axes.note(name, line=number, colour=colour)
    return axes.picture()


class Axes:
    """A panel with its ticks, to draw curves into; logarithmic where the values ask for it."""

    def __init__(self, title: str, x_range: tuple[float, float], values: np.ndarray):
        self.image_HWC = np.full((HEIGHT * SCALE, WIDTH * SCALE, 3), 255, np.uint8)
        self.logarithmic = bool(values.min() > 0 and values.max() > LOG_FROM * values.min())
        self.x_range = x_range
        self.low, self.high = _room(self._height(values.min()), self._height(values.max()))
        for tick in ticks(self.low, self.high, 5):
            _, at = self._place(x_range[0], tick)
            _line(self.image_HWC, np.array([(LEFT * SCALE, at), ((WIDTH - RIGHT) * SCALE, at)]), GRID, 1)
            label = f"{10**tick:.3g}" if self.logarithmic else f"{tick:.4g}"
            _text(self.image_HWC, label, LEFT - 8, at // SCALE + 4, align=1.0)
        for tick in ticks(*x_range, 8):
            at, _ = self._place(tick, self.low)
            _text(self.image_HWC, f"{tick:g}", at // SCALE, HEIGHT - BOTTOM + 20, align=0.5)
        _text(self.image_HWC, title + (" (log)" if self.logarithmic else ""), LEFT, TOP - 16, size=0.62)

    def line(self, x: np.ndarray, y: np.ndarray, colour: tuple, width: int, smooth: int = 0) -> None:
        """`smooth`: values on either side that a running mean takes in."""
        heights = self._height(y)
        heights = running_mean(heights, smooth) if smooth else heights
        _line(self.image_HWC, self._place(x, heights), colour, width)

    def dots(self, x: np.ndarray, y: np.ndarray, colour: tuple) -> None:
        for point in self._place(x, self._height(y)):
            cv2.circle(self.image_HWC, point.tolist(), 3 * SCALE, colour, -1, cv2.LINE_AA)

    def note(self, text: str, line: int = 0, colour: tuple = INK) -> None:
        """Words in the upper right corner."""
        _text(self.image_HWC, text, WIDTH - RIGHT, TOP - 16 + 18 * line, align=1.0, colour=colour)

    def picture(self) -> np.ndarray:
        return cv2.resize(self.image_HWC, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)

    def _height(self, y: ArrayLike) -> Any:
        return np.log10(y) if self.logarithmic else np.asarray(y)

    def _place(self, x: ArrayLike, height: ArrayLike) -> np.ndarray:
        """Pixels (..., 2) of points."""
        left, right = self.x_range
        across = LEFT + (np.asarray(x) - left) / (right - left) * (WIDTH - LEFT - RIGHT)
        share = (np.asarray(height) - self.low) / (self.high - self.low)
        down = HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
        return np.rint(np.stack(np.broadcast_arrays(across, down), -1) * SCALE).astype(np.int32)


def running_mean(values: np.ndarray, half_window: int) -> np.ndarray:
    """The mean of each value with up to `half_window` neighbours on either side."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    start = np.maximum(index - half_window, 0)
    stop = np.minimum(index + half_window + 1, len(values))
    return (total[stop] - total[start]) / (stop - start)


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) within a range."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _room(low: float, high: float) -> tuple[float, float]:
    """A range with a margin; never empty."""
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _line(image_HWC: np.ndarray, points: np.ndarray, colour: tuple, width: int) -> None:
    cv2.polylines(image_HWC, [points.astype(np.int32)], False, colour, width * SCALE, cv2.LINE_AA)


def _text(
    image_HWC: np.ndarray,
    text: str,
    x: int,
    y: int,
    align: float = 0.0,
    size: float = 0.48,
    colour: tuple = INK,
) -> None:
    """`align`: 0 begins at x, 0.5 is centred there, 1 ends there."""
    (wide, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size * SCALE, SCALE)
    at = (round(x * SCALE - align * wide), y * SCALE)
    cv2.putText(image_HWC, text, at, cv2.FONT_HERSHEY_SIMPLEX, size * SCALE, colour, SCALE, cv2.LINE_AA)
