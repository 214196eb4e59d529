"""`encode`: both trees write the same cache, training reads from it what it would encode, a stale one is
refused.
"""

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.checkpoint import read_metadata, read_safetensors
from common.config import build
from common.data.t2v import T2VLoader
from common.data.t2v_config import T2VDataConfig
from common.encoding import INDEX, NO_CAPTION, EncodeConfig
from common.images import write_png
from common.parallel import Mesh
from common.t2v_training import T2VTrainConfig, open_loader
from common.text import TextConfig
from common.video import write_video
from tests.conftest import ONLY_PT, PT_AND_SLOW_MS, available
from tests.tiny import tiny_transformer_config, tiny_vae_config

from .command_lines import needs_encoder, run, write

CLIPS, BATCH = 10, 2
ROUNDING = {"rtol": 2**-10, "atol": 1e-6}  # of float16, on either side of a boundary
pytestmark = needs_encoder


def settings(folder, **changes):
    vae = {"config": tiny_vae_config(use_attention=False).model_dump(mode="json"), "random_seed": 0}
    tree = {
        "vae": vae,
        "text": {"kind": "minilm", "max_length": 24},
        "data": {"generated": True, "generated_sizes": [[5, 32, 32], [1, 32, 32]], "workers": 0},
        "clips": CLIPS,
        "batch_size": BATCH,
        "clips_per_shard": 4,
        "device": "cpu",
        "output": str(folder),
    }
    return {**tree, **changes}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The cache of a tree, made when first asked for."""
    made = {}

    def encoded(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("encoded") / name
            config = build(EncodeConfig, settings(made[name]), where="test")
            importlib.import_module(f"{name}.encode").encode(config)
        return made[name]

    return encoded


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """The command line: (exit code, stdout, stderr)."""

    def call(tree, everything, *overrides):
        config = write(tmp_path, everything)
        return run(tree, "encode", config, *overrides, monkeypatch=monkeypatch, capsys=capsys)

    return call


def shards(folder):
    return sorted(Path(folder).glob("0*.safetensors"))


def items(path):
    """What a shard says of its clips."""
    return json.loads(read_metadata(path)["items"])


def tensors(folder):
    """Everything in a cache."""
    paths = [*shards(folder), folder / NO_CAPTION]
    return {f"{path.name} {name}": array for path in paths for name, array in read_safetensors(path).items()}


def assert_same(folder, other):
    """Both hold the same, bit for bit, and say the same of it."""
    ours, theirs = tensors(folder), tensors(other)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
    assert (folder / INDEX).read_bytes() == (other / INDEX).read_bytes()
    assert [items(path) for path in shards(folder)] == [items(path) for path in shards(other)]


def state(folder):
    """Tells whether a file was written anew."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.mark.ms
@pytest.mark.pt
@pytest.mark.skipif(not (available("ms") and available("pt")), reason="needs both frameworks")
def test_both_trees_write_the_same_cache(cache):
    ms, pt = cache("ms"), cache("pt")
    assert json.loads((ms / INDEX).read_text()) == json.loads((pt / INDEX).read_text())
    assert [items(path) for path in shards(ms)] == [items(path) for path in shards(pt)]
    ours, theirs = tensors(ms), tensors(pt)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype == np.float16
        np.testing.assert_allclose(array.astype(np.float32), theirs[name], **ROUNDING, err_msg=name)


@ONLY_PT
def test_what_a_cache_holds(tree, cache):
    folder = cache(tree.name)
    index = json.loads((folder / INDEX).read_text())
    assert index["clips"] == CLIPS
    assert index["buckets"] == [[5, 32, 32], [1, 32, 32]]
    listed = [item for path in shards(folder) for item in items(path)]
    assert [item["number"] for item in listed] == list(range(CLIPS))
    assert all(item["name"] == f"scene {item['number']}" and item["caption"] for item in listed)
    first, second = (read_safetensors(path) for path in shards(folder)[:2])
    assert first["0.moments"].shape == (8, 2, 4, 4)
    assert second["3.moments"].shape == (8, 1, 4, 4)
    assert len({array.shape[0] for name, array in first.items() if name.endswith("text")}) > 1
    report = json.loads((folder / "encode.json").read_text())
    assert report["clips"] == CLIPS
    assert report["config"]["batch_size"] == BATCH


def test_encoding_again_writes_nothing(tree, cache, call):
    folder = cache(tree.name)
    before = state(folder)
    code, out, err = call(tree, settings(folder))
    assert code == 0, err
    assert "0 shards written" in out
    assert f"{CLIPS} clips in 3 shards" in out
    assert state(folder) == before


@ONLY_PT
def test_what_was_deleted_is_written_again(tree, cache, call, tmp_path):
    folder = shutil.copytree(cache(tree.name), tmp_path / "cache")
    for name in ("000001.safetensors", NO_CAPTION, INDEX):
        (folder / name).unlink()
    before = state(folder)
    code, out, err = call(tree, settings(folder))
    assert code == 0, err
    assert "1 shards written" in out
    after = state(folder)
    assert all(after[name] == before[name] for name in before if name.startswith("0"))
    assert_same(folder, cache(tree.name))


@ONLY_PT
def test_interrupted_and_resumed_is_as_uninterrupted(tree, cache, call, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    module = importlib.import_module(f"{tree.name}.encode")
    write_shard = module.write_shard

    def interrupt(path, *rest):
        if path.name.startswith("000001"):
            raise KeyboardInterrupt
        write_shard(path, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_shard", interrupt)
        assert call(tree, settings(folder))[0] == 130
    assert {path.name for path in folder.iterdir()} == {"000000.safetensors", NO_CAPTION}
    with pytest.raises(ValueError, match="it goes on where it stopped"):
        training_loader(tree, folder)
    code, out, err = call(tree, settings(folder))
    assert code == 0, err
    assert "2 shards written" in out
    assert_same(folder, cache(tree.name))


@ONLY_PT
def test_ranks_share_the_shards(tree, cache, call, tmp_path, monkeypatch):
    """Whichever comes last finds all of them there and lists them."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = []
    for rank, there in ((1, 1), (0, 3)):
        monkeypatch.setenv("RANK", str(rank))
        code, out, err = call(tree, settings(folder))
        assert code == 0, err
        assert len(shards(folder)) == there
        said.append(out)
    assert "is not complete: other ranks are at work" in said[0]
    assert f"{CLIPS} clips in 3 shards" in said[1]
    assert_same(folder, cache(tree.name))


@ONLY_PT
def test_more_clips_may_follow(tree, cache, call, tmp_path):
    folder = shutil.copytree(cache(tree.name), tmp_path / "cache")
    before = state(folder)
    code, out, err = call(tree, settings(folder, clips=14))
    assert code == 0, err
    assert "2 shards written" in out, "the last one was not full"
    after = state(folder)
    assert all(after[path.name] == before[path.name] for path in shards(folder)[:2])
    assert [item["number"] for path in shards(folder) for item in items(path)] == list(range(14))


def training_loader(tree, folder, **changes):
    """The batches of a training run that reads the cache."""
    everything = {
        "transformer": {"config": tiny_transformer_config().model_dump(mode="json"), "random_seed": 0},
        **{key: settings(folder)[key] for key in ("vae", "text")},
        "data": {
            **settings(folder)["data"],
            "encoded": str(folder),
            "drop_caption_ratio": 0.0,
        },
        "loop": {"steps": 1},
    }
    config = build(T2VTrainConfig, {**everything, **changes}, where="test")
    module = importlib.import_module(f"{tree.name}.encoders")
    encoders = module.Encoders(config, tiny_vae_config(), tiny_transformer_config(), "cpu")
    assert encoders.clips is None, "nothing is left to encode"
    return open_loader(config, config.data, BATCH, 7, Mesh())


@PT_AND_SLOW_MS
def test_training_reads_what_it_would_encode(tree, cache):
    folder = cache(tree.name)
    made_with = settings(folder)
    module = importlib.import_module(f"{tree.name}.encoders")
    source = build(EncodeConfig, made_with, where="test").vae
    clips = module.ClipEncoder(source, tiny_vae_config(use_attention=False), "float32", "cpu")
    captions = module.CaptionEncoder(TextConfig(**made_with["text"]), "cpu")
    data = build(T2VDataConfig, {**made_with["data"], "drop_caption_ratio": 0.0}, where="test")
    live = {}
    for _, batch in T2VLoader(data, BATCH, seed=0).batches(0, CLIPS // BATCH):
        encoded = clips(batch["x_BCTHW"]), *captions(batch["captions"])
        live |= {number: [x[i] for x in encoded] for i, number in enumerate(batch["numbers"])}
    listed = {path.name: items(path) for path in shards(folder)}
    loader = training_loader(tree, folder)
    seen = set()
    for _, batch in loader.batches(0, loader.report().steps_per_epoch):
        for i, name in enumerate(batch["names"]):
            file, _, place = name.split()
            number = listed[file][int(place)]["number"]
            moments_ZTHW, text_LE, keep_L = live[number]
            seen.add(number)
            np.testing.assert_allclose(batch["moments_BZTHW"][i], moments_ZTHW, **ROUNDING)
            np.testing.assert_array_equal(batch["keep_BL"][i], keep_L)
            np.testing.assert_allclose(batch["text_BLE"][i], text_LE * keep_L[:, None], **ROUNDING)
    assert seen == set(range(CLIPS))


@ONLY_PT
def test_a_dropped_caption_is_the_empty_one(tree, cache):
    made_with = settings(cache(tree.name))
    module = importlib.import_module(f"{tree.name}.encoders")
    states_BLE, keep_BL = module.CaptionEncoder(TextConfig(**made_with["text"]), "cpu")([""])
    dropping = {**made_with["data"], "encoded": made_with["output"], "drop_caption_ratio": 1.0}
    ((_, batch),) = training_loader(tree, made_with["output"], data=dropping).batches(0, 1)
    for i in range(BATCH):
        np.testing.assert_array_equal(batch["keep_BL"][i], keep_BL[0])
        np.testing.assert_allclose(batch["text_BLE"][i], states_BLE[0] * keep_BL[0][:, None], **ROUNDING)


STALE = {
    "vae": ("vae.random_seed=1", "another VAE"),
    "text": ("text.max_length=23", "another text encoder or max_length"),
    "size": ("data.generated_sizes=[[5, 32, 48], [1, 32, 32]]", "other clips: annotations, sizes, lengths"),
}


@pytest.mark.parametrize("what", STALE)
def test_a_stale_cache_is_refused_by_training(tree, cache, what):
    folder = cache("pt" if available("pt") else "ms")
    override, message = STALE[what]
    path, _, value = override.partition("=")
    section, _, key = path.partition(".")
    changed = settings(folder)[section] | {key: json.loads(value)}
    if section == "data":
        changed["encoded"] = str(folder)
    with pytest.raises(ValueError, match=f"it was made with {message}"):
        training_loader(tree, folder, **{section: changed})


@ONLY_PT
@pytest.mark.parametrize("what", [*STALE, "order"])
def test_encoding_does_not_go_on_with_something_else(tree, cache, call, what):
    folder = cache(tree.name)
    before = state(folder)
    messages = {**STALE, "order": ("seed=1", "seed=0, batch_size=2, clips_per_shard=4, not seed=1")}
    override, message = messages[what]
    code, _, err = call(tree, settings(folder), override)
    assert code == 2
    assert err.strip().splitlines() == [err.strip()], "one line"
    assert f"error: encoded {folder}: it was made with {message}" in err
    assert state(folder) == before


@ONLY_PT
def test_what_float16_cannot_hold_is_refused_and_goes_on_in_float32(tree, call, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    encoder = importlib.import_module(f"{tree.name}.encoders").ClipEncoder
    encode = encoder.__call__
    # the second shard's pictures are too bright
    monkeypatch.setattr(encoder, "__call__", lambda self, x: encode(self, x) + (x.shape[2] == 1) * 1e5)
    code, _, err = call(tree, settings(folder, clips_per_shard=2))
    assert code == 2
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: encode: latent of scene 2 goes up to 1e+05, wanted what float16 holds")
    assert len(shards(folder)) == 1
    code, out, err = call(tree, settings(folder, clips_per_shard=2), "stored_dtype=float32")
    assert code == 0, err
    assert "4 shards written" in out
    largest = [batch["moments_BZTHW"].max() for _, batch in training_loader(tree, folder).batches(0, 5)]
    assert {float(value) > 9e4 for value in largest} == {False, True}


@ONLY_PT
def test_cut_captions_are_counted_and_shown(tree, call, tmp_path):
    overrides = ["clips=14", "text.max_length=5", "data.generated_sizes=[[1, 32, 32]]"]
    code, _, err = call(tree, settings(tmp_path / "cache"), *overrides)
    assert code == 0, err
    warnings = [line for line in err.splitlines() if line.startswith("warning:")]
    assert warnings[0] == "warning: 14 captions were cut; the first of them:"
    assert len(warnings) == 11


@pytest.fixture
def annotated(tmp_path):
    """The `data` of two cuts of one video, three pictures, and a broken one alone in its bucket."""
    rng = np.random.default_rng(0)
    frames_THWC = rng.integers(256, size=(60, 4, 6, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    write_video(tmp_path / "a.mp4", frames_THWC, fps=16)
    video = {"path": "a.mp4", "fps": 16, "num_frames": 30}
    entries = [{**video, "cut": [0, 30]}, {**video, "cut": [30, 60]}]
    for name in ("b.png", "c.png", "d.png"):
        write_png(tmp_path / name, rng.integers(256, size=(32, 48, 3), dtype=np.uint8))
        entries.append({"path": name})
    wide, tall = {"height": 32, "width": 48}, {"height": 48, "width": 32}
    entries = [{"cap": f"clip {i}", "resolution": wide, **entry} for i, entry in enumerate(entries)]
    (tmp_path / "broken.png").write_bytes(b"nonsense")
    entries.append({"path": "broken.png", "cap": "broken", "resolution": tall})
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, entries)))
    (tmp_path / "data.txt").write_text(".,a.jsonl\n")
    sizes = {"max_tokens": 6, "hw_stride": 16}
    data = {"annotations": str(tmp_path / "data.txt"), "sizes": sizes, "num_frames": 17, "min_frames": 5}
    return {**data, "workers": 0, "max_bad_share": 0.2}


@ONLY_PT
def test_annotated_clips_come_once_a_pass_and_broken_ones_are_left_out(tree, call, tmp_path, annotated):
    folder = tmp_path / "cache"
    code, out, err = call(tree, settings(folder, data=annotated, clips=None, passes=2))
    assert code == 0, err
    assert f"skipped: 1 undecodable ({tmp_path / 'broken.png'})" in out
    assert "10 clips in" in out
    kept = {}
    for shard in json.loads((folder / INDEX).read_text())["shards"]:
        listed, arrays = items(folder / shard["file"]), read_safetensors(folder / shard["file"])
        for place in shard["items"]:
            item = listed[place]
            assert (item["number"], item["epoch"]) not in kept
            assert item["caption"].lower().startswith(f"clip {item['number']}")
            kept[item["number"], item["epoch"]] = arrays[f"{place}.moments"]
    assert kept.keys() == {(number, epoch) for number in range(5) for epoch in range(2)}
    assert any((kept[number, 0] != kept[number, 1]).any() for number in (0, 1)), "other excerpts"
    assert all((kept[number, 0] == kept[number, 1]).all() for number in (2, 3, 4)), "pictures have none"


@ONLY_PT
def test_annotations_are_known_by_their_content(tree, call, tmp_path, annotated):
    folder = tmp_path / "cache"
    assert call(tree, settings(folder, data=annotated, clips=None))[0] == 0
    moved = {**annotated, "encoded": str(folder), "annotations": str(tmp_path / "moved.txt")}
    (tmp_path / "moved.txt").write_text("/somewhere/else,a.jsonl\n")
    loader = training_loader(tree, folder, data=moved)
    assert [line.clips for line in loader.report().buckets] == [3, 2]
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('\n{"path": "b.png", "cap": "again", "resolution": {"height": 32, "width": 48}}')
    with pytest.raises(ValueError, match="other clips: annotations"):
        training_loader(tree, folder, data=moved)
