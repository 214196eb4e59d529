"""Scenes as pixels: every outline is a signed distance, so edges are smooth at any size and any position.

The distance to a shape is tabulated once; a frame looks it up through an affine map.

Shape legend: T frames, H height, W width, C channels (RGB). Distances are in radii, negative inside.
"""

import math
from functools import cache

import cv2
import numpy as np

from common.errors import InputError

from .scenes import BACKDROPS, COLOURS, Background, Scene, Thing, track

TABLE_SIZE, TABLE_REACH = 320, 2.0  # texels along a side; radii from the centre to the edge
SHADOW = 0.35  # how much of the light the shadow takes
SHADOW_OFFSET = 0.32  # in radii, away from the light
SHADOW_BLUR = 0.22  # half the width of its edge, in radii


def render(scene: Scene, num_frames: int, height: int, width: int) -> np.ndarray:
    """The clip as uint8 (T, H, W, 3); frame 0 does not depend on `num_frames`.

    Raises:
        InputError: no frame, or a side shorter than 8 pixels.
    """
    if num_frames < 1 or min(height, width) < 8:
        raise InputError(
            f"render: got {num_frames} frames of {height}x{width}, wanted at least 1 of at least 8x8 pixels"
        )
    backdrop_HWC = _backdrop(scene.background, height, width)
    frames_TCHW = np.repeat(backdrop_HWC.transpose(2, 0, 1)[None], num_frames, axis=0)
    for thing in scene.things:
        _paint(frames_TCHW, thing, scene.light)
    frames_TCHW += 0.5
    np.clip(frames_TCHW, 0, 255, out=frames_TCHW)
    return np.ascontiguousarray(frames_TCHW.astype(np.uint8).transpose(0, 2, 3, 1))


def _paint(frames_TCHW: np.ndarray, thing: Thing, light: float) -> None:
    """Lay a thing and its shadow over the frames, in place."""
    T, _, H, W = frames_TCHW.shape
    path = track(thing, T)
    x, y, radius = path.x * W, path.y * H, path.radius * min(H, W)
    depth_THW = _distances(thing.shape, x, y, radius, path.angle, H, W)
    right, down = -SHADOW_OFFSET * math.cos(light), -SHADOW_OFFSET * math.sin(light)
    shadow_THW = _distances(thing.shape, x + right * radius, y + down * radius, radius, path.angle, H, W)
    shadow_THW = np.clip(0.5 - shadow_THW / (2 * SHADOW_BLUR), 0, 1) * SHADOW
    cover_THW = np.clip(0.5 - depth_THW * radius[:, None, None].astype(np.float32), 0, 1)
    # "beside" and "below": the pixel's place from the centre of the thing, in radii
    beside_T1W = (((np.arange(W) + 0.5)[None] - x[:, None]) / radius[:, None]).astype(np.float32)[:, None]
    below_TH1 = (((np.arange(H) + 0.5)[None] - y[:, None]) / radius[:, None]).astype(np.float32)[..., None]
    lit_THW = (0.12 * math.cos(light)) * beside_T1W + (0.12 * math.sin(light)) * below_TH1
    rim_THW = np.clip(1 + depth_THW / 0.3, 0, 1)  # 1 at the outline, 0 further inside than 0.3 radii
    lit_THW += thing.tint * (1 - 0.16 * rim_THW * rim_THW)
    gloss_THW = _gloss(beside_T1W, below_TH1, light, 0.55 if thing.shape == "ball" else 0)
    for channel, value in enumerate(COLOURS[thing.colour]):
        plane_THW = frames_TCHW[:, channel]
        plane_THW *= 1 - shadow_THW
        painted_THW = np.minimum(value * lit_THW, 255)
        painted_THW += (255 - painted_THW) * gloss_THW
        plane_THW += (painted_THW - plane_THW) * cover_THW


def _gloss(beside_T1W: np.ndarray, below_TH1: np.ndarray, light: float, strength: float) -> np.ndarray:
    """A round highlight where the light falls on a ball: the share of white, (T, H, W)."""
    across = np.exp(-12 * (beside_T1W - 0.4 * math.cos(light)) ** 2)
    return strength * across * np.exp(-12 * (below_TH1 - 0.4 * math.sin(light)) ** 2)


def _distances(
    shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray, angle: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Distance of every pixel to the outline in radii, (T, H, W); centres and radii are in pixels."""
    table = distance_table(shape)
    texels = TABLE_SIZE / (2 * TABLE_REACH)  # per radius
    distances = np.empty((len(x), height, width), np.float32)
    for frame, (cx, cy, r, turn) in enumerate(zip(x, y, radius, angle)):
        cos, sin = math.cos(turn) * texels / r, math.sin(turn) * texels / r
        px, py = 0.5 - cx, 0.5 - cy  # the middle of pixel 0, from the centre
        middle = TABLE_SIZE / 2 - 0.5
        to_table = np.array(
            [[cos, sin, cos * px + sin * py + middle], [-sin, cos, cos * py - sin * px + middle]]
        )
        cv2.warpAffine(
            table,
            to_table,
            (width, height),
            dst=distances[frame],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    return distances


@cache
def distance_table(shape: str) -> np.ndarray:
    """The signed distance to an outline of radius about 1, on a square grid of the texels above."""
    line = ((np.arange(TABLE_SIZE) + 0.5) * 2 / TABLE_SIZE - 1) * TABLE_REACH
    x, y = np.meshgrid(line, line)
    if shape == "ball":
        table = np.hypot(x, y) - 0.9
    elif shape == "ring":
        table = np.abs(np.hypot(x, y) - 0.75) - 0.25
    else:
        table = _to_polygon(x, y, _CORNERS[shape]) - 0.05  # rounded by that much
    table = table.astype(np.float32)
    table.flags.writeable = False
    return table


def _to_polygon(x: np.ndarray, y: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Signed distance to a polygon, its corners in order (Quilez, "2D distance functions")."""
    squared, inside = np.full(x.shape, np.inf), np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, 1, axis=0)):
        ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
        along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        squared = np.minimum(squared, (wx - ex * along) ** 2 + (wy - ey * along) ** 2)
        inside ^= ((ay <= y) != (by <= y)) & ((wx * ey < wy * ex) == (by < ay))
    return np.where(inside, -1, 1) * np.sqrt(squared)


def _around(*radii: float) -> np.ndarray:
    """Corners at these distances from the centre, at equal angles, the first straight up."""
    angles = np.arange(len(radii)) * 2 * np.pi / len(radii)
    return np.stack([np.sin(angles), -np.cos(angles)], axis=1) * np.array(radii)[:, None]


_ARM, _TIP = 0.28, 0.98
_QUARTER = np.array([[-_ARM, -_TIP], [_ARM, -_TIP], [_ARM, -_ARM]])
_TURN = np.array([[0, 1], [-1, 0]])  # by a right angle
_CORNERS = {
    "square": np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.76,
    "triangle": _around(1.1, 1.1, 1.1),
    "star": _around(*[1.12, 0.5] * 5),
    "cross": np.concatenate([_QUARTER, _QUARTER @ _TURN, -_QUARTER, -_QUARTER @ _TURN]),
}


def _backdrop(background: Background, height: int, width: int) -> np.ndarray:
    """The picture without things, float32 (H, W, 3)."""
    short = min(height, width)
    x = ((np.arange(width, dtype=np.float32) + 0.5) / width)[None]
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
    colour = np.array(BACKDROPS[background.colour], np.float32) * background.tint
    wall = np.array(BACKDROPS[background.wall], np.float32) * background.tint
    pixel = background.cells / short  # one pixel in cells
    if background.kind == "checker":
        across = _wave((np.arange(width) + 0.5) * pixel + background.phase, pixel)
        along = _wave((np.arange(height) + 0.5) * pixel, pixel)
        light = 1 + background.contrast * along[:, None] * across[None]
    elif background.kind == "stripes":
        cos, sin = math.cos(background.angle), math.sin(background.angle)
        place = (x - 0.5) * (width * pixel * cos) + (y - 0.5) * (height * pixel * sin)
        light = 1 + background.contrast * _wave(place + background.phase, pixel)
    elif background.kind == "gradient":
        slope = (x - 0.5) * math.cos(background.angle) + (y - 0.5) * math.sin(background.angle)
        light = 1 + 2.4 * background.contrast * slope
    else:
        light = 1.03 - 0.06 * y + 0 * x
    light = np.asarray(light, np.float32)[..., None]
    if background.kind != "floor":
        return light * colour
    edge = np.clip((y - background.horizon) * height + 0.5, 0, 1)[..., None]  # 0 on the wall, 1 on the floor
    light = light * (1 + edge * (1.2 * background.contrast) * (y[..., None] - 0.8))  # darker far away
    return light * (wall + (colour - wall) * edge)


def _wave(place: np.ndarray, pixel: float) -> np.ndarray:
    """A square wave of period 2 between -1 and 1 with edges one pixel wide; `pixel` in units of `place`."""
    to_edge = 0.5 - np.abs(place % 2 - 1)  # 0.5 in the middle of a bright cell, -0.5 of a dark one
    return np.clip(to_edge * 2 / max(pixel, 1e-6), -1, 1)
