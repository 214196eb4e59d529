"""Reads colour, shape and motion of the one thing in a clip from the pixels alone: the judge of samples.

Colour: each pixel belongs to the nearest colour of the palette, dimmed or lit; the commonest of a thing wins.
Shape: the silhouette against the renderer's at all angles. Motion: lines fitted to place, size and angle.

Shape legend: T frames, H height, W width, C channels (RGB), M silhouettes, N pixels of a silhouette.
"""

from functools import cache
from typing import NamedTuple

import cv2
import numpy as np

from .data.drawing import TABLE_REACH, TABLE_SIZE, distance_table
from .data.scenes import BACKDROPS, COLOURS, SHAPES, TURNS_ALIKE
from .images import check_frames, resize_crop

NONE = "none"
SHORT_SIDE = (64, 96)  # pixels; clips are scaled to lie in between
MAX_FRAMES = 33
SMALLEST = 0.0025  # of the frame; less is no thing
WINDOW, WINDOW_REACH = 36, 1.15  # a silhouette in pixels, and the half of its side for an area of 1
ALIKE = 0.7  # correlation with a silhouette, below which a shape is none; true ones reach 0.8 at the worst
STEP_DEG = 4  # between the silhouettes of a shape
SYMMETRY_DEG = {"ball": STEP_DEG, "ring": STEP_DEG, "square": 90, "cross": 90, "triangle": 120, "star": 72}
LEAST = {"go": 0.15, "bounce": 0.08, "scale": 0.22, "spin": 45}  # half of what the scenes do at least


class Reading(NamedTuple):
    """What was seen; thrice "none" if there is no thing. `confidence`: the shape's lead over the next."""

    colour: str
    shape: str
    motion: str
    confidence: float = 0.0

    @property
    def triple(self) -> tuple[str, str, str]:
        """Colour, shape, motion, to compare with that of a thing."""
        return self.colour, self.shape, self.motion


NOTHING = Reading(NONE, NONE, NONE)


def read_back(frames_THWC: np.ndarray) -> Reading:
    """What moves how in a clip of one thing; any uint8 RGB pixels give an answer.

    Raises:
        InputError: not uint8 (T, H, W, 3).
    """
    check_frames(frames_THWC, "oracle")
    frames_THWC = _workable(frames_THWC)
    colour, mask_THW = _find_colour(frames_THWC)
    if colour == NONE:
        return NOTHING
    cover_THW = _largest_blob(_matte(frames_THWC, mask_THW))
    area_T = cover_THW.mean((1, 2))
    seen_T = area_T > SMALLEST
    if seen_T.mean() < 0.5:
        return NOTHING
    cover_THW, area_T = cover_THW[seen_T], area_T[seen_T]
    x_T, y_T = _centres(cover_THW)
    match_TM = _windows(cover_THW, x_T, y_T) @ silhouettes().pixels_MN.T
    shape, confidence, angle_T = _match_shape(match_TM, area_T)
    _, H, W = cover_THW.shape
    time_T = np.flatnonzero(seen_T) / max(len(seen_T) - 1, 1)
    motion = _name_motion(time_T, x_T / W, y_T / H, np.log(area_T) / 2, angle_T, shape)
    return Reading(colour, shape, motion, confidence)


def _workable(frames_THWC: np.ndarray) -> np.ndarray:
    """At most MAX_FRAMES, evenly over the clip, at a size at which a pixel means what it does in training."""
    T, H, W, _ = frames_THWC.shape
    if T > MAX_FRAMES:
        frames_THWC = frames_THWC[np.linspace(0, T - 1, MAX_FRAMES).round().astype(int)]
    short = min(H, W)
    wanted = int(np.clip(short, *SHORT_SIDE))
    if wanted == short:
        return frames_THWC
    return resize_crop(frames_THWC, round(H * wanted / short), round(W * wanted / short))


def _find_colour(frames_THWC: np.ndarray) -> tuple[str, np.ndarray]:
    """The colour of the thing, and where it is (T, H, W); a colour along the edge of the frame is none."""
    smooth_THWC = np.stack([cv2.medianBlur(frame, 3) for frame in frames_THWC])  # noise is no thing
    red, green, blue = (smooth_THWC[..., channel] >> 3 for channel in range(3))
    labels_THW = palette()[red, green, blue]
    counts = np.bincount(labels_THW.ravel(), minlength=len(COLOURS) + 1)[: len(COLOURS)]
    edge = np.concatenate([labels_THW[:, [0, -1]].ravel(), labels_THW[:, :, [0, -1]].ravel()])
    at_edge = np.bincount(edge, minlength=len(COLOURS) + 1)[: len(COLOURS)]
    counts[at_edge > 0.2 * edge.size] = 0
    best = int(counts.argmax())
    mask_THW = labels_THW == best
    return (list(COLOURS)[best] if counts[best] > SMALLEST * labels_THW.size else NONE), mask_THW


@cache
def palette() -> np.ndarray:
    """For each RGB of 5 bits: the index of the nearest colour of a thing; one past the last: a backdrop."""
    anchors, owners = [], []
    for index, rgb in enumerate(COLOURS.values()):
        lit = [np.array(rgb) * light for light in (0.7, 0.8, 0.9, 1.0, 1.1)]
        gloss = [np.array(rgb) + (255 - np.array(rgb)) * white for white in (0.15, 0.3)]
        anchors += lit + gloss
        owners += [index] * len(lit + gloss)
    for rgb in BACKDROPS.values():
        lit = [np.array(rgb) * light for light in np.arange(0.45, 1.3, 0.1)]  # the dark ones are in shadow
        anchors += lit
        owners += [len(COLOURS)] * len(lit)
    level = (np.arange(32) * 8 + 4).astype(np.float32)
    grid = np.stack(np.meshgrid(level, level, level, indexing="ij"), axis=-1).reshape(-1, 3)
    anchors_lab = _lab(np.clip(np.array(anchors, np.float32), 0, 255))
    squared = ((_lab(grid)[:, None] - anchors_lab[None]) ** 2).sum(-1)
    return np.array(owners, np.uint8)[squared.argmin(1)].reshape(32, 32, 32)


def _lab(rgb: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(rgb[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]


TO_LUMA = (
    np.array(  # RGB to luma, and red and blue differences at half the weight: codecs and VAEs blur those
        [[0.51, 0.42, -0.14], [1.0, -0.36, -0.28], [0.19, -0.07, 0.42]], np.float32
    )
)


def _matte(frames_THWC: np.ndarray, mask_THW: np.ndarray) -> np.ndarray:
    """How much of each pixel the thing covers, (T, H, W) in [0, 1].

    A pixel is taken for a * thing + k * background; a + k = 1 except in a shadow, so a miss of that is only
    dear. Least squares over a and k.
    """
    thing_C = np.median(frames_THWC[mask_THW], axis=0).astype(np.float32) @ TO_LUMA
    pixels_THWC = frames_THWC.astype(np.float32) @ TO_LUMA
    behind_HWC = _background(frames_THWC, mask_THW) @ TO_LUMA
    dear = 100.0**2
    aa = (thing_C**2).sum() + dear
    ak_HW = (behind_HWC * thing_C).sum(-1) + dear
    kk_HW = (behind_HWC**2).sum(-1) + dear
    pa_THW = pixels_THWC @ thing_C + dear
    pk_THW = np.einsum("thwc,hwc->thw", pixels_THWC, behind_HWC) + dear
    share_THW = (pa_THW * kk_HW - pk_THW * ak_HW) / (aa * kk_HW - ak_HW**2 + 1)
    return np.clip(share_THW * 1.25 - 0.125, 0, 1)  # a little steeper, so that noise and shading are cut off


def _background(frames_THWC: np.ndarray, mask_THW: np.ndarray) -> np.ndarray:
    """The mean of what shows where the thing is not; where it always is, filled in from around."""
    thick = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    free_THW = 1 - np.stack([cv2.dilate(mask, thick) for mask in mask_THW.astype(np.uint8)])
    count_HW = free_THW.sum(0, dtype=np.float32)
    total_HWC = np.einsum("thwc,thw->hwc", frames_THWC, free_THW, dtype=np.float32)
    mean_HWC = (total_HWC / np.maximum(count_HW, 1)[..., None]).astype(np.uint8)
    hidden_HW = (count_HW == 0).astype(np.uint8)
    return cv2.inpaint(mean_HWC, hidden_HW, 3, cv2.INPAINT_TELEA).astype(np.float32)


def _largest_blob(cover_THW: np.ndarray) -> np.ndarray:
    """Each frame without what does not hang together with its largest patch."""
    kept_THW = np.zeros_like(cover_THW)
    for cover, kept in zip(cover_THW, kept_THW):
        count, labels, stats, _ = cv2.connectedComponentsWithStats((cover > 0.4).astype(np.uint8))
        if count > 1:
            blob = (labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)
            np.copyto(kept, cover, where=cv2.dilate(blob, np.ones((3, 3), np.uint8)) > 0)
    return kept_THW


def _centres(cover_THW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    T, H, W = cover_THW.shape
    mass_T = cover_THW.sum((1, 2))
    return cover_THW.sum(1) @ (np.arange(W) + 0.5) / mass_T, cover_THW.sum(2) @ (np.arange(H) + 0.5) / mass_T


def _windows(cover_THW: np.ndarray, x_T: np.ndarray, y_T: np.ndarray) -> np.ndarray:
    """Each frame's silhouette moved to the middle and scaled to one area; rows of norm 1, (T, N)."""
    rows = []
    for cover, x, y in zip(cover_THW, x_T, y_T):
        step = 2 * WINDOW_REACH * np.sqrt(cover.sum()) / WINDOW  # pixels of the frame per pixel of the window
        middle = (WINDOW - 1) / 2
        place = np.array([[step, 0, x - 0.5 - middle * step], [0, step, y - 0.5 - middle * step]])
        how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        rows.append(cv2.warpAffine(cover, place, (WINDOW, WINDOW), flags=how).ravel())
    return _unit_rows(np.array(rows, np.float32))


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    rows = rows - rows.mean(1, keepdims=True)
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6)


class Silhouettes(NamedTuple):
    """All shapes at all angles, sharp and blurred: pixels as rows of norm 1, and whose they are."""

    pixels_MN: np.ndarray
    shape_M: np.ndarray
    angle_M: np.ndarray  # degrees, clockwise


@cache
def silhouettes() -> Silhouettes:
    """The renderer's outlines as the oracle sees them."""
    rows, shapes, angles = [], [], []
    for shape in SHAPES:
        cover = np.clip(0.5 - distance_table(shape) * TABLE_SIZE / (2 * TABLE_REACH), 0, 1)
        step = 2 * WINDOW_REACH * np.sqrt(cover.sum()) / WINDOW
        for angle in range(0, SYMMETRY_DEG[shape], STEP_DEG):
            cos, sin = np.cos(np.radians(angle)) * step, np.sin(np.radians(angle)) * step
            middle, centre = (WINDOW - 1) / 2, (TABLE_SIZE - 1) / 2
            place = np.array(
                [[cos, sin, centre - (cos + sin) * middle], [-sin, cos, centre - (cos - sin) * middle]]
            )
            smooth = cv2.GaussianBlur(cover, (0, 0), step / 2)  # against aliasing
            how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            sharp = cv2.warpAffine(smooth, place, (WINDOW, WINDOW), flags=how)
            for sigma in (0.8, 2.0):
                rows.append(cv2.GaussianBlur(sharp, (0, 0), sigma).ravel())
                shapes.append(SHAPES.index(shape))
                angles.append(angle)
    return Silhouettes(_unit_rows(np.array(rows)), np.array(shapes), np.array(angles))


def _match_shape(match_TM: np.ndarray, area_T: np.ndarray) -> tuple[str, float, np.ndarray]:
    """The shape that fits the clip best, its lead over the next, and its angle in each frame (degrees)."""
    bank = silhouettes()
    best_TK = np.stack([match_TM[:, bank.shape_M == k].max(1) for k in range(len(SHAPES))], axis=1)
    score_K = area_T @ best_TK / area_T.sum()
    order = score_K.argsort()
    shape = SHAPES[order[-1]]
    if score_K[order[-1]] < ALIKE:
        return NONE, 0.0, np.zeros(len(area_T))
    mine_M = np.flatnonzero(bank.shape_M == order[-1])
    angle_T = bank.angle_M[mine_M][match_TM[:, mine_M].argmax(1)].astype(float)
    return shape, float(score_K[order[-1]] - score_K[order[-2]]), angle_T


def _name_motion(
    time_T: np.ndarray,
    x_T: np.ndarray,
    y_T: np.ndarray,
    scale_T: np.ndarray,
    angle_T: np.ndarray,
    shape: str,
) -> str:
    """The motion that is done most, in multiples of what is least expected; "still" where none reaches that.

    x, y in frames, scale as the logarithm of the radius, angle in degrees.
    """
    right, down, bigger = (_change(time_T, values) for values in (x_T, y_T, scale_T))
    low, high = np.percentile(y_T - down * time_T, (10, 90))
    strengths = {
        "right" if right > 0 else "left": abs(right) / LEAST["go"],
        "down" if down > 0 else "up": abs(down) / LEAST["go"],
        "grow" if bigger > 0 else "shrink": abs(bigger) / LEAST["scale"],
        "bounce": (high - low) / LEAST["bounce"],
    }
    if shape != NONE and shape not in TURNS_ALIKE:
        turn = _change(time_T, np.unwrap(angle_T, period=SYMMETRY_DEG[shape]))
        strengths["spin"] = abs(turn) / LEAST["spin"]
    motion = max(strengths, key=lambda name: strengths[name])
    return motion if strengths[motion] > 1 else "still"


def _change(time_T: np.ndarray, values_T: np.ndarray) -> float:
    """By how much the values change over the clip: the median of all slopes (Theil, Sen)."""
    later, earlier = np.triu_indices(len(time_T), k=1)[::-1]
    if not len(later):
        return 0.0
    return float(np.median((values_T[later] - values_T[earlier]) / (time_T[later] - time_T[earlier])))
