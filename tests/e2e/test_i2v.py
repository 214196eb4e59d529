"""Image to video as a user meets it: pictures and clips in, videos out; training from text to video."""

import json

import numpy as np
import pytest

from common.checkpoint import StoredWeights, read_safetensors, save_weights
from common.condition_layers import LET_IN
from common.config import build as build_config
from common.data.t2v import T2VLoader
from common.encoding import EncodeConfig
from common.i2v_training import Draw, show
from common.images import write_png
from common.parallel import Mesh
from common.t2v_training import T2VTrainConfig, open_loader
from common.video import write_video
from common.windows import Join
from tests.conftest import ONLY_PT, PT_AND_SLOW_MS, available
from tests.tiny import build, tiny_transformer_config, tiny_vae_config
from tools.parity.tree import Tree

from .command_lines import needs_encoder, sample_settings, write
from .test_ranks import TASKS, image_settings
from .training import checkpoints, command, losses, run, write_config

pytestmark = needs_encoder
STEPS = 10


def image_model(**changes):
    """Both condition layers are random, so what is given shows in the result."""
    fields = {"caption_channels": 384, "num_layers": 3, "vae_scale_factor_t": 4}
    trained = {"sample_size_t": 3, "sample_size_h": 4, "sample_size_w": 6}
    config = tiny_transformer_config(**{**fields, **trained, **changes})
    return {"config": config.model_dump(mode="json"), "random_seed": 0}


def i2v_settings(tmp_path, **changes):
    return sample_settings(tmp_path, transformer=image_model(), num_frames=9, **changes)


@pytest.fixture
def pictures(tmp_path):
    """Two pictures of different sizes and colours."""
    paths = [tmp_path / "first.png", tmp_path / "last.png"]
    for path, size, grey in zip(paths, [(50, 61), (64, 80)], [40, 220], strict=True):
        image = np.full((*size, 3), grey, np.uint8)
        image[size[0] // 3 : size[0] // 2, : size[1] // 2] = (200, 60, 90)
        write_png(path, image)
    return list(map(str, paths))


def report_of(folder):
    """Its joins."""
    report = json.loads((folder / "0000_a_red_ball_seed0.json").read_text())
    assert {"condition", "denoise", "decode"} <= set(report["seconds_so_far"])
    return report["joins"]


def frames_of(folder, stem="0000_a_red_ball_seed0"):
    return read_safetensors(folder / f"{stem}.safetensors")["frames_THWC"].astype(int)


@PT_AND_SLOW_MS
def test_pictures_clips_and_long_videos(tree, tmp_path, call, pictures):
    """Each way to give something changes the video; a long one is made in windows that are checked."""
    config = write(tmp_path, i2v_settings(tmp_path))
    write_video(tmp_path / "clip.mp4", np.full((12, 40, 60, 3), 90, np.uint8), 8)
    ways = {
        "text": [],
        "first": [f"image={pictures[0]}"],
        "noisy": [f"image={pictures[0]}", "noise_strength=0.5"],
        "both": [f"image={','.join(pictures)}"],
        "clip": [f"video={tmp_path / 'clip.mp4'}", "keep=0:5,-1"],
        "long": [f"image={pictures[0]}", "num_frames=20", "overlap_frames=5"],
    }
    if tree.name == "ms":  # compiles anew for each; the twins below differ in nothing
        ways = {name: ways[name] for name in ("first", "long")}
    made, told = {}, {}
    for name, keys in ways.items():
        code, _, told[name] = call(tree, "sample", config, *keys, f"output={tmp_path / name}")
        assert code == 0, told[name]
        made[name] = frames_of(tmp_path / name)
    assert {name: len(frames) for name, frames in made.items()} == {**dict.fromkeys(ways, 9), "long": 20}
    alone = [name for name in ways if name != "long"]
    assert "begins a window" in told["long"] or not any(
        join["jumps"] for join in report_of(tmp_path / "long")
    )
    assert all((made[a] != made[b]).any() for a in alone for b in alone if a < b)
    np.testing.assert_array_equal(made["long"][:9], made["first"])
    assert [join["frame"] for join in report_of(tmp_path / "long")] == [9, 13, 16]


@ONLY_PT
def test_batches_change_nothing_and_every_prompt_has_its_size(tree, tmp_path, call, pictures):
    (tmp_path / "list.txt").write_text(f"{pictures[0]}\n-\n{pictures[1]}\n")
    settings = i2v_settings(tmp_path, prompt=["one", "two", "three"], batch_size=2)
    keys = [f"image={tmp_path / 'list.txt'}", "max_hxw=4096"]
    assert call(tree, "sample", write(tmp_path, settings), *keys)[0] == 0
    stems = [f"000{i}_{word}_seed{i}" for i, word in enumerate(settings["prompt"])]
    shapes = [frames_of(tmp_path / "out", stem).shape for stem in stems]
    assert shapes == [(9, 32, 32, 3), (9, 32, 48, 3), (9, 32, 64, 3)]
    alone = [f"image={pictures[1]}", "max_hxw=4096", "prompt=three", "seed=2", f"output={tmp_path / 'alone'}"]
    assert call(tree, "sample", write(tmp_path, settings), *alone)[0] == 0
    np.testing.assert_allclose(
        frames_of(tmp_path / "out", "0002_three_seed2"),
        frames_of(tmp_path / "alone", "0000_three_seed2"),
        atol=1,
    )


@ONLY_PT
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["image=nowhere.png"], "no such file"),
        (["transformer.overrides.vae_scale_factor_t=null", "image=first.png"], "got a text-to-video"),
        (["num_frames=33", "overlap_frames=9"], "overlap_frames: got 9"),
        (["keep=0:3"], "keep: it goes with video"),
        (["transformer.overrides.vae_scale_factor_t=8"], "vae_scale_factor_t is 8, the VAE has 4"),
    ],
)
def test_mistakes_are_one_line(tree, tmp_path, call, pictures, keys, message):
    keys = [key.replace("first.png", pictures[0]) for key in keys]
    code, _, err = call(tree, "sample", write(tmp_path, i2v_settings(tmp_path)), *keys)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


@ONLY_PT
def test_half_precision_and_a_vae_of_eight_frames(tree, tmp_path, call, pictures):
    half = ["dtype=float16", "vae_dtype=float16", f"image={pictures[0]}"]
    assert call(tree, "sample", write(tmp_path, i2v_settings(tmp_path)), *half)[0] == 0
    assert frames_of(tmp_path / "out").std() > 1
    blocks = {
        "l1_dowmsample_block": "Spatial2xTime2x3DDownsample",
        "l1_upsample_block": "Spatial2xTime2x3DUpsample",
    }
    waves = {
        "l1_downsample_wavelet": "HaarWaveletTransform3D",
        "l1_upsample_wavelet": "InverseHaarWaveletTransform3D",
    }
    vae = tiny_vae_config(use_attention=False, **blocks, **waves).model_dump(mode="json")
    settings = i2v_settings(
        tmp_path, vae={"config": vae, "random_seed": 0}, window_frames=9, overlap_frames=1
    )
    settings["transformer"] = image_model(vae_scale_factor_t=8)
    keys = [f"image={','.join(pictures)}", "num_frames=17", f"output={tmp_path / 'eight'}"]
    code, _, err = call(tree, "sample", write(tmp_path, settings), *keys)
    assert code == 0, err
    assert len(frames_of(tmp_path / "eight")) == 17


@ONLY_PT
def test_a_jump_between_windows_is_a_warning(tree, tmp_path, call, monkeypatch):
    jump = Join(5, brightness=20.0, motion=30.0, usual_brightness=1.0, usual_motion=(0.5, 2.0))
    monkeypatch.setattr(tree.sample, "check_joins", lambda *given: [jump])
    code, _, err = call(tree, "sample", write(tmp_path, i2v_settings(tmp_path)))
    assert code == 0
    assert "frame 5 begins a window with a jump: brightness changes by 20.0" in err
    assert "pixels by 30.0 (usual: 0.5 to 2.0); raise overlap_frames" in err
    assert report_of(tmp_path / "out")[0]["jumps"] is True


@ONLY_PT
def test_far_from_training_is_a_warning(tree, tmp_path, call):
    code, _, err = call(tree, "sample", write(tmp_path, i2v_settings(tmp_path)), "height=96", "width=96")
    assert code == 0
    assert "warning: size: got 96x96, the transformer was trained on shapes of about 32x48" in err


@pytest.mark.slow
@pytest.mark.parametrize("tree", [pytest.param("pt", marks=[pytest.mark.pt, pytest.mark.ms])], indirect=True)
@pytest.mark.skipif(not (available("ms") and available("pt")), reason="needs both frameworks")
def test_the_trees_make_the_same_video(tree, tmp_path, pictures):
    settings = i2v_settings(tmp_path, noise_strength=0.05)
    config, made = write(tmp_path, settings), {}
    for name in ("ms", "pt"):
        run(command(name, "sample", config, f"image={','.join(pictures)}", f"output={tmp_path / name}"))
        made[name] = frames_of(tmp_path / name)
    assert np.abs(made["ms"] - made["pt"]).max() <= 1
    assert made["pt"].std() > 5


def train_settings(**changes):
    """From random weights of an image-to-video model."""
    loop = {"steps": STEPS, "checkpoint_every": 5, "keep_last": 2, "log_every": 1}
    return {**image_settings(), "loop": loop, **changes}


@pytest.fixture
def text_model(tmp_path):
    """A text-to-video model's directory."""
    tree, settings = Tree("pt"), train_settings()
    fields = {**settings["transformer"]["config"], "vae_scale_factor_t": None}
    config = tiny_transformer_config(**fields)
    model = build(tree, "transformer", config)
    weights = {name: tree.numpy(p) for name, p in tree.runtime.parameters(model).items()}
    save_weights(tmp_path / "t2v", weights, config.hub_dict())
    return tmp_path / "t2v"


@pytest.mark.slow
@pytest.mark.pt
def test_begins_from_a_text_to_video_model_and_says_so(tmp_path, text_model, pictures):
    """Its validation makes videos from pictures."""
    source = {"path": str(text_model), "overrides": {"vae_scale_factor_t": 4}}
    settings = train_settings(transformer=source)
    settings["loop"]["validate_every"] = 5
    validation = {"num_frames": 5, "height": 32, "width": 64, "sampler": {"num_steps": 2}}
    validation |= {"prompts": ["a red ball", "a box"], "image": pictures}
    settings["validation"] = validation | {"data": settings["data"], "batches": 1}
    config = write_config(tmp_path / "run.yaml", settings)
    printed = run(command("pt", "train", config, f"output={tmp_path / 'run'}"))
    assert "is a text-to-video model; the layers that let images in are new and start at zero" in printed
    released = checkpoints(tmp_path / "run")[-1] / "model"
    written = json.loads((released / "config.json").read_text())
    assert written["_class_name"] == "OpenSoraInpaint_v1_3"
    assert written["vae_scale_factor_t"] == 4
    trained, before = StoredWeights(released), StoredWeights(text_model)
    assert all(np.abs(trained[name]).max() > 0 for name in LET_IN)
    assert len(list((tmp_path / "run" / "pictures").glob("*.png"))) == 2
    assert set(trained) - set(before) == {name for name in trained if name.startswith("pos_embed_mask")}


@pytest.mark.slow
@pytest.mark.pt
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conditions": None}, "conditions is missing"),
        ({"transformer": "text"}, "transformer.overrides.vae_scale_factor_t to the VAE"),
    ],
)
def test_conditions_and_model_go_together(tmp_path, text_model, changes, message):
    if "transformer" in changes:
        changes = {"transformer": {"path": str(text_model)}}
    config = write_config(tmp_path / "run.yaml", train_settings(**changes))
    assert message in run(command("pt", "train", config, f"output={tmp_path / 'run'}"), code=2)


@pytest.mark.slow
@ONLY_PT
def test_each_step_has_the_tasks_of_its_stage(tree, monkeypatch):
    """And a validation always those of the last."""
    config = build_config(T2VTrainConfig, train_settings(), where="test")
    seen, original = [], tree.train.show
    monkeypatch.setattr(
        tree.train, "show", lambda *given: seen.append((given[1], given[-1].step)) or original(*given)
    )
    task = tree.train.T2VTraining(config, tree.device, Mesh(), tree.parallel.Ranks(Mesh(), tree.device))
    loader = open_loader(config, config.data, config.global_batch_size, config.seed, Mesh())
    for step, batch in loader.batches(2, 4):
        task.step(step, batch)
    assert config.conditions is not None
    assert seen == [(config.conditions.stages[0], 2), (config.conditions.stages[1], 3)]


def check_cached(config, encode):
    """A cached batch shows the frames that encode drew, and its mask is 1 where none is given."""
    tree = Tree("pt")
    task = tree.train.T2VTraining(config, tree.device, Mesh(), tree.parallel.Ranks(Mesh(), tree.device))
    _, batch = next(iter(open_loader(config, config.data, 2, config.seed, Mesh()).batches(0, 1)))
    given_BT = batch["given_BT"]
    first_BM = task.samples(batch, Draw(config.seed, 0, range(2)), None).mask_BMTHW[:, :, 0, 0, 0]
    np.testing.assert_array_equal(first_BM == 0, np.repeat(given_BT[:, :1], 4, axis=1))
    for name, given_T in zip(batch["names"], given_BT, strict=True):
        np.testing.assert_array_equal(given_T, drawn_by(encode)[name])


def drawn_by(encode):
    """Which frames of each clip encode gives, by the clip's name in the cache."""
    size, found = encode.batch_size, {}
    for step, batch in T2VLoader(encode.data, size, encode.seed).batches(0, encode.clips // size):
        draw, masks = Draw(encode.seed, step, range(size)), encode.conditions.stages[0]
        shown = show(encode.conditions, masks, batch["x_BCTHW"], None, (4, 8, 8), draw)
        for place, given_T in enumerate(shown.given_BT, start=step * size):
            shard, number = divmod(place, encode.clips_per_shard)
            found[f"{shard:06d}.safetensors clip {number}"] = given_T
    return found


@pytest.mark.slow
@pytest.mark.pt
def test_training_from_a_cache_with_conditions(tmp_path):
    """What is shown of each clip lies in the cache; a cache of other conditions is refused."""
    settings = train_settings()
    conditions = {"stages": [{"video": TASKS}]}
    encode = {key: settings[key] for key in ("vae", "text", "data", "device") if key in settings}
    encode |= {"conditions": conditions, "clips": 8, "batch_size": 2, "clips_per_shard": 4}
    cache = tmp_path / "cache"
    run(command("pt", "encode", write_config(tmp_path / "encode.yaml", encode), f"output={cache}"))
    loop = {"steps": 2, "log_every": 1}
    cached = train_settings(
        conditions=conditions, data={**settings["data"], "encoded": str(cache)}, loop=loop
    )
    config = write_config(tmp_path / "run.yaml", cached)
    run(command("pt", "train", config, f"output={tmp_path / 'run'}"))
    assert len(losses(tmp_path / "run")) == 2
    check_cached(
        build_config(T2VTrainConfig, cached, where="test"), build_config(EncodeConfig, encode, "test")
    )
    stored = read_safetensors(cache / "000000.safetensors")
    assert {name.partition(".")[2] for name in stored} == {"moments", "text", "shown", "given"}
    for conditions, message in (
        ({"stages": [{"video": {"i2v": 1}}]}, "other conditions"),
        ({"stages": [{}, {"from_step": 5}]}, "got 2 stages, wanted one"),
    ):
        config = write_config(tmp_path / "other.yaml", {**cached, "conditions": conditions})
        assert message in run(command("pt", "train", config, f"output={tmp_path / 'other'}"), code=2)
