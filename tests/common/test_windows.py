"""Long videos: the windows cover them, hand on what they made, and a jump between two is seen."""

import itertools

import numpy as np
import pytest

from common.given import Given
from common.images import to_model
from common.masks import MASKED
from common.windows import Window, check_joins, joined, plan_windows, window_pixels


@pytest.mark.parametrize("num_frames", [18, 29, 33, 45, 100])
@pytest.mark.parametrize("overlap", [1, 5, 9, 16])
def test_windows_cover_the_video_and_overlap(num_frames, overlap):
    windows = plan_windows(num_frames, 17, overlap)
    assert windows[0].start == 0
    assert windows[0].num_known == 0
    assert windows[-1].stop == num_frames
    assert {window.num_frames for window in windows} == {17}  # one graph
    for before, window in itertools.pairwise(windows):
        assert window.num_known == overlap
        assert before.start < window.start <= before.stop - overlap


def test_a_video_that_fits_is_one_window():
    assert plan_windows(9, 17, 0) == [Window(0, 9, 0)]


@pytest.mark.parametrize("overlap", [0, 17, 20])
def test_an_overlap_that_leaves_nothing_is_refused(overlap):
    with pytest.raises(ValueError, match="overlap_frames"):
        plan_windows(33, 17, overlap)


def test_windows_are_joined_where_the_known_frames_end():
    before, window = plan_windows(20, 17, 5)
    ones, twos = np.ones((1, 3, 17, 2, 2)), np.full((1, 3, 17, 2, 2), 2)
    made = joined(joined(None, before, ones), window, twos)
    assert made[0, 0, :, 0, 0].tolist() == [1] * 8 + [2] * 12


def test_a_window_knows_what_was_made_and_what_is_given():
    picture = np.full((1, 16, 16, 3), 200, np.uint8)
    made = np.random.default_rng(0).uniform(-1.5, 1.5, (2, 3, 11, 16, 16)).astype(np.float32)
    given = [Given(np.concatenate([picture, picture]), (2, 12), (16, 16)), Given(picture[:0], (), (16, 16))]
    x_BCTHW, given_BT = window_pixels(Window(4, 9, 5), given, made)
    assert given_BT.astype(int).tolist() == [[1] * 5 + [0] * 3 + [1], [1] * 5 + [0] * 4]
    np.testing.assert_array_equal(x_BCTHW[:, :, :5], made[:, :, 4:9].clip(-1, 1))
    np.testing.assert_array_equal(x_BCTHW[0, :, 8], to_model(picture)[0, :, 0])
    assert (x_BCTHW[0, :, 5:8] == MASKED).all()
    assert (x_BCTHW[1, :, 5:] == MASKED).all()


def test_nothing_given_is_all_masked():
    nothing = Given(np.zeros((0, 16, 16, 3), np.uint8), (), (16, 16))
    x_BCTHW, given_BT = window_pixels(Window(0, 5, 0), [nothing], None)
    assert not given_BT.any()
    assert (x_BCTHW == MASKED).all()


def moving_square(num_frames, jump_at=None, flash_at=None, stop_at=None):
    frames = np.full((num_frames, 48, 48, 3), 90, np.uint8)
    for t in range(num_frames):
        left = 3 * (t if stop_at != t else t - 1) + (15 if jump_at is not None and t >= jump_at else 0)
        frames[t, 10:38, left % 36 : left % 36 + 12] = 220
        if flash_at is not None and t >= flash_at:
            frames[t] = np.clip(frames[t].astype(int) + 30, 0, 255)
    return frames


def test_smooth_joins_do_not_jump():
    windows = plan_windows(29, 17, 5)
    joins = check_joins(moving_square(29), windows)
    assert [join.frame for join in joins] == [17]
    assert not any(join.jumps for join in joins)
    assert check_joins(moving_square(17), plan_windows(17, 17, 5)) == []


@pytest.mark.parametrize("fault", [{"jump_at": 17}, {"flash_at": 17}, {"stop_at": 17}])
def test_a_jump_in_place_or_brightness_and_a_stop_are_seen(fault):
    (join,) = check_joins(moving_square(29, **fault), plan_windows(29, 17, 5))
    assert join.jumps
