"""Captioned clips that cannot be used, or not as annotated: counted, named, replaced."""

# ruff: noqa: F401, F811 the fixture `folder` is imported

from collections import Counter

import av
import numpy as np
import pytest

from common.data import frames
from common.data.t2v import T2VLoader
from tests.common.test_t2v_loader import (
    LONG,
    assert_equal,
    batches,
    clip_entries,
    config,
    entry,
    folder,
    names,
)


def test_broken_files_are_replaced_and_named(folder):
    (folder / "broken.mp4").write_bytes(b"nonsense")
    bad = [entry("broken.mp4", LONG), entry("1.mp4", (80, 64, 96), cut=[0, 80]), entry("5.mp4", LONG)]
    loader = T2VLoader(config(folder, clip_entries() + bad, max_bad_share=0.5), 2, seed=0)
    seen = dict(loader.batches(0, loader.report().steps_per_epoch))
    assert not {"broken.mp4"} & set(names(seen))
    kinds = Counter(defect.kind for defect in loader.broken.defects.values())
    assert kinds == {"undecodable": 1, "shorter than annotated": 1, "not of the annotated size": 1}
    assert "broken.mp4" in loader.summary()
    again = dict(T2VLoader(loader.config.replace(workers=1), 2, seed=0).batches(0, 6))
    assert_equal(again, {step: seen[step] for step in again})


@pytest.mark.parametrize(("annotated", "noticed"), [(24, True), (15, True), (16.5, False), (None, False)])
def test_another_rate_than_annotated_is_noticed(folder, annotated, noticed):
    """Files have 16 frames a second: annotated as 24 they would be trained on in slow motion."""
    odd = [entry("0.mp4", LONG, fps=annotated)]
    kept = config(folder, clip_entries() + odd, min_bucket_batches=0, max_bad_share=0.5)
    loader = T2VLoader(kept, 2, seed=0, substitute=False)
    for _ in loader.batches(0, loader.report().steps_per_epoch):
        pass
    assert len(loader.broken) == noticed
    if noticed:
        (defect,) = loader.broken.defects.values()
        assert defect.kind == "not of the annotated rate"
        assert f"got 16 frames a second, wanted {annotated} as annotated" in defect.reason
        assert "1 not of the annotated rate" in loader.summary()


@pytest.mark.parametrize("suffix", ["mkv", "avi"])
@pytest.mark.parametrize("fps", [24, 60])
def test_the_rate_of_a_file_without_a_list_of_frames_is_measured(folder, suffix, fps):
    path = folder / f"{fps}.{suffix}"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mjpeg", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
        for _ in range(40):
            image_HWC = np.zeros((64, 96, 3), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image_HWC, format="rgb24")))
        file.mux(stream.encode(None))
    indices = np.arange(5)
    assert len(frames.read_frames(path, indices, lambda x: x, fps=fps * 1.04)) == 5
    with pytest.raises(frames.OtherRateError, match=rf"got {fps} frames a second.*as annotated; correct fps"):
        frames.read_frames(path, indices, lambda x: x, fps=fps * 1.06)


def test_missing_lengths_come_from_the_annotation_or_the_file(folder):
    entries = [
        entry("0.mp4", LONG, num_frames=None, duration=2.5),
        entry("1.mp4", LONG, num_frames=None),
        entry("2.mp4", LONG, num_frames=0, fps=None),
        entry("3.mp4", LONG, num_frames=None, cut=[7, 40]),
        entry("nowhere.mp4", LONG, num_frames=None),
        entry("4.mp4", LONG, num_frames=None, duration="long"),
        entry("4.mp4", LONG, duration="long"),  # not looked at
        entry("x.mp4", LONG, num_frames=None, cap=""),
    ]
    kept = config(folder, entries, min_bucket_batches=0)
    loader = T2VLoader(kept, 1, seed=0)
    assert [loader.source.annotations.entry(i).num_frames for i in range(4)] == [40, 40, 40, 33]
    assert loader.source.annotations.entry(2).fps == 16
    report = loader.report()
    assert report.kept == 5
    assert report.dropped == {"unreadable entry": 1, "no caption": 1, "no number of frames": 1}
    assert (report.derived_lengths, report.probed_lengths, report.assumed_fps) == (1, 3, 0)
    assert "1 without num_frames, taken as fps times duration; 3 without num_frames, taken from" in str(
        report
    )
    assert len(set(names(dict(loader.batches(0, report.steps_per_epoch))))) == 5
    assert not len(loader.broken)


def test_only_entries_that_would_be_used_are_looked_up(folder, monkeypatch):
    """A million entries with all they need open no file."""
    monkeypatch.setattr("common.data.lengths.open_media", lambda path: pytest.fail(f"opened {path}"))
    T2VLoader(config(folder, [*clip_entries(), entry("0.mp4", LONG, num_frames=None, cap="")]), 2, seed=0)


def test_every_clip_of_a_broken_file_counts(folder):
    (folder / "broken.mp4").write_bytes(b"nonsense")
    bad = [entry("broken.mp4", LONG, cut=[start, start + 40]) for start in (0, 40, 80)]
    loader = T2VLoader(config(folder, clip_entries() + bad, max_bad_share=0.5), 2, seed=0)
    for _ in loader.batches(0, loader.report().steps_per_epoch):
        pass
    assert len(loader.broken) == 3
    assert "3 undecodable" in loader.summary()
    assert loader.summary().count("broken.mp4") == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"resolution": {"height": 96, "width": 64}}, "wanted 96x64 as annotated"),
        ({"resolution": {"height": 128, "width": 192}}, "wanted 128x192 as annotated"),
        ({"crop": [0, 200, 0, 64]}, "wanted rows 0 to 64 and columns 0 to 200 of them"),
    ],
)
def test_one_size_for_all_does_not_hide_another_size_than_annotated(folder, change, told):
    sizes = {"height": 32, "width": 32}
    odd = [entry("0.mp4", LONG, **change)]
    kept = config(folder, clip_entries() + odd, sizes=sizes, min_bucket_batches=0, max_bad_share=0.5)
    loader = T2VLoader(kept, 2, seed=0)
    for _ in loader.batches(0, loader.report().steps_per_epoch):
        pass
    (defect,) = loader.broken.defects.values()
    assert told in defect.reason


def test_the_place_of_a_broken_file_stays_empty_if_wanted(folder):
    """A broken clip that is alone in its bucket has no substitute."""
    (folder / "broken.png").write_bytes(b"nonsense")
    entries = [*clip_entries(), entry("broken.png", (1, 96, 64))]
    kept = config(folder, entries, min_bucket_batches=0, max_bad_share=0.1)
    loader = T2VLoader(kept, 2, seed=0, substitute=False)
    seen = dict(loader.batches(0, loader.report().steps_per_epoch))
    assert len(seen) == loader.report().steps_per_epoch - 1
    assert {number for batch in seen.values() for number in batch["numbers"]} == set(range(11))
    assert "1 undecodable" in loader.summary()
    with pytest.raises(ValueError, match="in a row"):
        batches(kept, stop=loader.report().steps_per_epoch)


def test_many_broken_files_stop_the_run(folder):
    bad = [entry(f"missing{i}.mp4", LONG) for i in range(4)]
    with pytest.raises(ValueError, match=r"at most 1.0% \(max_bad_share\)"):
        batches(config(folder, clip_entries() + bad))
