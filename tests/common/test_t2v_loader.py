"""Batches for the transformer are a pure function of (seed, step, rank); no clip is lost or padded."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from common.captions import aesthetic_notice, clean_caption_as_trained
from common.config import build
from common.data.grouping import Dealer, by_size
from common.data.scenes import draw_scene, is_heldout
from common.data.t2v import T2VLoader
from common.data.t2v_config import T2VDataConfig
from common.images import read_image, resize_crop, write_png
from common.noise import generator, index_of
from common.parallel import Mesh
from common.video import read_frames, write_video

LONG, TALL = (40, 64, 96), (36, 96, 64)  # frames, height, width
SCENES = {"generated": True, "generated_sizes": [[5, 32, 48], [1, 32, 32]], "workers": 0}


def entry(path, size, **changes):
    num_frames, height, width = size
    size = {"height": height, "width": width}
    return {
        "path": path,
        "cap": f"Clip {path}",
        "resolution": size,
        "num_frames": num_frames,
        "fps": 16,
    } | changes


def clip_entries():
    """Five wide clips, two tall ones, four pictures; each with its file."""
    wide = [entry(f"{i}.mp4", LONG) for i in range(5)]
    tall = [entry(f"{i}.mp4", TALL) for i in (5, 6)]
    return wide + tall + [entry(f"{i}.png", (1, 64, 96)) for i in range(7, 11)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files, and what else may stand in annotations."""
    folder = tmp_path_factory.mktemp("t2v")
    rng = np.random.default_rng(0)
    for item in clip_entries():
        num_frames, size = item["num_frames"], item["resolution"]
        frames_THWC = rng.integers(
            256, size=(num_frames, size["height"] // 8, size["width"] // 8, 3), dtype=np.uint8
        )
        frames_THWC = frames_THWC.repeat(8, axis=1).repeat(8, axis=2)
        if item["path"].endswith("png"):
            write_png(folder / item["path"], frames_THWC[0])
        else:
            write_video(folder / item["path"], frames_THWC, fps=16)
    return folder


def config(folder, entries=None, **changes):
    entries = clip_entries() if entries is None else entries
    name = f"{index_of(json.dumps(entries))}.jsonl"
    (folder / name).write_text("\n".join(map(json.dumps, entries)))
    tree = {
        "annotations": str(folder / name),
        "sizes": {"max_tokens": 6, "hw_stride": 16},
        "num_frames": 33,
        "min_frames": 5,
        "workers": 0,
        **changes,
    }
    return build(T2VDataConfig, tree, where="test")


def batches(config, start=0, stop=7, batch_size=2, seed=0, mesh=Mesh()):  # noqa: B008
    return dict(T2VLoader(config, batch_size, seed, mesh).batches(start, stop))


def assert_equal(some, others):
    assert some.keys() == others.keys()
    for step, batch in some.items():
        assert np.array_equal(batch["x_BCTHW"], others[step]["x_BCTHW"])
        assert (batch["captions"], batch["names"]) == (others[step]["captions"], others[step]["names"])


def names(batches):
    return [name.rpartition("/")[2] for batch in batches.values() for name in batch["names"]]


@pytest.mark.parametrize("generated", [False, True])
def test_workers_and_resuming_change_nothing(folder, generated):
    plain = build(T2VDataConfig, SCENES, where="test") if generated else config(folder)
    whole = batches(plain)
    assert_equal(batches(plain.replace(workers=2)), whole)
    assert_equal(batches(plain, 4), {step: whole[step] for step in range(4, 7)})
    other = batches(plain, seed=1)
    assert any(not np.array_equal(other[step]["x_BCTHW"], whole[step]["x_BCTHW"]) for step in whole)


@pytest.mark.parametrize("generated", [False, True])
def test_two_ranks_share_what_one_reads(folder, generated):
    plain = build(T2VDataConfig, SCENES, where="test") if generated else config(folder)
    one = batches(plain, batch_size=2)
    ranks = [batches(plain, batch_size=1, mesh=Mesh(rank, 2)) for rank in (0, 1)]
    for step, batch in one.items():
        for rank in (0, 1):
            assert np.array_equal(ranks[rank][step]["x_BCTHW"], batch["x_BCTHW"][rank::2])
            assert ranks[rank][step]["captions"] == batch["captions"][rank::2]


def test_an_epoch_has_every_clip_and_batches_of_one_size(folder):
    loader = T2VLoader(config(folder), 2, seed=3)
    report = loader.report()
    assert report.steps_per_epoch == 3 + 1 + 2
    for start in (0, 6):
        epoch = dict(loader.batches(start, start + 6))
        seen = Counter(names(epoch))
        assert seen.keys() == {item["path"] for item in clip_entries()}
        assert sum(seen.values()) == 12  # one of the five wide clips comes twice
        assert report.repeated == 1
        assert all(batch["keep_BTHW"] is None for batch in epoch.values())
        shapes = Counter(batch["x_BCTHW"].shape for batch in epoch.values())
        assert shapes == {(2, 3, 33, 32, 48): 3, (2, 3, 33, 48, 32): 1, (2, 3, 1, 32, 48): 2}
    assert names(dict(loader.batches(0, 6))) != names(dict(loader.batches(6, 12)))


def test_pixels_are_those_of_the_file(folder):
    batch = next(iter(batches(config(folder, [entry("7.png", (1, 64, 96))]), batch_size=1, stop=1).values()))
    # each square of 8 x 8 pixels has become one of 4 x 4; their middles keep the colour
    image_HWC = read_image(folder / "7.png")[3::8, 3::8] / 127.5 - 1
    x_HWC = batch["x_BCTHW"][0, :, 0].transpose(1, 2, 0)
    assert np.corrcoef(x_HWC[1::4, 1::4].ravel(), image_HWC.ravel())[0, 1] > 0.99
    assert batch["x_BCTHW"].dtype == np.float32
    assert np.abs(batch["x_BCTHW"]).max() <= 1.001


def test_the_annotated_cut_and_crop_are_taken(folder):
    whole = entry("0.mp4", LONG, num_frames=5)
    later = entry("0.mp4", LONG, num_frames=5, cut=[10, 15])
    cropped = entry(
        "0.mp4", LONG, num_frames=5, crop=[16, 64, 16, 48], resolution={"height": 32, "width": 48}
    )
    got = [
        next(iter(batches(config(folder, [one]), stop=1, batch_size=1).values()))["x_BCTHW"]
        for one in (whole, later, cropped)
    ]
    assert got[0].shape == got[1].shape == got[2].shape == (1, 3, 5, 32, 48)
    assert len({x_BCTHW.tobytes() for x_BCTHW in got}) == 3


def test_captions_are_cleaned_and_some_dropped(folder):
    entries = [entry(f"{i}.png", (1, 64, 96), cap=["A <b>RED</b> ball!!"]) for i in range(7, 11)]
    always = batches(config(folder, entries, drop_caption_ratio=0.0), stop=2)
    assert {caption for batch in always.values() for caption in batch["captions"]} == {"a red ball!!"}
    half = batches(config(folder, entries, drop_caption_ratio=0.5), stop=50)
    texts = Counter(caption for batch in half.values() for caption in batch["captions"])
    assert texts.keys() == {"", "a red ball!!"}
    assert 30 < texts[""] < 70


def test_the_report_says_why_clips_are_dropped(folder):
    entries = [
        *clip_entries(),
        entry("x.mp4", LONG, cap=[]),
        entry("x.mp4", LONG, resolution=None),
        entry("x.doc", LONG),
        entry("x.mp4", (3, 64, 96)),
        entry("x.mp4", (999, 64, 96)),
        entry("x.mp4", (40, 80, 32)),
        entry("x.mp4", LONG, fps="fast"),
        entry("x.mp4", (40, 96, 96)),  # alone in its bucket
        entry("x.mp4", LONG, fps=None),  # alone too: at an assumed 24 a second it has 25 frames for us
    ]
    report = T2VLoader(config(folder, entries), 2, seed=0).report()
    assert report.scanned == 20
    assert report.kept == 11
    assert report.dropped == {
        "unreadable entry": 1,
        "no caption": 1,
        "no resolution": 1,
        "file type unknown": 1,
        "too wide or too tall": 1,
        "too long": 1,
        "too short": 1,
        "bucket too small (min_bucket_batches)": 2,
    }
    assert report.assumed_fps == 0
    text = str(report)
    assert "11 of 20 clips are used" in text
    assert "33x32x48" in text
    assert json.loads(json.dumps(report.to_dict()))["steps_per_epoch"] == report.steps_per_epoch


def test_an_assumed_rate_is_reported(folder):
    report = T2VLoader(config(folder, [entry("0.mp4", LONG, fps=None)] * 2), 2, seed=0).report()
    assert report.assumed_fps == 2
    assert report.buckets[0].bucket == "25x32x48"
    assert "2 without fps, taken as 24" in str(report)


def test_scores_select(folder):
    entries = [
        entry(f"{i}.png", (1, 64, 96), aesthetic=score) for i, score in ((7, 3.0), (8, 5.0), (9, None))
    ]
    report = T2VLoader(config(folder, entries, min_aesthetic=4.0), 1, seed=0).report()
    assert report.dropped == {"score missing or too low": 2}


def test_nothing_left_is_an_error(folder):
    with pytest.raises(ValueError, match=r"no usable clip.*too short"):
        T2VLoader(config(folder, [entry("0.mp4", (3, 64, 96))]), 1, seed=0)


def test_padded_batches_have_a_mask(folder):
    loader = T2VLoader(config(folder, group=False), 3, seed=0)
    masks = []
    for _, batch in loader.batches(0, 4):
        assert batch["x_BCTHW"].shape == (3, 3, 33, 48, 48)
        masks.append(batch["keep_BTHW"])
    keep_BTHW = np.concatenate(masks)
    assert keep_BTHW.shape == (12, 9, 6, 6)
    assert {mask.sum() for mask in keep_BTHW} <= {9 * 4 * 6, 9 * 6 * 4, 4 * 6}
    report = loader.report()
    assert report.padding_share > 0.4
    assert report.tokens == [9 * 3 * 3] * 3  # of what is computed: one graph


def test_whole_clips_have_a_mask_too_where_others_may_not(folder):
    """All ranks then divide by the same number of cells, and ms compiles one graph."""
    loader = T2VLoader(config(folder, [entry(f"{i}.mp4", LONG) for i in range(5)], group=False), 2, seed=0)
    (_, batch), *_ = loader.batches(0, 1)
    assert batch["keep_BTHW"].all()


@pytest.mark.parametrize("score", [3.0, 6.5, None])
def test_the_score_of_a_clip_is_told_in_its_caption(folder, score):
    entries = [entry(f"{i}.png", (1, 64, 96), aesthetic=score) for i in (7, 8)]
    found = batches(config(folder, entries, drop_caption_ratio=0.0), stop=1)[0]["captions"]
    notices = () if score is None else aesthetic_notice(score, "image")
    notices = [clean_caption_as_trained(notice, keep_chinese=True) for notice in notices]
    for sentence in found:
        assert any(notice in sentence for notice in notices) == (score is not None)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_long_clips_go_faster_up_to_the_factor(folder, factor):
    wide = [entry("0.mp4", LONG)]
    taken = batches(config(folder, wide, num_frames=17, speed_factor=factor), batch_size=1, stop=1)
    x_THWC = taken[0]["x_BCTHW"][0].transpose(1, 2, 3, 0)
    frames = np.stack([resize_crop(f[None], 32, 48)[0] for f in read_frames(folder / "0.mp4", range(40))])
    distance = np.abs(x_THWC[:, None] - (frames / 127.5 - 1)).mean((2, 3, 4))
    steps = np.diff(distance.argmin(1))
    assert set(steps) == {int(factor)}


def test_an_animated_picture_is_a_video_if_annotated_as_one(folder):
    shades = [Image.fromarray(np.full((64, 96, 3), 5 * i, np.uint8)) for i in range(40)]
    shades[0].save(
        folder / "moving.webp", save_all=True, append_images=shades[1:], duration=50, lossless=True
    )
    moving = entry("moving.webp", LONG, fps=20)
    x_BCTHW = batches(config(folder, [moving]), batch_size=1, stop=1)[0]["x_BCTHW"]
    assert x_BCTHW.shape == (1, 3, 29, 32, 48)
    assert (np.diff(x_BCTHW[0, 0, :, 0, 0]) > 0).all()
    loader = T2VLoader(
        config(folder, [*clip_entries(), entry("moving.webp", (1, 64, 96))], max_bad_share=0.5), 1, 0
    )
    for _ in loader.batches(0, loader.report().steps_per_epoch):
        pass
    (defect,) = loader.broken.defects.values()
    assert "got a moving picture of 40 frames" in defect.reason


def test_generated_scenes_are_those_of_training():
    loader = T2VLoader(build(T2VDataConfig, {**SCENES, "drop_caption_ratio": 0.0}, where="test"), 8, seed=0)
    seen = dict(loader.batches(0, 20))
    assert {batch["x_BCTHW"].shape for batch in seen.values()} == {(8, 3, 5, 32, 48), (8, 3, 1, 32, 32)}
    captions = [caption for batch in seen.values() for caption in batch["captions"]]
    assert len(set(names(seen))) == len(captions) == 160
    assert len(set(captions)) > 100
    assert "5x32x48" in str(loader.report())
    assert loader.report().steps_per_epoch is None
    scenes = [draw_scene(generator(0, index_of(name)), heldout=False) for name in names(seen)]
    assert not any(is_heldout(*thing.triple) for scene in scenes for thing in scene.things)


def test_dealing_a_large_set_is_complete():
    sizes = np.random.default_rng(0).integers(5, size=(10_000, 1))
    groups = by_size(sizes)
    assert [len(group) for group in groups] == sorted((len(group) for group in groups), reverse=True)
    deal = Dealer(groups, 64, seed=0)
    seen = Counter(int(i) for step in range(deal.steps_per_epoch) for i in deal(step)[1])
    assert len(seen) == 10_000
    assert sum(seen.values()) - 10_000 < 5 * 64
    for step in (0, 1, deal.steps_per_epoch - 1):
        assert len(np.unique(sizes[deal(step)[1]])) == 1
