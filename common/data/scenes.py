"""The world of the tiny release: coloured shapes that move over simple backgrounds, and captions of it.

A scene is drawn from a random generator, described by `caption` and turned into pixels by
`common.data.drawing.render`. Lengths are fractions of the frame (x of its width, y of its height, radius of
the shorter side), time runs from 0 to 1 over the clip: a scene can be rendered at any size and length.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import NamedTuple, TypeVar

import numpy as np

from common.errors import InputError
from common.noise import index_of

RGB = tuple[int, int, int]
T = TypeVar("T")

COLOURS: dict[str, RGB] = {
    "red": (222, 32, 38),
    "orange": (255, 130, 12),
    "yellow": (252, 222, 44),
    "green": (36, 178, 62),
    "turquoise": (28, 205, 200),
    "blue": (36, 78, 236),
    "purple": (158, 46, 214),
    "white": (246, 246, 246),
}
BACKDROPS: dict[str, RGB] = {  # muted, so that every thing stands out that has another colour
    "grey": (122, 124, 128),
    "black": (30, 30, 34),
    "brown": (100, 74, 58),
    "blue": (58, 80, 120),
    "green": (64, 98, 74),
    "purple": (94, 72, 108),
    "pink": (188, 142, 154),
    "beige": (178, 158, 126),
}
SHAPES = ("ball", "square", "triangle", "star", "cross", "ring")
SIZES = {"small": (0.105, 0.135), "large": (0.19, 0.225)}  # range of the radius
MOTIONS = ("left", "right", "up", "down", "still", "spin", "grow", "shrink", "bounce")
KINDS = ("plain", "gradient", "floor", "checker", "stripes")
TURNS_ALIKE = ("ball", "ring")  # turning does not show
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

REACH = 1.2  # no outline goes further from the centre, in radii
MARGIN = 0.02  # between a thing and the edge of the frame
HOPS = 2  # of a bounce; a thing ends where it began


@dataclass(frozen=True)
class Thing:
    """One object. `x`, `y` and `radius` are those of the first frame, `tilt` its angle in radians, clockwise.

    amount: what the motion does in the whole clip: the distance (left, right, up, down), the height of a hop
    (bounce), the angle in radians (spin), the factor of the radius (grow, shrink), or 0 (still).
    tint: factor of the brightness.
    """

    colour: str
    shape: str
    size: str
    motion: str
    x: float
    y: float
    radius: float
    tilt: float
    amount: float
    tint: float

    @property
    def triple(self) -> tuple[str, str, str]:
        """What the oracle reads back: colour, shape, motion."""
        return self.colour, self.shape, self.motion


@dataclass(frozen=True)
class Background:
    """What lies behind. `wall` is the colour above the horizon of a floor, and elsewhere equal to `colour`.

    tint: factor of the brightness; contrast: of bright against dark parts; angle: of stripes and gradients,
    in radians; cells: stripes or squares along the shorter side; phase: where they begin, in cells;
    horizon: height of the wall.
    """

    kind: str
    colour: str
    wall: str
    tint: float
    contrast: float
    angle: float
    cells: float
    phase: float
    horizon: float


@dataclass(frozen=True)
class Scene:
    """Things over a background, lit from `light` (radians, clockwise from the right; always from above)."""

    things: tuple[Thing, ...]
    background: Background
    light: float


class Track(NamedTuple):
    """Where a thing is in each frame; arrays (T,) in the units of `Thing`."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    angle: np.ndarray


def track(thing: Thing, num_frames: int) -> Track:
    """The path of a thing over a clip of `num_frames`; a longer clip samples the same path more finely."""
    time = np.linspace(0, 1, num_frames)
    dx, dy = DIRECTIONS.get(thing.motion, (0, 0))
    x = thing.x + dx * thing.amount * time
    y = thing.y + dy * thing.amount * time
    radius = np.full(num_frames, thing.radius)
    angle = np.full(num_frames, thing.tilt)
    if thing.motion == "bounce":
        phase = time * HOPS % 1
        y = y - thing.amount * 4 * phase * (1 - phase)  # free fall between two touches of the ground
    elif thing.motion == "spin":
        angle = angle + thing.amount * time
    elif thing.motion in ("grow", "shrink"):
        radius = radius * thing.amount**time
    return Track(x, y, radius, angle)


def is_heldout(colour: str, shape: str, motion: str) -> bool:
    """Whether the triple is kept out of training: one in five, by a hash of `red_ball_left`."""
    return index_of(f"{colour}_{shape}_{motion}") % 5 == 0


@cache
def triples(heldout: bool | None) -> tuple[tuple[str, str, str], ...]:
    """All (colour, shape, motion) of one part; None: of both."""
    return tuple(
        (colour, shape, motion)
        for colour, shape, motion in product(COLOURS, SHAPES, MOTIONS)
        if not (motion == "spin" and shape in TURNS_ALIKE)
        and (heldout is None or is_heldout(colour, shape, motion) == heldout)
    )


def draw_scene(
    rng: np.random.Generator, *, num_things: int | None = None, heldout: bool | None = False
) -> Scene:
    """A random scene; things never overlap, never leave the frame, and never have the background's colour.

    num_things: 1 or 2; None draws two in a quarter of the scenes.
    heldout: False gives only triples of training, True only held-out ones, None any.

    Raises:
        InputError: another number of things.
    """
    if num_things not in (None, 1, 2):
        raise InputError(f"scene: got num_things={num_things}, wanted 1, 2 or None")
    if num_things is None:
        num_things = 1 + (rng.random() < 0.25)
    things = _draw_things(rng, num_things, heldout)
    background = _draw_background(rng, {thing.colour for thing in things})
    return Scene(things, background, light=rng.uniform(-2.5, -0.65))


def _draw_things(rng: np.random.Generator, count: int, heldout: bool | None) -> tuple[Thing, ...]:
    first = _draw_thing(rng, _pick(rng, triples(heldout)), shrunk=count > 1)
    if count == 1:
        return (first,)
    others = [triple for triple in triples(heldout) if triple[0] != first.colour]
    while True:
        second = _draw_thing(rng, _pick(rng, others), shrunk=True)
        if not _collide(first, second):
            return first, second
        first = _draw_thing(rng, first.triple, shrunk=True)


def _draw_thing(rng: np.random.Generator, triple: tuple[str, str, str], shrunk: bool) -> Thing:
    colour, shape, motion = triple
    size = _pick(rng, tuple(SIZES))
    radius = rng.uniform(*SIZES[size]) * (0.8 if shrunk else 1)
    amount = _draw_amount(rng, motion, radius)
    tilt = rng.uniform(-0.15, 0.15)
    tint = rng.uniform(0.93, 1.05)
    path = track(Thing(colour, shape, size, motion, 0, 0, radius, tilt, amount, tint), 33)
    margin = REACH * path.radius + MARGIN
    x = rng.uniform((margin - path.x).max(), (1 - margin - path.x).min())
    y = rng.uniform((margin - path.y).max(), (1 - margin - path.y).min())
    return Thing(colour, shape, size, motion, x, y, radius, tilt, amount, tint)


def _draw_amount(rng: np.random.Generator, motion: str, radius: float) -> float:
    room = 1 - 2 * (REACH * radius + MARGIN)
    if motion in DIRECTIONS:
        return rng.uniform(0.3, min(0.5, room))
    if motion == "bounce":
        return rng.uniform(0.2, min(0.4, room))
    if motion == "spin":
        return math.radians(rng.uniform(90, 150))
    if motion == "grow":
        return rng.uniform(1.6, min(2.1, (0.5 - MARGIN) / REACH / radius))
    return 1 / rng.uniform(1.6, 2.1) if motion == "shrink" else 0.0


def _collide(one: Thing, other: Thing) -> bool:
    a, b = track(one, 17), track(other, 17)
    return bool((np.hypot(a.x - b.x, a.y - b.y) < REACH * (a.radius + b.radius)).any())


def _draw_background(rng: np.random.Generator, taken: set[str]) -> Background:
    free = tuple(colour for colour in BACKDROPS if colour not in taken)
    kind, colour = _pick(rng, KINDS), _pick(rng, free)
    wall = _pick(rng, tuple(other for other in free if other != colour)) if kind == "floor" else colour
    return Background(
        kind,
        colour,
        wall,
        tint=rng.uniform(0.9, 1.06),
        contrast=rng.uniform(0.1, 0.17),
        angle=rng.uniform(0, math.tau),
        cells=rng.uniform(4, 7),
        phase=rng.uniform(0, 2),
        horizon=rng.uniform(0.45, 0.65),
    )


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


NOUNS = {
    "ball": ("ball", "ball", "sphere", "disc"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "cross", "plus sign"),
    "ring": ("ring", "ring", "hoop"),
}
SIZE_WORDS = {"small": ("small", "small", "little", "tiny"), "large": ("large", "large", "big", "huge")}
COLOUR_WORDS = {colour: (colour,) for colour in COLOURS} | {"purple": ("purple", "purple", "violet")}
VERBS = {  # "a ball ...", "there is a ball ..."
    **{
        side: tuple(
            (f"{verb}s {where}", f"{stem}ing {where}")
            for verb, stem in (("move", "mov"), ("slide", "slid"), ("travel", "travell"), ("drift", "drift"))
            for where in (side, f"to the {side}")
        )
        for side in ("left", "right")
    },
    "up": (("moves up", "moving up"), ("rises", "rising"), ("floats upwards", "floating upwards")),
    "down": (("moves down", "moving down"), ("sinks", "sinking"), ("drifts downwards", "drifting downwards")),
    "still": (("stays still", "staying still"), ("does not move", "not moving"), ("rests", "resting")),
    "spin": (("spins", "spinning"), ("rotates", "rotating"), ("turns clockwise", "turning clockwise")),
    "grow": (("grows", "growing"), ("gets bigger", "getting bigger"), ("expands", "expanding")),
    "shrink": (("shrinks", "shrinking"), ("gets smaller", "getting smaller"), ("contracts", "contracting")),
    "bounce": (("bounces", "bouncing"), ("hops up and down", "hopping up and down"), ("jumps", "jumping")),
}
PLACES = {  # what follows a preposition
    "plain": (("on", "a plain {} background"), ("over", "a {} background")),
    "gradient": (("on", "a softly shaded {} background"), ("over", "a {} gradient")),
    "floor": (("over", "a {} floor"), ("over", "a {} floor in front of a {wall} wall")),
    "checker": (("on", "a {} checkered background"), ("over", "a {} checkerboard")),
    "stripes": (("on", "a {} striped background"), ("over", "{} stripes")),
}


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One lower-case sentence: colour, shape and motion of every thing; mostly size and background too."""
    names_size, names_place = rng.random() < 0.8, rng.random() < 0.8
    listing = rng.random() < 0.2
    deeds = " and ".join(_deed(rng, thing, names_size, listing) for thing in scene.things)
    sentence = f"there {'is' if len(scene.things) == 1 else 'are'} {deeds}" if listing else deeds
    if not names_place:
        return sentence
    background = scene.background
    preposition, place = _pick(rng, PLACES[background.kind])
    place = f"{preposition} {place.format(background.colour, wall=background.wall)}"
    return f"{place}, {sentence}" if rng.random() < 0.15 else f"{sentence} {place}"


def _deed(rng: np.random.Generator, thing: Thing, names_size: bool, listing: bool) -> str:
    words = [_pick(rng, COLOUR_WORDS[thing.colour]), _pick(rng, NOUNS[thing.shape])]
    if names_size:
        words.insert(0, _pick(rng, SIZE_WORDS[thing.size]))
    finite, participle = _pick(rng, VERBS[thing.motion])
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words, participle if listing else finite])
