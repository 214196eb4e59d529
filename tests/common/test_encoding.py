"""A cache of latents and text states: what is written comes back, none is lost, what is stale is refused."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from safetensors import safe_open

from common.checkpoint import save_weights
from common.config import build
from common.data.buckets import Bucket
from common.data.encoded import EncodedLoader
from common.data.t2v_config import T2VDataConfig
from common.encoding import (
    INDEX,
    NO_CAPTION,
    EncodeConfig,
    Item,
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
from common.fingerprint import UNBOUND, check_fingerprint, fingerprint
from common.parallel import Mesh
from common.runs import ModelSource
from common.text import TextConfig

LONG, IMAGE = Bucket(5, 32, 48), Bucket(1, 32, 32)
LATENT = {LONG: (4, 2, 4, 6), IMAGE: (4, 1, 4, 4)}
L, E = 6, 3
MADE_WITH = {"vae": "v", "text": "t", "data": "d"}
SEED = 5


def item(number, bucket, epoch=0, name=None, dtype="float16"):
    """Clip `number`, and arrays that tell it from any other."""
    rng = np.random.default_rng([number, epoch])
    moments_ZTHW = rng.standard_normal(LATENT[bucket]).astype(dtype)
    text_LE = rng.standard_normal((1 + number % L, E)).astype(dtype)
    return Item(name or f"{number}.mp4", number, epoch, f"clip {number}", bucket, moments_ZTHW, text_LE)


def write_cache(folder, shards, made_with=MADE_WITH):
    """A whole cache of lists of items."""
    folder.mkdir(exist_ok=True)
    steps = [range(i, i + 1) for i in range(len(shards))]
    write_no_caption(folder, np.full((2, E), 7, np.float16), made_with)
    for number, items in enumerate(shards):
        write_shard(shard_path(folder, number), items, steps[number], made_with)
    content = list_shards(folder, steps, made_with, L)
    write_index(folder, content)
    return content


def items_of_two_sizes():
    """21 long clips and 9 pictures, in shards of 7."""
    items = [item(number, IMAGE if number % 10 in (2, 5, 8) else LONG) for number in range(30)]
    return [items[i : i + 7] for i in range(0, 30, 7)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoded") / "cache"
    write_cache(folder, items_of_two_sizes())
    return folder


def data(folder, **changes):
    tree = {
        "annotations": "anything.jsonl",
        "sizes": {"max_tokens": 6},
        "encoded": str(folder),
        "drop_caption_ratio": 0.0,
        "workers": 0,
    }
    return build(T2VDataConfig, {**tree, **changes}, where="test")


def loader(folder, batch_size=2, mesh=Mesh(), made_with=MADE_WITH, **changes):  # noqa: B008
    return EncodedLoader(data(folder, **changes), made_with, batch_size, SEED, mesh)


def batches(folder, start=0, stop=40, **kwargs):
    return dict(loader(folder, **kwargs).batches(start, stop))


def rows(batches):
    """The samples of all batches, as bytes."""
    return [
        tuple(batch[key][i].tobytes() for key in ("moments_BZTHW", "text_BLE", "keep_BL"))
        for batch in batches.values()
        for i in range(len(batch["names"]))
    ]


def numbers(folder, batches):
    """Which clips the batches hold, by what the shards say of themselves."""
    found = []
    for batch in batches.values():
        for name in batch["names"]:
            file, _, place = name.split()
            with safe_open(folder / file, framework="numpy") as shard:
                found.append(json.loads(shard.metadata()["items"])[int(place)]["number"])
    return found


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


STALE = {
    "vae": r"made with another VAE; encode the clips anew",
    "text": r"made with another text encoder or max_length; encode",
    "data": r"made with other clips: annotations, sizes, lengths or captions; encode",
}


@pytest.mark.parametrize("what", STALE)
def test_a_stale_cache_is_refused(cache, what):
    with pytest.raises(ValueError, match=STALE[what]):
        loader(cache, made_with={**MADE_WITH, what: "another"})


def test_everything_that_differs_is_named(tmp_path):
    with pytest.raises(ValueError, match="another VAE and another text encoder"):
        check_fingerprint({}, {"vae": "v", "text": "t"}, tmp_path)


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


def test_a_shard_that_is_lost_while_training_is_named(cache, tmp_path):
    folder = shutil.copytree(cache, tmp_path / "lost")
    training = loader(folder)
    for path in folder.glob("0*.safetensors"):
        path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"encoded .*safetensors: got .*, wanted tensor \d+.moments; copy"):
        dict(training.batches(0, 1))


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


def settings(**changes):
    tree = {
        "vae": {"config": {}, "random_seed": 0},
        "text": {"kind": "minilm"},
        "data": {"generated": True, "generated_sizes": [[5, 32, 32]]},
        "clips": 8,
    }
    return build(EncodeConfig, {**tree, **changes}, where="test")


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


@pytest.fixture
def models(tmp_path):
    """Folders that look like a VAE, a text encoder, and annotations in two ways."""
    save_weights(tmp_path / "vae", {"w": np.arange(6.0)}, {"latent_dim": 4})
    (tmp_path / "text").mkdir()
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "text" / name).write_text("{}")
    (tmp_path / "text" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "a.jsonl").write_text('{"path": "1.mp4"}\n')
    (tmp_path / "data.txt").write_text("videos,a.jsonl\n")
    return tmp_path


def of(folder, annotations="a.jsonl", text=None, overrides=None, **changes):
    return fingerprint(
        ModelSource(path=str(folder / "vae"), overrides=overrides or {}),
        TextConfig(kind="mt5", path=str(folder / "text"), **(text or {})),
        data(folder, annotations=str(folder / annotations), **changes),
    )


def differs(ours, others):
    return {key for key in ours if ours[key] != others[key]}


def test_a_fingerprint_is_of_contents_not_of_places(models, tmp_path):
    before = of(models)
    moved = shutil.copytree(models, tmp_path / "moved")
    (moved / "data.txt").write_text(f"/another/root,{moved / 'a.jsonl'}\n")
    assert of(moved) == before
    assert of(moved, "data.txt") == of(models, "data.txt") == before
    for name in ("README.md", "pytorch_model.bin"):
        (moved / "text" / name).write_text("not read")
    assert of(moved) == before


def test_a_fingerprint_changes_with_what_a_cache_holds(models):
    before = of(models)
    assert differs(before, of(models, overrides={"latent_dim": 8})) == {"vae"}
    assert differs(before, of(models, text={"max_length": 8})) == {"text"}
    assert not differs(before, of(models, text={"dtype": "float16"}))
    for change in ({"sizes": {"max_tokens": 9}}, {"num_frames": 33}, {"fps": 8}, {"keep_chinese": False}):
        assert differs(before, of(models, **change)) == {"data"}, change
    for change in ({"drop_caption_ratio": 0.5}, {"workers": 3}, {"min_bucket_batches": 4}, {"root": "/x"}):
        assert of(models, **change) == before, change
    for file, key in (
        ("vae/diffusion_pytorch_model.safetensors", "vae"),
        ("vae/config.json", "vae"),
        ("text/model.safetensors", "text"),
        ("text/tokenizer.json", "text"),
        ("a.jsonl", "data"),
    ):
        path = models / file
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        assert differs(before, of(models)) == {key}, file
        path.write_bytes(content)
    assert of(models) == before


def test_a_fingerprint_of_random_weights_knows_their_seed():
    config = TextConfig(kind="minilm")
    sources = [
        ModelSource(config={"latent_dim": n}, random_seed=seed) for n, seed in ((4, 0), (4, 1), (8, 0))
    ]
    assert len({fingerprint(source, config, settings().data)["vae"] for source in sources}) == 3


def test_missing_annotations_are_said(models):
    with pytest.raises(ValueError, match=r"b.jsonl is missing, wanted it to tell .* correct its path"):
        of(models, "b.jsonl")


def test_what_is_not_bound_is_a_key():
    assert set(UNBOUND) < set(T2VDataConfig.model_fields)
