"""Clips are a pure function of (seed, step, rank); broken files are named, and stop the run when many."""

import importlib.util
import shutil
from collections import Counter

import numpy as np
import pytest

from common.config import build
from common.data import photographs
from common.data.clips import ClipLoader, ClipsConfig, turn
from common.images import write_png
from common.parallel import Mesh
from common.video import write_video

NUM_FRAMES = 30  # of each file
HAS_SKIMAGE = importlib.util.find_spec("skimage") is not None
needs_skimage = pytest.mark.skipif(not HAS_SKIMAGE, reason="scikit-image is not installed")


def numbered(file, num_frames=NUM_FRAMES, height=32, width=48):
    """Red tells the file, green the frame, blue the side: 40 on the left, 200 on the right."""
    frames_THWC = np.zeros((num_frames, height, width, 3), np.uint8)
    frames_THWC[..., 0] = 20 + 25 * file
    frames_THWC[..., 1] = 20 + 6 * np.arange(num_frames)[:, None, None]
    frames_THWC[..., 2] = np.where(np.arange(width) < width // 2, 40, 200)
    return frames_THWC


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Six videos, two of them below, and three pictures, as files 6, 7 and 8 of which 6 lies below."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "below").mkdir()
    for file in range(6):
        name = f"below/{file}.mp4" if file > 3 else f"{file}.mp4"
        write_video(folder / name, numbered(file), fps=25)
    for file in (6, 7, 8):
        write_png(folder / ("below/6.png" if file == 6 else f"{file}.png"), numbered(file, 1)[0])
    return folder


def config(*sources, **changes):
    """Clips of 5 frames, 32 x 32, read by a thread."""
    sources = [source if isinstance(source, dict) else {"videos": str(source)} for source in sources]
    tree = {"sources": sources, "num_frames": 5, "height": 32, "width": 32, "workers": 0, **changes}
    return build(ClipsConfig, tree, where="test")


def batches(config, start=0, stop=4, batch_size=2, seed=0, mesh=Mesh()):  # noqa: B008
    return {step: x["x_BCTHW"] for step, x in ClipLoader(config, batch_size, seed, mesh).batches(start, stop)}


def assert_equal(some, others):
    assert some.keys() == others.keys()
    assert all(np.array_equal(some[step], others[step]) for step in some)


def pixels(x_CTHW):
    return (x_CTHW + 1) * 127.5


def file_of(x_CTHW):
    return round((pixels(x_CTHW)[0].mean() - 20) / 25)


def frames_of(x_CTHW):
    return [round((green - 20) / 6) for green in pixels(x_CTHW)[1].mean((1, 2))]


def files_of(batches):
    return [file_of(x_CTHW) for x_BCTHW in batches.values() for x_CTHW in x_BCTHW]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_and_resuming_change_nothing(folder, workers):
    plain = config(folder, {"generated": True}, sample_rate=[1, 3], image_share=0.25, random_flip=True)
    whole = batches(plain)
    assert_equal(batches(plain.replace(workers=workers)), whole)
    resumed = batches(plain.replace(workers=workers, prefetch=0), start=2)
    assert_equal(resumed, {step: whole[step] for step in (2, 3)})


def test_seeds_and_steps_differ(folder):
    one, other = batches(config(folder)), batches(config(folder), seed=1)
    assert not np.array_equal(one[0], other[0])
    assert not np.array_equal(one[0], one[1])


def test_two_ranks_read_what_one_reads_with_twice_the_batch(folder):
    plain = config(folder, {"generated": True}, image_share=0.5)
    one = batches(plain, batch_size=4)
    ranks = [batches(plain, mesh=Mesh(rank, 2)) for rank in range(2)]
    assert_equal({step: np.concatenate([rank[step] for rank in ranks]) for step in one}, one)


def test_batch_is_what_the_model_takes(folder):
    x_BCTHW = batches(config(folder, height=16, width=24), stop=1)[0]
    assert x_BCTHW.shape == (2, 3, 5, 16, 24)
    assert x_BCTHW.dtype == np.float32
    assert -1 <= x_BCTHW.min() < -0.5 < 0.3 < x_BCTHW.max() <= 1


def test_every_file_once_an_epoch_in_a_new_order(folder):
    files = files_of(batches(config(folder), stop=6))
    assert sorted(files[:6]) == sorted(files[6:]) == list(range(6))
    assert files[:6] != files[6:]


@pytest.mark.parametrize("suffix", ["mp4", "avi"])
@pytest.mark.parametrize("rate", [1, 3, 7])
def test_sample_rate(folder, tmp_path, rate, suffix):
    """Both ways into a file: by its header, and by the exact reader, which AVI files need."""
    path = folder / "0.mp4"
    if suffix == "avi":
        import av

        path = tmp_path / "0.avi"
        with av.open(str(path), "w") as file:
            stream = file.add_stream("mjpeg", rate=25, options={"qscale": "2"})
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuvj444p"
            for image_HWC in numbered(0):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(image_HWC, format="rgb24")))
            file.mux(stream.encode(None))
    starts = set()
    for x_BCTHW in batches(config(path, sample_rate=rate), stop=6).values():
        for x_CTHW in x_BCTHW:
            frames = frames_of(x_CTHW)
            assert np.diff(frames).tolist() == [rate] * 4
            starts.add(frames[0])
    assert len(starts) > 1
    assert min(starts) >= 0
    assert max(starts) + 4 * rate < NUM_FRAMES


def test_sample_rate_is_drawn_from_a_range_and_shrinks_to_fit(folder):
    clips = [x for b in batches(config(folder, sample_rate=[2, 100]), stop=8).values() for x in b]
    rates = [set(np.diff(frames_of(x_CTHW)).tolist()) for x_CTHW in clips]
    assert all(len(rate) == 1 for rate in rates)
    assert {2, 7} >= set.union(*rates) - {3, 4, 5, 6}
    assert 7 in set.union(*rates)  # 5 frames out of 30


def test_a_list_of_files(folder, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{folder}/1.mp4\n{folder}/below/4.mp4\n")
    assert set(files_of(batches(config(listed), stop=2))) == {1, 4}


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_whole_batches_of_single_frames(folder, share):
    found = batches(config(folder, image_share=share), stop=8)
    single = {step: x for step, x in found.items() if x.shape[2] == 1}
    assert len(single) == 8 * share
    assert set(files_of(single)) <= {6, 7, 8}
    moving = {step: x for step, x in found.items() if step not in single}
    assert set(files_of(moving)) <= set(range(6))


def test_single_frames_of_videos(folder):
    x_BCTHW = batches(config(folder / "2.mp4", num_frames=1), stop=1, batch_size=6)[0]
    assert x_BCTHW.shape[2] == 1
    assert len({frames_of(x_CTHW)[0] for x_CTHW in x_BCTHW}) > 2


def test_weights_are_shares(folder):
    plain = config({"videos": str(folder / "0.mp4"), "weight": 3}, folder / "1.mp4")
    assert Counter(files_of(batches(plain))) == {0: 6, 1: 2}


@pytest.mark.parametrize("shares", [[1], [1, 1], [0.1, 0.2, 0], [0, 3, 0, 1, 2.5], [0.25, 0.75], [1.0, 0.0]])
def test_turns_are_fair_and_counted(shares):
    had = Counter()
    for index in range(400):
        which, before = turn(index, shares)
        assert before == had[which]
        had[which] += 1
        for other, share in enumerate(shares):
            assert abs(had[other] - (index + 1) * share / sum(shares)) < len(shares)
    assert not any(had[which] for which, share in enumerate(shares) if share == 0)


def sides(x_CTHW):
    return pixels(x_CTHW)[2].mean((0, 1))


def test_crop_and_flip(folder):
    centre = batches(config(folder, width=16))
    assert all(sides(x)[0] < 80 and sides(x)[-1] > 160 for b in centre.values() for x in b)
    flipped = batches(config(folder, width=16, random_flip=True), stop=8)
    mirrored = [sides(x)[0] > 160 for b in flipped.values() for x in b]
    assert 0 < sum(mirrored) < len(mirrored)
    moved = batches(config(folder, width=16, crop="random"), stop=8)
    edges = [(sides(x) > 120).sum() for b in moved.values() for x in b]
    assert len(set(edges)) > 3


@pytest.fixture
def damaged(folder, tmp_path):
    """30 good videos, one that is text and one with too few frames."""
    for copy in range(30):
        shutil.copy(folder / f"{copy % 4}.mp4", tmp_path / f"{copy}.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    write_video(tmp_path / "short.mp4", numbered(0, 3), fps=25)
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_files_are_skipped_counted_and_named(damaged, workers):
    plain = config(damaged, workers=workers, max_bad_share=0.1)
    loader = ClipLoader(plain, 4, seed=0)
    assert loader.summary() == "32 videos"
    whole = {step: x["x_BCTHW"] for step, x in loader.batches(0, 8)}
    assert loader.summary() == (
        f"32 videos; skipped: 1 undecodable ({damaged}/text.mp4), 1 too short ({damaged}/short.mp4)"
    ) or loader.summary() == (
        f"32 videos; skipped: 1 too short ({damaged}/short.mp4), 1 undecodable ({damaged}/text.mp4)"
    )
    assert "got 3 frames, wanted 5 or more" in loader.broken.defects[f"{damaged}/short.mp4"].reason
    assert len(whole) == 8
    assert_equal(batches(plain.replace(workers=0), 3, 8, 4), {step: whole[step] for step in range(3, 8)})


def test_one_broken_file_is_tolerated_and_more_stop_the_run(damaged, monkeypatch):
    (damaged / "short.mp4").unlink()
    assert len(batches(config(damaged), stop=16)) == 16
    (damaged / "empty.mp4").touch()
    with pytest.raises(ValueError, match=r"got 2 broken of \d+ files tried, wanted at most 1.0%") as caught:
        batches(config(damaged), stop=16)
    assert "empty.mp4" in str(caught.value)
    assert "text.mp4" in str(caught.value)
    monkeypatch.setattr("common.data.broken.MAX_NAMED", 1)
    with pytest.raises(ValueError, match="got 2 broken") as caught:
        batches(config(damaged), stop=16)
    assert str(caught.value).count("undecodable") == 1


def test_nothing_but_broken_files(tmp_path):
    for name in ("a.mp4", "b.mp4", "c.png"):
        (tmp_path / name).write_text("nothing")
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match="broken of"):
            batches(config(tmp_path, image_share=share, max_bad_share=1.0))


def test_summary_says_what_is_not_read(folder):
    assert ClipLoader(config(folder), 1, 0).summary() == (
        "6 videos, 3 images (images are not read: image_share is 0)"
    )
    assert ClipLoader(config(folder, image_share=0.1), 1, 0).summary() == "6 videos, 3 images"


def test_only_images(folder):
    with pytest.raises(ValueError, match="got only images, wanted videos"):
        ClipLoader(config(folder / "7.png"), 1, 0)
    with pytest.raises(ValueError, match="got only images, wanted videos"):
        ClipLoader(config(folder / "7.png", image_share=0.5), 1, 0)
    mixed = batches(config(folder / "7.png", folder / "0.mp4", image_share=0.5), stop=8)
    assert set(files_of(mixed)) == {0, 7}


@needs_skimage
def test_photographs_pan_smoothly():
    plain = config({"photographs": True}, num_frames=9, height=48, width=64)
    assert ClipLoader(plain, 1, 0).summary() == f"{len(photographs.PHOTOGRAPHS)} photographs"
    for x_BCTHW in batches(plain, batch_size=4).values():
        for x_CTHW in x_BCTHW:
            steps = np.abs(np.diff(x_CTHW, axis=1)).mean((0, 2, 3))
            assert x_CTHW.std() > 0.03
            assert 0 < steps.max() < 0.5
            assert steps[0] < steps.max()  # eased in
    assert batches(plain.replace(num_frames=1), stop=1)[0].shape == (2, 3, 1, 48, 64)
    assert batches(plain.replace(height=640, width=640), stop=1)[0].shape[-1] == 640  # larger than most


def test_glide_stays_inside():
    """A picture whose border is marked: a window that looked beyond would repeat the mark."""
    ramp_HWC = np.broadcast_to(np.linspace(0, 255, 300)[None, :, None], (200, 300, 3)).astype(np.uint8)
    for seed in range(20):
        frames = photographs.glide(ramp_HWC, np.random.default_rng(seed), 5, 40, 60).astype(int)
        assert (np.diff(frames[..., 0], axis=2)[..., 1:-1] >= 0).all()
        widths = frames[:, 20, -1, 0] - frames[:, 20, 0, 0]  # of the window, in grey levels
        assert (widths > 255 * 60 / 300 * 0.9).all()
        assert widths.max() / widths.min() < photographs.MAX_ZOOM * 1.1


def test_photographs_without_scikit_image(monkeypatch):
    monkeypatch.setattr(photographs, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install scikit-image"):
        ClipLoader(config({"photographs": True}), 1, 0)


def test_generated_scenes_move():
    x_BCTHW = batches(config({"generated": True, "heldout": True}, num_frames=9), stop=1, batch_size=8)[0]
    moves = np.ptp(x_BCTHW, axis=2).max((1, 2, 3)) > 0.2
    assert moves.sum() >= 5  # some things stand still
    assert ClipLoader(config({"generated": True, "heldout": True}), 1, 0).summary().endswith("held out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": [{}]}, "exactly one of videos, generated: true and photographs: true, not 0"),
        ({"sources": [{"videos": "a", "generated": True}]}, "exactly one of .* not 2"),
        ({"sources": [{"videos": "a", "heldout": True}]}, "heldout: true chooses among generated scenes"),
        ({"sources": []}, "sources: .*at least 1"),
        ({"sample_rate": 0}, "sample_rate: wanted a number of at least 1"),
        ({"sample_rate": [3, 2]}, "sample_rate: wanted a number of at least 1"),
    ],
)
def test_config_mistakes(changes, message):
    with pytest.raises(ValueError, match=message):
        config({"generated": True}, **changes)


def test_batch_size():
    with pytest.raises(ValueError, match="batch_size=0"):
        ClipLoader(config({"generated": True}), 0, 0)


def test_every_clip_of_a_batch_has_a_name(tmp_path):
    """What an error about a batch tells people to look at."""
    write_video(tmp_path / "a.mp4", np.zeros((9, 32, 32, 3), np.uint8), 8)
    sources = [{"videos": str(tmp_path)}, {"generated": True}, {"photographs": True}]
    config = build(
        ClipsConfig, {"sources": sources, "num_frames": 5, "height": 32, "width": 32, "workers": 0}, "test"
    )
    names = [batch["names"] for _, batch in ClipLoader(config, 3, 0).batches(0, 2)]
    assert all(len(of_batch) == 3 and all(of_batch) for of_batch in names)
    assert str(tmp_path / "a.mp4") in names[0]
