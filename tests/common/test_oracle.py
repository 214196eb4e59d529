"""The oracle reads what the renderer drew, through blur, noise and H.264, and nothing where nothing is."""

from dataclasses import replace

import numpy as np
import pytest

from common.data.drawing import render
from common.data.scenes import COLOURS, MOTIONS, SHAPES, Scene, draw_scene
from common.oracle import NOTHING, read_back
from tools.oracle import HARMS, clip_of, main, report, sheet


def scenes(count: int, **wishes) -> list[Scene]:
    rng = np.random.default_rng(11)
    return [draw_scene(rng, num_things=1, heldout=None, **wishes) for _ in range(count)]


@pytest.mark.parametrize(
    ("harm", "size", "num_frames", "count"),
    [
        ("as rendered", 64, 17, 100),
        ("blur 0.7 px, noise 4/255", 64, 17, 200),
        ("blur 0.7 px, noise 4/255", 96, 33, 40),
        ("H.264 as samples are written", 64, 17, 100),
    ],
)
def test_it_reads_what_was_drawn(harm, size, num_frames, count):
    rng = np.random.default_rng(2)
    read = [HARMS[harm](render(scene, num_frames, size, size), rng) for scene in scenes(count)]
    read = np.array([read_back(frames).triple for frames in read])
    truth = np.array([scene.things[0].triple for scene in scenes(count)])
    right = read == truth
    assert right.mean(0).min() >= 0.98
    assert right.all(1).mean() >= 0.97
    shuffled = (read == np.roll(truth, count // 2, axis=0)).mean(0)
    for share, words in zip(shuffled, (COLOURS, SHAPES, MOTIONS)):
        assert share < 1 / len(words) + 0.15, "what it reads must hang on the clip"


def test_sizes_and_lengths_it_was_not_tuned_on():
    rng = np.random.default_rng(3)
    for scene in scenes(30):
        height, width = (int(side) for side in rng.integers(56, 200, 2))
        frames = render(scene, int(rng.integers(9, 60)), height, width)
        assert read_back(frames).triple == scene.things[0].triple


def test_one_frame_tells_colour_and_shape():
    for scene in scenes(30):
        reading = read_back(render(scene, 1, 64, 64))
        assert reading.triple == (*scene.things[0].triple[:2], "still")


def test_an_empty_scene_is_nothing():
    for scene in scenes(50):
        assert read_back(render(replace(scene, things=()), 3, 64, 64)) == NOTHING


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 3, 300, 3), (50, 40, 30, 3), (17, 64, 64, 3)])
def test_no_pixels_make_it_fail(shape):
    rng = np.random.default_rng(4)
    for value in (0, 90, 255):
        assert read_back(np.full(shape, value, np.uint8)) == NOTHING
    noise = rng.integers(0, 256, shape, dtype=np.uint8)
    assert read_back(noise).colour in (*COLOURS, "none")


def test_a_thing_that_vanishes_is_nothing():
    frames = render(scenes(1)[0], 17, 64, 64)
    frames[4:] = 120
    assert read_back(frames) == NOTHING


def test_other_pixels_are_refused():
    with pytest.raises(ValueError, match=r"oracle: got float32 .+ wanted uint8"):
        read_back(np.zeros((2, 8, 8, 3), np.float32))


def test_the_tool_reports_and_draws(tmp_path, monkeypatch, capsys):
    table = report(num_clips=6, size=64, num_frames=5, seed=0)
    assert table.count("|") > 30
    assert "truth shuffled" in table
    assert clip_of(1, 2, True) == clip_of(1, 2, True)
    assert sheet(seed=0, num_clips=4).shape[2] == 3
    monkeypatch.setattr("sys.argv", ["oracle", "--read", str(tmp_path / "absent.mp4")])
    assert main() == 2
    assert "error: " in capsys.readouterr().err
