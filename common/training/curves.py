"""Loss curves as a picture: one panel per scalar of a `losses.jsonl`, drawn with OpenCV alone.

Each step is a pale line, the running mean a dark one; a scalar known at few steps gets dots. An axis is
logarithmic where positive values span more than a factor of 30.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from common.images import write_png

from .log import read_rows

SCALE = 2  # drawn larger and shrunk, for even lines
WIDTH, HEIGHT = 960, 300  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 96, 24, 44, 40  # margins
INK, GRID, PALE, DARK = (60, 60, 60), (225, 225, 225), (170, 200, 235), (25, 95, 170)  # RGB
FEW = 60  # values up to which they are dots
LOG_FROM = 30.0


def plot_losses(jsonl: str | Path, png: str | Path, keys: Sequence[str] = ()) -> None:
    """Draw the named scalars, by default all of the first row, one above the other.

    Raises:
        ValueError: no rows, or a key that no row has.
    """
    rows = read_rows(jsonl)
    if not rows:
        raise ValueError(f"curve {jsonl}: no rows; wanted the losses.jsonl of a run that did a step")
    known = list(dict.fromkeys(key for row in rows for key in row if math.isfinite(row[key])))[1:]
    keys = list(keys) or [key for key in rows[0] if key != "step"]
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise ValueError(
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
    image_HWC = np.full((HEIGHT * SCALE, WIDTH * SCALE, 3), 255, np.uint8)
    logarithmic = values.min() > 0 and values.max() > LOG_FROM * values.min()
    y = np.log10(values) if logarithmic else values
    low, high = _room(y.min(), y.max())
    x_range = (first, max(last, first + 1))

    def to_pixels(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        across = LEFT + (x - x_range[0]) / (x_range[1] - x_range[0]) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return np.rint(np.stack([across, down], -1) * SCALE).astype(np.int32)

    for tick in ticks(low, high, 5):
        _, at = to_pixels(np.array(first), np.array(tick))
        _line(image_HWC, np.array([(LEFT * SCALE, at), ((WIDTH - RIGHT) * SCALE, at)]), GRID, 1)
        label = f"{10**tick:.3g}" if logarithmic else f"{tick:.4g}"
        _text(image_HWC, label, LEFT - 8, at // SCALE + 4, align=1.0)
    for tick in ticks(*x_range, 8):
        at, _ = to_pixels(np.array(tick), np.array(low))
        _text(image_HWC, f"{tick:g}", at // SCALE, HEIGHT - BOTTOM + 20, align=0.5)
    _text(image_HWC, title + (" (log)" if logarithmic else ""), LEFT, TOP - 16, size=0.62)
    _text(image_HWC, f"last {values[-1]:.4g}", WIDTH - RIGHT, TOP - 16, align=1.0)

    if len(values) <= FEW:
        _line(image_HWC, to_pixels(steps, y), DARK, 2)
        for point in to_pixels(steps, y):
            cv2.circle(image_HWC, point.tolist(), 3 * SCALE, DARK, -1, cv2.LINE_AA)
    else:
        _line(image_HWC, to_pixels(steps, y), PALE, 1)
        _line(image_HWC, to_pixels(steps, running_mean(y, len(y) // 50 + 1)), DARK, 2)
    return cv2.resize(image_HWC, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)


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


def _text(image_HWC: np.ndarray, text: str, x: int, y: int, align: float = 0.0, size: float = 0.48) -> None:
    """`align`: 0 begins at x, 0.5 is centred there, 1 ends there."""
    (wide, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size * SCALE, SCALE)
    at = (round(x * SCALE - align * wide), y * SCALE)
    cv2.putText(image_HWC, text, at, cv2.FONT_HERSHEY_SIMPLEX, size * SCALE, INK, SCALE, cv2.LINE_AA)
