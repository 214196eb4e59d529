"""Clips cover what they should, broken files are counted and named, the table tells what the report has."""

import os

import numpy as np
import pytest

from common import evaluation
from common.config import build
from common.data.video_files import find_videos
from common.evaluation import Score, clip_starts, in_groups, read_clips
from common.files import write_json
from common.models import read_json
from common.runs import EvaluateVAEConfig
from common.video import write_video


def config(**changes):
    fields = {"vae": {"config": {}, "random_seed": 0}, "num_frames": 4, "height": 16, "width": 32, **changes}
    return build(EvaluateVAEConfig, fields, "test")


@pytest.mark.parametrize(
    ("total", "clips", "starts"),
    [
        (12, 0, [0, 4, 8]),
        (14, 0, [0, 4, 8, 10]),  # the last one ends with the video
        (4, 0, [0]),
        (3, 0, [0]),  # too short: reading says so
        (14, 2, [0, 4]),
        (14, 9, [0, 4, 8]),
        (None, 1, [0]),
    ],
)
def test_clips_of_four_frames(total, clips, starts):
    assert clip_starts(total, 4, clips) == starts


@pytest.mark.parametrize("num", [1, 3, 4, 7])
def test_groups_give_what_the_whole_gives_and_have_one_shape(num):
    x, y = np.arange(num * 2.0).reshape(num, 2), np.ones((num, 2))
    shapes = []

    def add(a, b):
        shapes.append(a.shape)
        return a + b

    np.testing.assert_array_equal(in_groups(add, 3, x, y), x + y)
    assert set(shapes) == {(3, 2)}


def test_broken_files_are_named_and_the_others_read(tmp_path):
    frames_THWC = np.zeros((10, 16, 32, 3), np.uint8)
    frames_THWC[:] = np.arange(0, 200, 20, dtype=np.uint8)[:, None, None, None]
    (tmp_path / "sub").mkdir()
    write_video(tmp_path / "sub" / "good.mp4", frames_THWC, 8)
    write_video(tmp_path / "short.mp4", frames_THWC[:3], 8)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    odd = tmp_path / os.fsdecode(b"bad\xff.mp4")
    odd.write_bytes(b"no video")
    listed = [*find_videos(tmp_path / "sub"), tmp_path / ("x" * 300 + ".mp4")]
    skipped: dict[str, str] = {}
    assert len(list(read_clips(listed, config(input=str(tmp_path)), skipped))) == 1
    assert len(skipped) == 1
    list(read_clips([odd], config(input=str(tmp_path)), skipped))
    write_json(tmp_path / "report.json", skipped)
    assert list(read_json(tmp_path / "report.json")) == list(skipped)
    odd.unlink()
    whole = (tmp_path / "sub" / "good.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    for clips, starts in ((0, [0, 4, 6]), (1, [0])):
        skipped = {}
        settings = config(input=str(tmp_path), clips_per_video=clips)
        found = list(read_clips(find_videos(tmp_path), settings, skipped))
        assert [(clip.name, clip.start) for clip in found] == [("sub/good.mp4", start) for start in starts]
        assert sorted(skipped) == ["broken.mp4", "cut.mp4", "short.mp4"]
        assert "has 3 frames" in skipped["short.mp4"]
    settings = config(input=str(tmp_path / "sub" / "good.mp4"), stride=2, clips_per_video=0)
    found = list(read_clips([tmp_path / "sub" / "good.mp4"], settings, skipped))
    assert [(clip.name, clip.start) for clip in found] == [("good.mp4", 0), ("good.mp4", 2)]
    levels = [round(float(clip.frames_THWC[1].mean()), -1) for clip in found]
    assert levels == [40, 80], "every second frame"


def scores(num):
    return [Score("a.mp4", i, 30.0 + i, 0.9, None) for i in range(num)]


def test_the_summary_says_what_fvd_is_worth():
    rng = np.random.default_rng(0)
    features = [rng.standard_normal((3, 400)), rng.standard_normal((3, 400))]
    facts = evaluation.summary(scores(3), features)
    assert facts["fvd"] > 0
    assert "3 clips are few" in facts["fvd_note"]
    assert facts["psnr_db"] == 31
    assert facts["lpips"] is None
    lines = "\n".join(evaluation.footer(facts, {"x.mp4": "broken"}, 4))
    assert f"FVD  {facts['fvd']}" in lines
    assert "skipped 1 of 4 files:\n  x.mp4: broken" in lines
    one = evaluation.summary(scores(1), [x[:1] for x in features])
    assert one["fvd"] is None
    assert "2 clips or more" in one["fvd_note"]
    assert "fvd_convention" not in evaluation.summary(scores(2), [])
    many = evaluation.summary(scores(256), [rng.standard_normal((256, 4))] * 2)
    assert "fvd_note" not in many


def test_the_table_is_aligned():
    rows = [Score("a.mp4", 0, 30.123, 0.5, 0.25).row(), Score("x" * 80, 7, 8.0, 0.01, None).row()]
    assert {len(line) for line in [*rows, evaluation.header()]} == {len(evaluation.header())}
    assert rows[0].split() == ["a.mp4", "@0", "30.12", "0.5000", "0.2500"]
    assert rows[1].startswith("..x")
    assert rows[1].split()[1] == "@7"


def test_the_picture_magnifies_errors():
    a_THWC = np.full((3, 4, 6, 3), 100, np.uint8)
    b_THWC = a_THWC.copy()
    b_THWC[1] = 110  # the middle frame
    row = evaluation.grid_row(a_THWC, b_THWC, 5)
    assert row.shape == (4, 18, 3)
    assert [int(row[0, x, 0]) for x in (0, 6, 12)] == [100, 110, 50]


def test_fvd_wants_clips_of_nine_frames():
    with pytest.raises(ValueError, match="FVD wants num_frames of at least 9"):
        config(input="x", i3d="weights/i3d")
