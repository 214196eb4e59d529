"""The parity tool itself: it passes what is equal, fails what is not, and says where."""

import json
import weakref
from pathlib import Path

import numpy as np
import pytest

from common.config import build as build_config
from common.config import load
from common.models import TransformerConfig, VAEConfig
from common.noise import Drawn, initial_weights
from tests.conftest import ONLY_PT
from tests.tiny import build, tiny_transformer_config
from tools.parity import __main__ as cli
from tools.parity import recording
from tools.parity.__main__ import main
from tools.parity.bisect import PASSES, Call, bisect, judge
from tools.parity.compare import check_oracle, compare
from tools.parity.difference import difference
from tools.parity.dump import dump
from tools.parity.goldens import CARRIED, select
from tools.parity.plan import DumpConfig
from tools.parity.recording import Recorder, Recording, fingerprint
from tools.parity.selftest import FAULTS, selftest
from tools.parity.stages import Lab
from tools.parity.tree import Tree

ROOT = Path(__file__).resolve().parents[2]
CONFIG, RELEASED = (ROOT / "configs" / f"parity_{size}.yaml" for size in ("tiny", "released"))
FACTS = {"dtype": "float32"}


def quick(*overrides):
    return load(DumpConfig, CONFIG, ["device=cpu", "transformer.config.num_layers=5", *overrides])


def made(**tensors):
    return Recording({f"dit/{k.replace('__', '.')}": np.asarray(v) for k, v in tensors.items()}, FACTS)


@ONLY_PT
def test_recordings_of_one_tree_are_equal_and_survive_the_disk(tree, tmp_path):
    config = quick("stages=[op,block,vae,dit,sampler,train-step]")
    first, second = dump(config, tree), dump(config, tree)
    stages = list(dict.fromkeys(name.partition("/")[0] for name in first.tensors))
    assert stages == ["op", "block", "vae", "dit", "sampler", "train-step"]
    recording.write(tmp_path / "a.safetensors", first)
    again = recording.read(tmp_path / "a.safetensors")
    assert list(again.tensors) == list(first.tensors), "the order of execution must survive"
    result = compare(again, second)
    assert result.passed
    assert all(row.difference.max_abs == 0 for row in result.rows)


@ONLY_PT
def test_every_kind_of_tensor_is_recorded(tree):
    tensors = dump(quick("stages=[dit,train-step]"), tree).tensors
    for name in (
        "dit/weights.pos_embed.proj.weight",
        "dit/in.x",
        "dit/in.keep_group",
        "dit/act.transformer_blocks.2.attn1.to_q",
        "dit/act.transformer_blocks.4",
        "dit/out.prediction",
        "dit/grad.transformer_blocks.3.attn2.to_v.weight",
        "train-step/out.loss_3",
        "train-step/param.proj_out.bias",
    ):
        assert name in tensors, name
    losses = [float(tensors[f"train-step/out.loss_{i}"].reshape(-1)[0]) for i in (1, 2, 3)]
    assert losses[2] < losses[0], "training must lower the loss"
    moved = {name: np.abs(x).max() for name, x in tensors.items() if name.startswith("train-step/param.")}
    assert len(moved) > 100
    assert sum(distance > 1e-4 for distance in moved.values()) > 0.9 * len(moved), "and move the parameters"


@pytest.mark.ms
@pytest.mark.pt
def test_both_trees_agree_and_a_bisection_finds_nothing():
    config = quick("stages=[op,dit]", "num_frames=5", "transformer.config.num_layers=5")
    ms, pt = Tree("ms", "cpu"), Tree("pt", "cpu")
    result = compare(dump(config, ms), dump(config, pt))
    assert result.passed, result.failed[:5]
    assert bisect(config, ms, pt) == []
    assert bisect(config, ms, pt, None, "vae") == []


@ONLY_PT
def test_a_fault_in_the_vae_is_named(tree, monkeypatch):
    sound = Lab.vae

    def faulty(lab):
        vae = sound(lab)
        if lab.tamper is not None:
            vae.decoder.up2[0].norm2.norm.eps = 1e-3
        return vae

    monkeypatch.setitem(PASSES, "vae", (faulty, PASSES["vae"][1]))
    findings = bisect(quick("num_frames=5"), tree, tree, lambda model: None, "vae")
    assert [finding.name for finding in findings] == ["decoder.up2.0.norm2.norm"]


@pytest.mark.ms
@pytest.mark.pt
@pytest.mark.slow
def test_every_planted_fault_is_found_and_named():
    outcomes = list(selftest(load(DumpConfig, CONFIG, ["device=cpu"]), Tree("ms", "cpu"), Tree("pt", "cpu")))
    assert len(outcomes) == len(FAULTS) == 9
    assert all(outcome.found for outcome in outcomes), [o for o in outcomes if not o.found]


def test_missing_extra_misshapen_and_nan_are_failures():
    a = made(out__x=np.ones((2, 3)), out__only_a=1.0, out__bent=np.ones(3), out__nan=[1.0, np.nan])
    b = made(out__x=np.ones((2, 3)), out__only_b=1.0, out__bent=np.ones(4), out__nan=[1.0, 2.0])
    result = compare(a, b)
    assert {row.name: row.verdict for row in result.rows} == {
        "dit/out.x": "pass",
        "dit/out.only_a": "fail",
        "dit/out.bent": "fail",
        "dit/out.nan": "fail",
        "dit/out.only_b": "fail",
    }
    assert {row.note for row in result.failed} >= {
        "missing in B",
        "missing in A",
        "shape (3,) in A, (4,) in B",
    }


@pytest.mark.parametrize(
    ("a", "b"), [([np.nan], [np.nan]), ([np.nan], [np.inf]), ([np.inf], [-np.inf]), ([1.0], [np.nan])]
)
def test_what_is_not_finite_is_never_a_pass(a, b):
    assert not compare(made(out__y=a), made(out__y=b)).passed
    half = {"dtype": "float16"}
    ours, theirs = (Recording({"dit/out.y": np.array(x)}, half) for x in (a, b))
    assert not compare(ours, theirs, Recording({"dit/out.y": np.array([1.0])}, half)).passed


def test_an_oracle_that_is_none_is_refused():
    def recorded(tree="pt", dtype="float32", **config):
        return Recording({"dit/out.y": np.ones(1)}, {"tree": tree, "dtype": dtype, "config": config})

    b = recorded(seed=0, dtype="float16", stages=["dit"])
    check_oracle(recorded(dtype="float64", seed=0, stages=["dit", "vae"]), b)
    for oracle, message in [
        (recorded(seed=0), "got a recording of pt in float32, wanted pt in float64"),
        (recorded("ms", "float64", seed=0), "got a recording of ms in float64"),
        (recorded(dtype="float64", seed=1), "got a recording with seed 1, wanted that of B, 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_oracle(oracle, b)


def test_a_module_whose_trusted_result_is_not_finite_is_found_wrong():
    for ours, theirs in [
        ([1.0, np.nan], [1.0, np.nan]),
        ([1.0], [np.inf]),
        ([np.nan], [1.0]),
        ([1.0], [1.0, 2.0]),
    ]:
        call = Call("block", (), np.array(theirs))
        assert judge(call, np.array(ours), "float32", 1.0).relative == np.inf
    assert judge(Call("block", (), np.ones(2)), np.ones(2), "float32", 1.0) is None


def test_nothing_to_compare_is_not_a_pass():
    assert not compare(made(), made()).passed


def test_recordings_of_different_stages_are_compared_in_what_both_have(tmp_path, capsys):
    facts = FACTS | {"config": {}}
    one, two = np.ones(3), np.full(3, 2.0)
    both, more, other = {"dit/out.y": one}, {"vae/out.z": one, "op/out.q": one}, {"text/out.t": one}
    paths = []
    for name, tensors in {"a": both | more, "b": both | other, "c": {"dit/out.y": two}, "d": other}.items():
        paths.append(str(tmp_path / f"{name}.safetensors"))
        recording.write(paths[-1], Recording(tensors, facts))
    a, b, c, d = paths
    numbers, page = tmp_path / "r.json", tmp_path / "r.html"
    assert main(["compare", a, b, "--json", str(numbers), "--html", str(page)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["only in A, not compared: vae, op", "only in B, not compared: text"]
    assert lines[-1] == "PASS: 1 of 1 tensors agree"
    assert json.loads(numbers.read_text())["only_in"] == {"A": ["vae", "op"], "B": ["text"]}
    assert "only in A, not compared: vae, op" in page.read_text()
    assert main(["compare", a, c]) == 1, "what both have must still agree"
    capsys.readouterr()
    assert main(["compare", a, b, "--select", "dit/*"]) == 0
    assert "only in" not in capsys.readouterr().out, "what was not selected is not missed"
    assert main(["compare", a, d]) == 2
    assert main(["compare", a, b, "--select", "vae/*"]) == 2
    assert "no stage that both recordings have" in capsys.readouterr().err


def test_a_tensor_missing_from_a_stage_of_both_is_still_a_failure():
    result = compare(made(out__x=1.0, grad__w=1.0), made(out__x=1.0))
    assert [(row.name, row.note) for row in result.failed] == [("dit/grad.w", "missing in B")]


def test_the_first_difference_is_the_earliest_activation_after_weights_and_inputs():
    base = {"in__x": np.ones(3), "act__a": np.ones(3), "act__b": np.ones(3), "out__y": np.ones(3)}
    off = {**base, "act__a": np.ones(3) * 1.1, "act__b": np.ones(3) * 1.2, "out__y": np.ones(3) * 2}
    assert compare(made(**base), made(**off)).first_failed("dit").name == "dit/act.a"
    inner = {"act__encoder.mid": np.ones(3), "act__decoder.conv_in.conv": np.ones(3)}
    both = {k: v * 1.1 for k, v in inner.items()}
    assert compare(made(**inner), made(**both)).first_failed("dit").name == "dit/act.encoder.mid"
    off["in__x"] = np.ones(3) * 1.0001
    assert compare(made(**base), made(**off)).first_failed("dit").name == "dit/in.x"


def test_what_should_be_zero_is_measured_by_its_kind():
    big = np.ones(4)
    a, b = made(grad__w=big, grad__b=np.full(4, 1e-9)), made(grad__w=big, grad__b=np.full(4, -1e-9))
    assert compare(a, b).passed
    assert not compare(made(grad__b=np.full(4, 1e-9)), made(grad__b=np.full(4, -1e-9))).passed


def test_an_oracle_asks_for_as_good_as():
    truth, a, b = np.ones(100), np.ones(100), np.ones(100)
    b[0], a[0] = 1.01, 1.015
    half = {"dtype": "float16"}
    recordings = [Recording({"dit/out.y": x}, half) for x in (a, b, truth)]
    assert compare(*recordings).passed
    worse = Recording({"dit/out.y": truth * 1.03}, half)
    assert not compare(worse, *recordings[1:]).passed
    assert compare(*recordings[:2], Recording({}, half)).rows[0].note == "missing in the oracle"


def test_fingerprints_see_a_transposition():
    matrix = np.arange(9.0).reshape(3, 3)
    assert (fingerprint(matrix) != fingerprint(matrix.T)).any()
    assert (fingerprint(matrix)[:3] == fingerprint(matrix.T)[:3]).all()


def test_measures():
    same = difference(np.array([1.0, np.inf]), np.array([1.0, np.inf]))
    assert same.max_abs == 0
    assert same.share_equal == 1
    assert difference(np.array([1.0, np.inf]), np.array([1.0, 2.0])).max_abs == np.inf
    d = difference(np.array([3.0, 4.0]), np.array([3.0, 0.0]))
    assert (d.max_abs, round(d.relative_l2, 4), d.share_equal) == (4.0, 1.3333, 0.5)


def test_inputs_are_drawn_by_name():
    one, two = Recorder("dit", 0), Recorder("dit", 0)
    two.draw("other", (3,))
    assert (one.draw("x", (4,)) == two.draw("x", (4,))).all()
    assert (one.draw("y", (4,)) != two.draw("x", (4,))).any()
    assert list(two.tensors) == ["dit/in.other", "dit/in.x", "dit/in.x#2"]


@pytest.mark.pt
def test_the_command_line(tmp_path, capsys):
    a, b, page = (str(tmp_path / name) for name in ("a.safetensors", "b.safetensors", "report.html"))
    line = [
        "dump",
        str(CONFIG),
        "--tree",
        "pt",
        "stages=[dit]",
        "device=cpu",
        "transformer.config.num_layers=5",
    ]
    assert main([*line, "--out", a]) == 0
    assert main([*line, "--out", b, "transformer.random_seed=7"]) == 0
    capsys.readouterr()
    assert main(["compare", a, a, "--html", page, "--json", str(tmp_path / "r.json")]) == 0
    assert "PASS" in capsys.readouterr().out
    text = Path(page).read_text()
    assert "PASS" in text
    assert "<svg" in text
    assert "http" not in text, "the page must stand alone"
    assert json.loads((tmp_path / "r.json").read_text())["passed"] is True
    assert main(["compare", a, b]) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out
    assert "first to differ: dit/weights.adaln_single" in out or "first to differ: dit/weights." in out
    assert main(["compare", a, str(tmp_path / "absent")]) == 2
    assert main(["dump", str(CONFIG), "--tree", "pt", "--out", a, "stages=[nothing]"]) == 2
    assert main(["golden", str(tmp_path), "--tree", "pt"]) == 2
    assert "no manifest.json" in capsys.readouterr().err


@ONLY_PT
def test_random_weights_fill_a_model_without_a_second_copy_of_it(tree):
    """2.8 billion parameters fit into the memory of one model only if each is drawn when it is its turn."""
    alive, most, drawn = set(), [0], []

    def draw(name, shape):
        array = np.zeros(shape, np.float32)
        drawn.append(name)
        alive.add(name)
        weakref.finalize(array, alive.discard, name)
        most[0] = max(most[0], len(alive))
        return array

    model = build(tree, "transformer", tiny_transformer_config())
    tree.loading.initialize(model, 0, lambda shapes, seed: Drawn(shapes, draw))
    assert sorted(drawn) == sorted(tree.runtime.trainable(model)), "each once"
    assert most[0] <= 2
    assert isinstance(initial_weights({"a.weight": (2, 2)}, 0), Drawn)
    drawn.clear()
    assert "a" in Drawn({"a": (1,)}, draw)
    assert not drawn, "to ask for a name draws nothing"


@ONLY_PT
def test_gradients_can_be_left_out(tree):
    whole, less = (dump(quick("stages=[dit]", f"gradients={g}"), tree).tensors for g in ("true", "false"))
    of_gradients = {name for name in whole if "/grad." in name} | {"dit/out.loss", "dit/in.probe"}
    assert set(less) == set(whole) - of_gradients
    assert len(whole) > len(less) + 100


@pytest.mark.pt
def test_tf32_is_off_and_an_accelerator_is_told_about(monkeypatch, capsys):
    """With a stand-in for a GPU: the flags that PyTorch would hand to cuDNN and cuBLAS, and the line."""
    import torch

    from pt import runtime

    seen = []

    def recorded(config, tree):
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return []

    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    monkeypatch.setattr(cli, "modes", recorded)
    try:
        for device in ("cpu", "cuda"):
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
            monkeypatch.setattr(runtime, "setup", lambda *_, device=device: device)
            assert main(["modes", str(CONFIG), "--tree", "pt"]) == 0
            assert capsys.readouterr().out.count("TF32 is switched off") == (device == "cuda")
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    assert seen == [(False, False)] * 2


@pytest.mark.ms
def test_hf32_of_ascend_is_told_about(monkeypatch, capsys):
    from ms import runtime

    monkeypatch.setattr(cli, "modes", lambda config, tree: [])
    for device in ("cpu", "ascend"):
        monkeypatch.setattr(runtime, "setup", lambda *_, device=device: device)
        assert main(["modes", str(CONFIG), "--tree", "ms"]) == 0
        assert capsys.readouterr().out.count("HF32") == (device == "ascend")


@ONLY_PT
def test_a_recording_says_how_its_float32_was_computed(tree):
    assert dump(quick("stages=[op]"), tree).facts["float32"] == "float32 is computed as float32"


@ONLY_PT
def test_float64_is_an_oracle(tree):
    config = quick("stages=[dit]")
    single, double = dump(config, tree), dump(config.replace(dtype="float64"), tree)
    errors = [
        difference(single.tensors[n], double.tensors[n]).max_abs for n in single.tensors if "/act." in n
    ]
    assert 0 < max(errors) < 1e-4
    assert compare(single, single, double).passed


def test_the_released_preset_is_of_the_released_models():
    """Drawn by name: nothing has to be downloaded to compare the whole models."""
    config = load(DumpConfig, RELEASED)
    assert config.transformer_config() == TransformerConfig()
    assert (config.transformer.random_seed, config.vae.random_seed) == (1, 2)
    vae = config.vae_config()
    assert vae == build_config(VAEConfig, select(CARRIED)["scale_wfvae"]["config"], "manifest")
    assert not config.gradients


@pytest.mark.parametrize("path", [CONFIG, RELEASED], ids=lambda path: path.stem)
def test_transformer_of_the_preset_pads(path):
    """The preset's grid must need masks, or polarity and padding would go untested."""
    config = load(DumpConfig, path)
    model = config.transformer.resolve(TransformerConfig, "transformer")
    _, _, T, H, W = config.latent_shape()
    assert (T * H * W // model.patch_size**2) % model.skip_stride**2
    assert {"single", "group"} <= set(model.plan)
