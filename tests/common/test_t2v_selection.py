"""Which clips are used and why not, at which size and length; frames by index; pixels of a size."""

from fractions import Fraction

import av
import numpy as np
import pytest

from common.config import build
from common.data import frames
from common.data.buckets import Bucket, SizesConfig, sizes_of
from common.data.frames import TooShortError, read_frames
from common.data.selection import REASONS, Columns, choose_frames, closest_length, select
from common.data.t2v_config import T2VDataConfig
from common.data.transforms import fit_of, resize
from common.video import write_video


def config(**changes):
    sizes = changes.pop("sizes", {"height": 32, "width": 48})
    return build(T2VDataConfig, {"annotations": "x.json", "sizes": sizes, **changes}, where="test")


def columns(**changes):
    """Ten good clips of which some columns are changed."""
    good = {
        "unreadable": False,
        "has_caption": True,
        "known_type": True,
        "is_image": False,
        "height": 360,
        "width": 540,
        "num_frames": 100,
        "fps": 16.0,
    }
    full = {name: np.full(10, value) for name, value in good.items()}
    for name, values in changes.items():
        full[name][: len(values)] = values
    return Columns(**full)


def reasons(config, columns, **more):
    chosen = select(columns, config, config.sizes, np.linspace(0, 0.9, 10), **more)
    return [REASONS[number] for number in chosen.reason]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"unreadable": [True]}, "unreadable entry"),
        ({"has_caption": [False]}, "no caption"),
        ({"width": [0]}, "no resolution"),
        ({"height": [0]}, "no resolution"),
        ({"known_type": [False]}, "file type unknown"),
        ({"height": [1200]}, "too wide or too tall"),
        ({"num_frames": [0]}, "no number of frames"),
        ({"num_frames": [93 * 5 + 1]}, "too long"),
        ({"num_frames": [28]}, "too short"),
        ({"num_frames": [100], "fps": [60.0]}, "too short"),
    ],
)
def test_every_reason_is_given(change, reason):
    found = reasons(config(), columns(**change))
    assert found == [reason] + ["kept"] * 9


def test_pictures_need_no_length():
    chosen = select(columns(is_image=[True], num_frames=[0]), config(), config().sizes, np.ones(10))
    assert chosen.counts() == {"kept": 10}
    assert chosen.num_frames[0] == 1


def test_the_first_reason_counts():
    assert reasons(config(), columns(has_caption=[False], num_frames=[0]))[0] == "no caption"


def test_short_clips_are_left_out_in_proportion():
    found = reasons(config(drop_short_ratio=0.5), columns(num_frames=[50] * 10))
    assert found.count("left out as short (drop_short_ratio)") == 5


def test_low_scores():
    low = np.arange(10) < 3
    assert reasons(config(), columns(), low_score=low).count("score missing or too low") == 3


@pytest.mark.parametrize(
    ("sizes", "size", "expected"),
    [
        ({"height": 32, "width": 48}, (500, 800), (32, 48)),
        ({"max_tokens": 924}, (720, 1280), (352, 640)),
        ({"max_tokens": 924}, (1280, 720), (640, 352)),
        ({"max_tokens": 924}, (100, 130), (96, 128)),  # never enlarged
        ({"max_height": 480, "max_width": 640}, (720, 1280), (352, 640)),
        ({"max_height": 480, "max_width": 640}, (1280, 720), (480, 256)),
        ({"max_height": 480, "max_width": 640, "hw_stride": 16}, (1280, 720), (480, 256)),
    ],
)
def test_sizes(sizes, size, expected):
    found = sizes_of(build(SizesConfig, sizes, where="test"), *map(np.array, size))
    assert (found.height, found.width) == expected
    assert fit_of(build(SizesConfig, sizes, where="test"), *size).after[2:] == expected


def test_too_small_for_the_bounds():
    rule = build(SizesConfig, {"max_height": 480, "max_width": 640, "min_height": 128}, where="test")
    found = sizes_of(rule, np.array([100, 200]), np.array([160, 320]))
    assert found.too_small.tolist() == [True, False]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "exactly one of annotations"),
        ({"annotations": "x", "generated": True}, "exactly one of annotations"),
        ({"annotations": "x"}, "annotations need sizes"),
        ({"generated": True}, "needs generated_sizes"),
        ({"generated": True, "generated_sizes": [[16, 64, 64]]}, "4k\\+1 frames"),
        ({"annotations": "x", "sizes": {"height": 32}}, "exactly one of height and width"),
        ({"annotations": "x", "sizes": {"max_tokens": 9, "max_height": 32}}, "exactly one of height"),
        ({"annotations": "x", "sizes": {"max_tokens": 9}, "num_frames": 92}, "next below is 89"),
        (
            {"annotations": "x", "sizes": {"max_tokens": 9}, "num_frames": 93, "latent_multiple": 16},
            "next below is 61",
        ),
        ({"annotations": "x", "sizes": {"max_tokens": 9}, "num_frames": 17}, "below min_frames=29"),
    ],
)
def test_config_mistakes(tree, message):
    with pytest.raises(ValueError, match=message):
        build(T2VDataConfig, tree, where="test")


def test_frames_are_resampled():
    chosen = choose_frames(10, 60, 24.0, config(num_frames=29), lambda total, length: 3)
    assert chosen[:4].tolist() == [14, 16, 17, 19]  # 10 + floor(1.5 k), from k = 3 on
    assert len(chosen) == 29
    assert choose_frames(0, 50, 15.95, config(), lambda *_: 0).tolist() == list(range(49))


def test_speed_thins_long_clips_only():
    def first(total, length):
        return 0

    fast = choose_frames(0, 80, 16.0, config(num_frames=29), first, speed_factor=2.0)
    assert np.diff(fast).mean() == pytest.approx(2, abs=0.1)
    just = choose_frames(0, 35, 16.0, config(num_frames=29), first, speed_factor=2.0)
    assert len(just) == 29
    assert just[-1] == 34
    assert choose_frames(0, 29, 16.0, config(num_frames=29), first, 2.0).tolist() == list(range(29))


def test_lengths_never_need_padding():
    lengths = closest_length(np.arange(1, 200), 1, 1)
    assert ((lengths - 1) % 4 == 0).all()
    assert (np.arange(1, 200) - lengths < 4).all()


def test_tokens():
    assert Bucket(93, 352, 640).num_tokens == 24 * 22 * 40
    assert Bucket(1, 480, 480).num_tokens == 900


BITS = 2 ** np.arange(8)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """The number of a frame is written in it: eight columns, bright where a bit is set."""
    path = tmp_path_factory.mktemp("video") / "numbered.mp4"
    bits_T8 = (np.arange(200)[:, None] & BITS) > 0
    columns_TW = np.repeat(bits_T8, 8, axis=1) * np.uint8(255)
    write_video(path, np.broadcast_to(columns_TW[:, None, :, None], (200, 16, 64, 3)).copy(), fps=24)
    return path


def numbers_of(frames_THWC):
    return ((frames_THWC[:, 8, 4::8, 1] > 127) @ BITS).tolist()


@pytest.mark.parametrize("start", [0, 100, 170])
@pytest.mark.parametrize("worth_jumping", [0, 48, 1000])
def test_frames_are_those_asked_for(video, start, worth_jumping, monkeypatch):
    monkeypatch.setattr(frames, "WORTH_JUMPING", worth_jumping)
    indices = start + np.array([0, 1, 1, 4, 9, 29])
    found_THWC = read_frames(video, indices, lambda x: x)
    assert numbers_of(found_THWC) == indices.tolist()


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_frames_dropped_before_a_cut_move_nothing(tmp_path, suffix):
    """A screen recording: its mean rate says nothing of where frame 60 is."""
    path, rate = tmp_path / f"dropped.{suffix}", Fraction(1, 30)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 64, "yuv420p", 30
        for i in range(120):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 2 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = i if i < 20 else i + 10, rate
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    found_THWC = read_frames(path, np.arange(60, 90), lambda x: x)
    np.testing.assert_allclose(found_THWC.mean((1, 2, 3)), np.arange(120, 180, 2), atol=1)


def test_a_video_too_short_for_its_annotation(video):
    with pytest.raises(TooShortError, match="no frame 200"):
        read_frames(video, np.array([198, 199, 200]), lambda x: x)


def test_resizing_keeps_what_is_even():
    grey = np.full((1, 37, 53, 3), 77, np.uint8)
    for size in ((37, 53), (16, 16), (80, 90)):
        assert np.allclose(resize(grey, *size), 77, atol=1e-4)
    noise = np.random.default_rng(0).integers(256, size=(2, 20, 30, 3), dtype=np.uint8)
    assert np.array_equal(resize(noise, 20, 30), noise)
