"""`golden` and `audit` on any folder: what a case lacks ends that case only; weights drawn by name."""

import functools
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.checkpoint import read_safetensors, save_weights, weight_files
from common.files import write_safetensors
from tests.conftest import ONLY_PT
from tests.tiny import build, tiny_vae_config
from tools.parity.__main__ import main
from tools.parity.by_name import ByName
from tools.parity.golden import check
from tools.parity.goldens import find_folder, select
from tools.parity.tree import exact_tree


def copied(folder, name, **changes):
    """A case of the goldens at hand, in a folder of its own, with some fields of its record changed."""
    source = find_folder()
    if source is None:
        pytest.skip("no golden folder in this checkout")
    record = {**select(source)[name], **changes}
    borrowed = [place.partition("#")[0] for place in (record.get("weights_from") or {}).values()]
    for file in (record.get("file"), record.get("json_file"), *borrowed):
        if file:
            shutil.copy(source / file, folder)
    return record


def write_manifest(folder, *records):
    (folder / "manifest.json").write_text(json.dumps({"cases": records}))
    return str(folder)


def states(measured):
    """The state of each case, and the verdict and note of each of its outputs, from --json."""
    results = json.loads(measured.read_text())
    outputs = {r["case"]: {o["output"]: (o["verdict"], o["note"]) for o in r["outputs"]} for r in results}
    return {r["case"]: r["state"] for r in results}, outputs


@pytest.mark.pt
def test_a_sampler_that_we_lack_is_not_implemented_and_the_others_are_judged(tmp_path, capsys):
    record, measured = copied(tmp_path, "schedulers"), tmp_path / "r.json"
    known = next(key for key, info in record["info"].items() if not info["raises"])
    tensors = read_safetensors(tmp_path / record["file"])
    for key in (f"Unheard.{known.partition('.')[2]}", f"{known.partition('.')[0]}.other_schedule"):
        record["info"][key] = record["info"][known]
        tensors[f"out.{key}.timesteps"] = tensors[f"out.{known}.timesteps"]
        record["outputs"][f"{key}.timesteps"] = record["outputs"][f"{known}.timesteps"]
    write_safetensors(tmp_path / record["file"], tensors, {})
    folder = write_manifest(tmp_path, record, copied(tmp_path, "skiparse_index"))
    assert main(["golden", folder, "--tree", "pt", "--json", str(measured)]) == 1
    assert "1 passed, 0 failed, 1 not implemented; outputs: " in capsys.readouterr().out
    _, outputs = states(measured)
    verdicts = {name: verdict for name, (verdict, _) in outputs["schedulers"].items()}
    assert verdicts[f"{known}.timesteps"] == "pass"
    assert [name for name, verdict in verdicts.items() if verdict == "not implemented"] == [
        name for name in verdicts if name.startswith("Unheard.") or ".other_schedule." in name
    ]
    notes = [note for verdict, note in outputs["schedulers"].values() if verdict == "not implemented"]
    assert any("sampler 'Unheard' is unknown" in note for note in notes)


@pytest.mark.pt
def test_other_fields_are_not_implemented_and_weights_that_do_not_fit_are_failures(tmp_path, capsys):
    """Neither ends the run; each says why."""
    measured = tmp_path / "r.json"

    def block(name, **changes):
        record = copied(tmp_path, "dit_block_n4_single")
        config = {key: value for key, value in (record["config"] | changes).items() if value is not None}
        return record | {"name": name, "config": config}

    pipeline = copied(tmp_path, "sample_t2v_ddim")
    pipeline["sampler_args"]["sample_method"] = "Unheard"
    other_model = pipeline["config"] | {"transformer": pipeline["config"]["transformer"] | {"gated": True}}
    folder = write_manifest(
        tmp_path,
        block("lacks_a_field", sparse_n=None),
        copied(tmp_path, "rope3d", file=None) | {"name": "lacks_its_tensors"},
        {"name": "lacks_everything"},
        pipeline,
        pipeline | {"name": "of_another_model", "config": other_model},
        block("misfits", num_attention_heads=1, attention_head_dim=12),
        block("as_recorded"),
    )
    assert main(["golden", folder, "--tree", "pt", "--json", str(measured)]) == 1
    assert "1 passed, 1 failed, 5 not implemented" in capsys.readouterr().out
    found, outputs = states(measured)
    assert [name for name, state in found.items() if state == "fail"] == ["misfits"]
    assert found["as_recorded"] == "pass"
    for name, words in {
        "lacks_a_field": "no 'sparse_n' is recorded",
        "lacks_its_tensors": "is recorded, which this kind of case has",
        "lacks_everything": "no 'file' is recorded",
        "sample_t2v_ddim": "sampler 'Unheard' is unknown",
        "of_another_model": "gated",
        "misfits": "misshapen",
    }.items():
        assert all(words in note for _, note in outputs[name].values()), name


def opened(log):
    """Opens the pt tree and leaves the process's number behind."""
    with Path(log).open("a") as lines:
        lines.write(f"{os.getpid()}\n")
    return exact_tree("pt")


def killed(pid):
    """The pt tree in one process; any other dies as if it had been killed for its memory."""
    if os.getpid() != pid:
        os._exit(9)
    return exact_tree("pt")


def by_name_cases(folder, count):
    """Small recorded blocks of which `count` draw their weights by name; those miss their outputs."""
    stored = copied(folder, "dit_block_n4_single")
    rule = {"weights_by_name": {"rule": "transformer", "salt": "test-"}}
    return write_manifest(folder, *(stored | rule | {"name": f"drawn{i}"} for i in range(count)), stored)


@pytest.mark.pt
def test_each_case_with_weights_by_name_has_a_process_of_its_own(tmp_path):
    folder, log = by_name_cases(tmp_path, 2), tmp_path / "pids"
    results = list(check(functools.partial(opened, str(log)), folder, "*"))
    assert [(r.name, r.state) for r in results] == [
        ("drawn0", "fail"),  # with other weights the block gives other numbers
        ("drawn1", "fail"),
        ("dit_block_n4_single", "pass"),
    ]
    first, second, own = map(int, log.read_text().split())
    assert own == os.getpid()
    assert len({first, second, own}) == 3
    differences = [r.verdicts[0].difference for r in results[:2]]
    assert differences[0] == differences[1], "what is drawn by name is the same in every process"


@pytest.mark.pt
def test_a_killed_process_is_a_failure_of_its_case_alone(tmp_path):
    results = list(check(functools.partial(killed, os.getpid()), by_name_cases(tmp_path, 1), "*"))
    assert [r.state for r in results] == ["fail", "pass"]
    assert "killed" in results[0].verdicts[0].note


def test_weights_by_name_follow_the_documented_rule():
    by_name = ByName("vae", "salt-")
    constants = {"wavelet_transform.h": np.ones(8, np.float32)}
    shapes = {"norm.weight": (3,), "norm.bias": (3,), "conv.weight": (2, 3, 1), "wavelet_transform.h": (8,)}
    weights = by_name.weights(shapes, constants)
    assert (weights["wavelet_transform.h"] == 1).all(), "constants keep their values"
    seed = int.from_bytes(hashlib.sha256(b"salt-weights.norm.weight").digest()[:8], "little")
    normal = np.random.Generator(np.random.Philox(seed)).standard_normal(3, dtype=np.float32)
    assert (weights["norm.weight"] == normal * np.float32(0.05) + 1).all()
    assert abs(weights["norm.bias"].mean()) < 0.2, "only weights are near one"
    wide = ByName("vae", "").draw("conv.weight", (8, 400, 3))
    assert abs(wide.std() * np.sqrt(1200) - 1) < 0.05
    assert abs(ByName("transformer", "").draw("to_q.weight", (80, 80)).std() - 0.02) < 1e-3
    assert wide.dtype == np.float32


@pytest.mark.pt
def test_an_unknown_rule_is_not_implemented(tmp_path, capsys):
    record = copied(tmp_path, "dit_block_n4_single", weights_by_name={"rule": "other", "salt": ""})
    assert main(["golden", write_manifest(tmp_path, record), "--tree", "pt"]) == 1
    assert "got rule 'other', wanted one of transformer, vae" in capsys.readouterr().out


@pytest.mark.pt
def test_golden_command_on_any_folder(tmp_path, capsys):
    folder = find_folder()
    if folder is None:
        pytest.skip("no golden folder in this checkout")
    assert main(["golden", str(folder), "--tree", "pt", "--case", "dit_block_n4_*"]) == 0
    assert "2 passed, 0 failed, 0 not implemented" in capsys.readouterr().out
    broken = tmp_path / "broken"
    broken.mkdir()
    shutil.copy(folder / "manifest.json", broken)
    assert main(["golden", str(broken), "--tree", "pt", "--case", "rope3d"]) == 2, "files are missing"
    assert "files missing: rope3d.safetensors" in capsys.readouterr().err
    copy = tmp_path / "goldens"
    copy.mkdir()
    record = {
        "name": "c",
        "component": "nobody",
        "file": None,
        "json_file": None,
        "weights_from": None,
        "outputs": {},
    }
    (copy / "manifest.json").write_text(json.dumps({"cases": [record]}))
    assert main(["golden", str(copy), "--tree", "pt"]) == 1, "not implemented is not passed"
    assert "0 passed, 0 failed, 1 not implemented" in capsys.readouterr().out


@ONLY_PT
def test_audit_names_what_does_not_belong_and_what_is_odd(tree, tmp_path, capsys):
    config = tiny_vae_config(use_attention=False)
    weights = {
        n: tree.numpy(p).copy() for n, p in tree.runtime.parameters(build(tree, "vae", config)).items()
    }
    save_weights(tmp_path / "good", weights, config.model_dump(mode="json"))
    assert main(["audit", str(tmp_path / "good"), "--tree", "pt", "--json", str(tmp_path / "r.json")]) == 0
    assert "0 keys wrong, 0 tensors odd" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "r.json").read_text())["tensors"]) == len(weights)
    (file,) = weight_files(tmp_path / "good")
    assert main(["audit", str(file), "--tree", "pt"]) == 0
    assert "float" not in capsys.readouterr().out  # dtypes as the file names them: F32, BF16
    (tmp_path / "other.json").write_text('{"_class_name": "I3D"}')
    assert main(["audit", str(file), "--model", str(tmp_path / "other.json"), "--tree", "pt"]) == 2
    assert "got a I3D, wanted a transformer or a WF-VAE" in capsys.readouterr().err
    save_weights(
        tmp_path / "wide", {k: v.astype(np.float64) for k, v in weights.items()}, config.model_dump()
    )
    assert main(["audit", str(tmp_path / "wide"), "--tree", "pt"]) == 1
    assert "dtypes F64 among the weights" in capsys.readouterr().out
    weights["encoder.conv_out.conv.bias"][:2] = np.nan
    weights["decoder.conv_in.conv.weight"][1] = 0
    weights["decoder.conv_in.conv.bias"][:] = 0
    weights["more"] = weights.pop("decoder.conv_out.bias")
    save_weights(tmp_path / "bad", weights, config.model_dump(mode="json"))
    assert (
        main(["audit", str(tmp_path / "bad"), "--model", str(tmp_path / "good/config.json"), "--tree", "pt"])
        == 1
    )
    out = capsys.readouterr().out
    for text in (
        "missing decoder.conv_out.bias",
        "unexpected more",
        "2 NaN",
        "1 dead rows",
        "all zero",
        "sha256 ",
    ):
        assert text in out
