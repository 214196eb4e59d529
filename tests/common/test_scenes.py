"""The clips of the tiny release: reproducible, captioned truthfully, in the frame, held-out triples apart."""

import re
from dataclasses import replace

import numpy as np
import pytest

from common.data.drawing import distance_table, render
from common.data.scenes import (
    BACKDROPS,
    COLOUR_WORDS,
    COLOURS,
    DIRECTIONS,
    KINDS,
    MARGIN,
    MOTIONS,
    NOUNS,
    PLACES,
    REACH,
    SHAPES,
    SIZE_WORDS,
    TURNS_ALIKE,
    VERBS,
    Scene,
    caption,
    draw_scene,
    is_heldout,
    track,
    triples,
)


def scenes(count: int, **wishes) -> list[Scene]:
    rng = np.random.default_rng(5)
    return [draw_scene(rng, **wishes) for _ in range(count)]


def motion_scene(motion: str) -> Scene:
    rng = np.random.default_rng(6)
    return next(
        scene
        for scene in iter(lambda: draw_scene(rng, num_things=1, heldout=None), None)
        if scene.things[0].motion == motion and scene.background.kind == "plain"
    )


def test_one_seed_gives_one_clip():
    for num_things in (1, 2, None):
        one, two = (np.random.default_rng(3) for _ in range(2))
        first, second = draw_scene(one, num_things=num_things), draw_scene(two, num_things=num_things)
        assert first == second
        assert caption(first, one) == caption(second, two)
        np.testing.assert_array_equal(render(first, 5, 48, 64), render(second, 5, 48, 64))


def test_the_parts_share_no_triple_and_both_know_every_word():
    kept, heldout = set(triples(False)), set(triples(True))
    assert not kept & heldout
    assert kept | heldout == set(triples(None))
    assert 0.15 < len(heldout) / len(triples(None)) < 0.25
    for part in (kept, heldout):
        for place, words in enumerate((COLOURS, SHAPES, MOTIONS)):
            assert {triple[place] for triple in part} == set(words)
    assert {(colour, shape) for colour, shape, _ in kept} == {(c, s) for c in COLOURS for s in SHAPES}
    assert not any(motion == "spin" and shape in TURNS_ALIKE for _, shape, motion in kept | heldout)


def test_the_held_out_triples_never_change():
    assert is_heldout("red", "ball", "left") is False  # models are trained on this very division
    assert sorted(triples(True))[:3] == [
        ("blue", "ball", "grow"),
        ("blue", "ball", "shrink"),
        ("blue", "ball", "still"),
    ]
    assert len(triples(True)) == 90


@pytest.mark.parametrize("num_things", [1, 2, None])
def test_scenes_keep_to_their_part(num_things):
    for heldout in (False, True):
        for scene in scenes(200, num_things=num_things, heldout=heldout):
            assert all(is_heldout(*thing.triple) == heldout for thing in scene.things)
            assert len(scene.things) in ((1, 2) if num_things is None else (num_things,))


def test_another_number_of_things_is_refused():
    with pytest.raises(ValueError, match="got num_things=3, wanted 1, 2 or None"):
        draw_scene(np.random.default_rng(0), num_things=3)


def phrase(words) -> str:
    return "|".join(sorted({re.escape(word) for word in words}, key=len, reverse=True))


def test_captions_say_what_is_there_and_nothing_else():
    nouns = {word: shape for shape, words in NOUNS.items() for word in words}
    colours = {word: colour for colour, words in COLOUR_WORDS.items() for word in words}
    sizes = {word: size for size, words in SIZE_WORDS.items() for word in words}
    verbs = {form: motion for motion, pairs in VERBS.items() for pair in pairs for form in pair}
    assert sum(len(pair) for pairs in VERBS.values() for pair in pairs) == len(verbs), "ambiguous verb"
    thing = re.compile(
        rf"\b(an?) (?:({phrase(sizes)}) )?({phrase(colours)}) ({phrase(nouns)}) ({phrase(verbs)})(?![\w])"
    )
    rng, sized, placed = np.random.default_rng(8), 0, 0
    for scene in scenes(600, heldout=None):
        text = caption(scene, rng)
        assert re.fullmatch(r"[a-z ,]+", text), text
        assert "  " not in text
        found = thing.findall(text)
        told = [(colours[colour], nouns[noun], verbs[verb]) for _, _, colour, noun, verb in found]
        assert told == [thing.triple for thing in scene.things], text
        for article, size, colour, _, _ in found:
            assert article == ("an" if (size or colour)[0] in "aeiou" else "a"), text
        assert all(sizes[f[1]] == t.size for f, t in zip(found, scene.things) if f[1]), text
        rest = re.sub(r" and $|^there (is|are) ", "", thing.sub("", text))
        named = set(re.findall(r"\w+", rest)) & (set(BACKDROPS) | set(colours))
        assert named <= {scene.background.colour, scene.background.wall}, text
        sized, placed = sized + bool(found[0][1]), placed + bool(named)
    assert 0.7 < sized / 600 < 0.9
    assert 0.7 < placed / 600 < 0.9


def test_every_place_has_words():
    assert set(PLACES) == set(KINDS)


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (130, 77), (512, 512), (8, 8)])
def test_any_size_and_length(size):
    frames = render(scenes(1)[0], 2, *size)
    assert frames.shape == (2, *size, 3)
    assert frames.dtype == np.uint8
    assert frames.flags.c_contiguous


@pytest.mark.parametrize(("num_frames", "size"), [(0, 64), (1, 7)])
def test_impossible_clips_are_refused(num_frames, size):
    with pytest.raises(ValueError, match=r"render: got .+ wanted at least 1 of at least 8x8"):
        render(scenes(1)[0], num_frames, size, size)


def test_the_first_frame_does_not_depend_on_the_length():
    for scene in scenes(20):
        first = render(scene, 1, 64, 64)[0]
        np.testing.assert_array_equal(first, render(scene, 17, 64, 64)[0])
        np.testing.assert_array_equal(render(scene, 17, 64, 64)[8], render(scene, 33, 64, 64)[16])


def test_the_composition_does_not_depend_on_the_size():
    for scene in scenes(10):
        large, small = render(scene, 1, 256, 256)[0], render(scene, 1, 64, 64)[0]
        shrunk = large.reshape(64, 4, 64, 4, 3).mean((1, 3))
        assert np.abs(shrunk - small).mean() < 2.5


def test_things_stay_in_the_frame_and_apart():
    for shape in SHAPES:
        line = np.linspace(-2, 2, len(distance_table(shape)))
        reach = np.hypot(*np.meshgrid(line, line))[distance_table(shape) <= 0].max()
        assert reach <= REACH
    for scene in scenes(300):
        paths = [track(thing, 33) for thing in scene.things]
        for path in paths:
            for place in (path.x, path.y):
                assert (place - REACH * path.radius >= MARGIN - 1e-9).all()
                assert (place + REACH * path.radius <= 1 - MARGIN + 1e-9).all()
        if len(paths) == 2:
            gap = np.hypot(paths[0].x - paths[1].x, paths[0].y - paths[1].y)
            assert (gap > 0.95 * REACH * (paths[0].radius + paths[1].radius)).all()


@pytest.mark.parametrize("motion", MOTIONS)
def test_pixels_move_as_named(motion):
    scene = motion_scene(motion)
    frames = render(scene, 17, 64, 64).astype(int)
    behind = render(replace(scene, things=()), 1, 64, 64).astype(int)
    there = np.abs(frames - behind).max(-1) > 40
    area = there.sum((1, 2))
    x = (there.sum(1) * np.arange(64)).sum(1) / area
    y = (there.sum(2) * np.arange(64)).sum(1) / area
    growth = area[-1] / area[0]
    moved = tuple(int(np.sign(d)) if abs(d) > 12 else 0 for d in (x[-1] - x[0], y[-1] - y[0]))
    assert moved == DIRECTIONS.get(motion, (0, 0))
    assert (growth > 1.8) == (motion == "grow")
    assert (growth < 0.6) == (motion == "shrink")
    touches, tops = y[[0, 8, 16]], y[[4, 12]]
    assert (tops.max() < touches.min() - 8) == (motion == "bounce")
    assert (np.abs(frames[5] - frames[0]).max() < 12) == (motion == "still")


def test_spinning_is_clockwise():
    scene = motion_scene("spin")
    thing = scene.things[0]
    later = replace(scene, things=(replace(thing, tilt=thing.tilt + thing.amount / 2),))
    np.testing.assert_array_equal(render(scene, 3, 64, 64)[1], render(later, 1, 64, 64)[0])
    upright = replace(thing, shape="triangle", motion="still", tilt=0.0, x=0.5, y=0.5, radius=0.3)
    turned = replace(upright, tilt=np.pi / 6)  # the tip moves from the top to the right
    one, two = (render(replace(scene, things=(t,)), 1, 64, 64)[0].astype(int) for t in (upright, turned))
    behind = render(replace(scene, things=()), 1, 64, 64)[0].astype(int)
    tip = [np.abs(frame[:28] - behind[:28]).max(-1) > 60 for frame in (one, two)]
    centre = [(mask.sum(0) * np.arange(64)).sum() / mask.sum() for mask in tip]
    assert centre[1] > centre[0] + 2


def test_a_thing_never_has_the_colour_of_the_background():
    for scene in scenes(300):
        for thing in scene.things:
            assert thing.colour not in (scene.background.colour, scene.background.wall)
        assert len({thing.colour for thing in scene.things}) == len(scene.things)


def test_a_thing_stands_out_from_the_background():
    for scene in scenes(100, num_things=1):
        thing = scene.things[0]
        picture, behind = (render(s, 1, 64, 64)[0].astype(int) for s in (scene, replace(scene, things=())))
        differing = np.abs(picture - behind).max(-1) > 60
        assert differing.mean() > 0.9 * thing.radius**2
