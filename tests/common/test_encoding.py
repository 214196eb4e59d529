"""A cache of latents and text states: written once, it goes on, and what is stale or broken is refused."""

import json
import shutil

import numpy as np
import pytest

from common.encoding import (
    INDEX,
    NO_CAPTION,
    as_stored,
    has_no_caption,
    list_shards,
    order_of,
    plan_shards,
    read_index,
    shard_items,
    shard_path,
    write_index,
    write_no_caption,
    write_shard,
)

from .encoded_cases import (
    LONG,
    MADE_WITH,
    E,
    L,
    item,
    loader,
    settings,
)

STALE = {
    "vae": r"made with another VAE; encode the clips anew",
    "text": r"made with another text encoder or max_length; encode",
    "data": r"made with other clips: annotations, sizes, lengths or captions; encode",
}


@pytest.mark.parametrize("what", STALE)
def test_a_stale_cache_is_refused(cache, what):
    with pytest.raises(ValueError, match=STALE[what]):
        loader(cache, made_with={**MADE_WITH, what: "another"})


def break_index(folder):
    (folder / INDEX).unlink()


def break_format(folder):
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, "format": 0}))


def cut_off(folder):
    path = shard_path(folder, 1)
    path.write_bytes(path.read_bytes()[:-10])


BROKEN = {
    "unfinished": (break_index, r"no index.json; wanted a cache that python -m ms.encode has finished"),
    "another format": (break_format, r"format 0, wanted 1; encode anew"),
    "a shard is missing": (
        lambda folder: shard_path(folder, 1).unlink(),
        r"000001.safetensors: missing, wanted \d+ bytes; copy it again",
    ),
    "a shard is cut off": (cut_off, r"000001.safetensors: \d+ bytes, wanted \d+ bytes; copy it again"),
    "no caption": (lambda folder: (folder / NO_CAPTION).unlink(), r"no_caption.safetensors: missing"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_an_incomplete_cache_is_refused(cache, tmp_path, how):
    folder = shutil.copytree(cache, tmp_path / "broken")
    breaking, message = BROKEN[how]
    breaking(folder)
    with pytest.raises(ValueError, match=message):
        read_index(folder, MADE_WITH)


def test_encoding_goes_on_only_with_what_it_began_with(tmp_path):
    path = shard_path(tmp_path, 0)
    assert shard_items(path, range(3), MADE_WITH) is None
    began = {**MADE_WITH, "order": "seed=0"}
    write_shard(path, [item(0, LONG)], range(3), began)
    (listed,) = shard_items(path, range(3), began) or []
    assert listed == {
        "name": "0.mp4",
        "number": 0,
        "epoch": 0,
        "caption": "clip 0",
        "bucket": [5, 32, 48],
    }
    assert shard_items(path, range(4), began) is None, "more clips: the last shard is written anew"
    with pytest.raises(ValueError, match=r"made with seed=0, not seed=1; encode the clips anew into another"):
        shard_items(path, range(3), {**began, "order": "seed=1"})
    cut_off_path = shard_path(tmp_path, 1)
    cut_off_path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"000001.safetensors: not a readable shard \(.*\); delete it"):
        shard_items(cut_off_path, range(3), began)


def test_the_empty_caption_belongs_to_its_text_encoder(tmp_path):
    assert not has_no_caption(tmp_path, MADE_WITH)
    assert list_shards(tmp_path, [], MADE_WITH, L) is None
    write_no_caption(tmp_path, np.zeros((2, E), np.float16), MADE_WITH)
    assert has_no_caption(tmp_path, {**MADE_WITH, "vae": "another"})
    with pytest.raises(ValueError, match="another text encoder"):
        has_no_caption(tmp_path, {**MADE_WITH, "text": "another"})


def test_an_index_that_is_right_is_left_alone(cache, tmp_path):
    folder = shutil.copytree(cache, tmp_path / "same")
    content = list_shards(folder, [range(i, i + 1) for i in range(5)], MADE_WITH, L)
    assert not write_index(folder, content)
    assert list_shards(folder, [range(i, i + 1) for i in range(6)], MADE_WITH, L) is None
    assert write_index(folder, {**content, "text_length": L + 1})


def test_values_are_stored_or_refused_by_name():
    small = np.array([1.0001, -2], np.float32)
    np.testing.assert_array_equal(as_stored(small, "float16", "x"), small.astype(np.float16))
    large = np.array([1, -70000], np.float32)
    with pytest.raises(ValueError, match=r"latent of a.mp4 goes up to 7e\+04, wanted what float16 holds"):
        as_stored(large, "float16", "latent of a.mp4")
    np.testing.assert_array_equal(as_stored(large, "float32", "x"), large)
    with pytest.raises(ValueError, match=r"text of a.mp4 is not finite, wanted numbers; .* float32"):
        as_stored(np.array([np.nan]), "float32", "text of a.mp4")


ANNOTATED = {"annotations": "a.jsonl", "sizes": {"max_tokens": 6}}
CONTRADICTIONS = {
    "how many scenes": ({"clips": None}, "clips says how many generated scenes"),
    "how many clips": ({"data": ANNOTATED}, "clips says how many generated scenes"),
    "scenes again": ({"passes": 2}, "passes is for annotated clips"),
    "parts of batches": ({"batch_size": 3}, "clips: got 8, wanted a multiple of batch_size=3"),
    "of a cache": (
        {"data": {**ANNOTATED, "encoded": "x"}, "clips": None},
        "data.encoded is a cache already",
    ),
    "padding": ({"data": {**ANNOTATED, "group": False}, "clips": None}, "encoded clips have no padding"),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_contradictions_are_refused(what):
    changes, message = CONTRADICTIONS[what]
    with pytest.raises(ValueError, match=message):
        settings(**changes)


@pytest.mark.parametrize(
    ("changes", "steps_per_epoch", "lengths"),
    [
        ({"clips": 10}, None, [4, 4, 2]),
        ({"clips": 10, "batch_size": 2}, None, [2, 2, 1]),
        ({"clips": 30, "batch_size": 10}, None, [1, 1, 1]),
        ({"clips": None, "data": ANNOTATED, "passes": 3}, 3, [4, 4, 1]),
    ],
)
def test_shards_cover_all_steps_once(changes, steps_per_epoch, lengths):
    config = settings(clips_per_shard=4, **changes)
    shards = plan_shards(config, steps_per_epoch)
    assert [len(steps) for steps in shards] == lengths
    assert [step for steps in shards for step in steps] == list(range(sum(lengths)))
    others = (config.replace(seed=1), config.replace(clips_per_shard=5), settings(batch_size=8))
    assert order_of(config) not in {order_of(other) for other in others}
