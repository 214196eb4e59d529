"""Batches from a cache: what is written comes back, each clip once, the same on any number of ranks."""

import shutil
from collections import Counter

import numpy as np
import pytest

from common.data.encoded import EncodedLoader
from common.encoding import (
    shard_items,
    shard_path,
)
from common.parallel import Mesh

from .encoded_cases import (
    LONG,
    MADE_WITH,
    SEED,
    L,
    batches,
    data,
    item,
    items_of_two_sizes,
    loader,
    numbers,
    rows,
    write_cache,
)


def test_what_is_written_comes_back(cache):
    seen = batches(cache, stop=loader(cache).report().steps_per_epoch)
    clips = {clip.number: clip for shard in items_of_two_sizes() for clip in shard}
    for batch in seen.values():
        assert batch["moments_BZTHW"].dtype == batch["text_BLE"].dtype == np.float32
        for i, number in enumerate(numbers(cache, {0: batch})):
            clip, length = clips[number], len(clips[number].text_LE)
            np.testing.assert_array_equal(batch["moments_BZTHW"][i], clip.moments_ZTHW)
            np.testing.assert_array_equal(batch["text_BLE"][i, :length], clip.text_LE)
            np.testing.assert_array_equal(batch["text_BLE"][i, length:], 0)
            np.testing.assert_array_equal(batch["keep_BL"][i], np.arange(L) < length)


def test_an_epoch_has_each_clip_once_in_batches_of_one_size(cache):
    report = loader(cache).report()
    assert report.kept == report.scanned == 30
    assert [(line.bucket, line.clips, line.batches) for line in report.buckets] == [
        ("5x32x48", 21, 11),
        ("1x32x32", 9, 5),
    ]
    assert report.steps_per_epoch == 16
    assert report.repeated == 2
    seen = batches(cache, stop=32)
    for epoch in (range(16), range(16, 32)):
        counts = Counter(numbers(cache, {step: seen[step] for step in epoch}))
        assert counts.keys() == set(range(30))
        assert counts.total() == 32
    assert numbers(cache, {0: seen[0]}) != numbers(cache, {16: seen[16]})


def test_a_batch_depends_on_seed_and_step_alone(cache):
    half = {"drop_caption_ratio": 0.5}
    whole = batches(cache, **half)
    assert rows(batches(cache, start=23, **half)) == rows({step: whole[step] for step in range(23, 40)})
    assert rows(batches(cache, stop=6, workers=2, **half)) == rows({step: whole[step] for step in range(6)})
    other = EncodedLoader(data(cache, **half), MADE_WITH, 2, SEED + 1, Mesh())
    assert rows(dict(other.batches(0, 16))) != rows({step: whole[step] for step in range(16)})


def test_two_ranks_together_are_one(cache):
    half = {"drop_caption_ratio": 0.5}
    one = batches(cache, batch_size=4, **half)
    two = [batches(cache, batch_size=2, mesh=Mesh(rank, 2), **half) for rank in range(2)]
    for step, batch in one.items():
        ours = [rows({step: part[step]}) for part in two]
        assert rows({step: batch}) == [row for pair in zip(*ours, strict=True) for row in pair]
        assert len({part[step]["moments_BZTHW"].shape for part in two}) == 1


def test_a_share_of_captions_is_dropped(cache):
    seen = batches(cache, stop=1000, drop_caption_ratio=0.1, prefetch=0)
    texts = [batch["text_BLE"][i] for batch in seen.values() for i in range(2)]
    keeps = [batch["keep_BL"][i] for batch in seen.values() for i in range(2)]
    dropped = [(text[:2] == 7).all() for text in texts]
    assert 150 < sum(dropped) < 250
    assert all(keep.sum() == 2 for keep, none in zip(keeps, dropped) if none)
    with_captions = batches(cache, stop=1000, prefetch=0)
    assert all(
        (batch["moments_BZTHW"] == with_captions[step]["moments_BZTHW"]).all() for step, batch in seen.items()
    )
    nothing = batches(cache, stop=20, drop_caption_ratio=1.0)
    assert all((batch["text_BLE"][:, :2] == 7).all() for batch in nothing.values())


def test_small_buckets_are_dropped_and_said(cache):
    report = loader(cache, batch_size=10).report()
    assert [line.bucket for line in report.buckets] == ["5x32x48"]
    assert report.dropped == {"bucket too small (min_bucket_batches)": 9}
    assert (report.scanned, report.kept) == (30, 21)
    with pytest.raises(ValueError, match=r"no bucket of 30 clips fills 4 batches of 6; lower batch_size"):
        loader(cache, batch_size=6, min_bucket_batches=4)


def test_a_clip_that_filled_up_a_batch_is_listed_once_but_cuts_of_one_file_all(tmp_path):
    one = [item(0, LONG, name="a.mp4"), item(1, LONG, name="a.mp4"), item(0, LONG, name="a.mp4")]
    again = [item(0, LONG, epoch=1, name="a.mp4"), item(1, LONG, epoch=1, name="a.mp4")]
    content = write_cache(tmp_path / "c", [one, again, [item(1, LONG, epoch=1)]])
    assert [shard["items"] for shard in content["shards"]] == [[0, 1], [0, 1], []]
    assert content["clips"] == 4
    seen = batches(tmp_path / "c", stop=2)
    assert len(set(rows(seen))) == 4


def test_a_shard_whose_clips_were_all_broken_is_complete(tmp_path):
    content = write_cache(tmp_path / "c", [[], [item(0, LONG), item(1, LONG)], []])
    assert content["clips"] == 2
    assert shard_items(shard_path(tmp_path / "c", 0), range(1), MADE_WITH) == []
    assert len(rows(batches(tmp_path / "c", stop=1))) == 2
    with pytest.raises(ValueError, match="no clip that could be read"):
        write_cache(tmp_path / "empty", [[], []])


def test_both_precisions_may_stand_in_one_cache(tmp_path):
    """A run that overflowed goes on in float32."""
    write_cache(tmp_path / "c", [[item(0, LONG)], [item(1, LONG, dtype="float32")]])
    (batch,) = batches(tmp_path / "c", stop=1).values()
    expected = {0: item(0, LONG), 1: item(1, LONG, dtype="float32")}
    for i, number in enumerate(numbers(tmp_path / "c", {0: batch})):
        np.testing.assert_array_equal(batch["moments_BZTHW"][i], expected[number].moments_ZTHW)


def test_a_cache_may_be_moved(cache, tmp_path):
    moved = shutil.copytree(cache, tmp_path / "elsewhere")
    assert rows(batches(moved, stop=3)) == rows(batches(cache, stop=3))


def test_a_shard_that_is_lost_while_training_is_named(cache, tmp_path):
    folder = shutil.copytree(cache, tmp_path / "lost")
    training = loader(folder)
    for path in folder.glob("0*.safetensors"):
        path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"encoded .*safetensors: got .*, wanted tensor \d+.moments; copy"):
        dict(training.batches(0, 1))
