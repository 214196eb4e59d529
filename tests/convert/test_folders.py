"""Which weights a folder means: trainers' checkpoints, pipelines, several formats, several names."""

import json
import tempfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from common.checkpoint import save_weights
from common.model_record import ModelRecord, read_objective, read_record

from .helpers import ROOT, command, golden, raw, read_raw, run, write_config, write_safetensors
from .test_refusals import refused

RESULT = "diffusion_pytorch_model.safetensors"
STATES = (
    "optimizer.bin",
    "scheduler.bin",
    "scaler.pt",
    "sampler_1.bin",
    "rng_state_0.pth",
    "training_args.bin",
)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4000000000\n"


def weights(value: float) -> dict[str, np.ndarray]:
    return {"x": np.full(3, value, np.float32), "y": np.ones((2, 2), np.float32)}


def put(path: Path, value: float) -> Path:
    """Weights that are told apart by their value, in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        return write_safetensors(path, raw(weights(value)))
    write_safetensors(path.parent / "made.safetensors", raw(weights(value)))
    run(path.parent / "made.safetensors", path, kind="any")
    (path.parent / "made.safetensors").unlink()
    return path


def taken(source: Path, **options) -> tuple[float, str]:
    """The value of the weights that a folder meant, and all that was told."""
    with tempfile.TemporaryDirectory() as folder:
        told = run(source, Path(folder) / "out", kind="any", **options)
        data = read_raw(Path(folder) / "out" / RESULT)["x"][2]
    return float(np.frombuffer(data, np.float32)[0]), "\n".join(told)


def accelerate_checkpoint(folder: Path) -> Path:
    """The states that accelerate writes beside the weights; none of them can be read."""
    folder.mkdir(exist_ok=True)
    for name in (*STATES, "random_states_0.pkl", "custom_checkpoint_0.pkl"):
        (folder / name).write_bytes(b"\x80\x02}.")
    return folder


def deepspeed_states(path: Path, shapes: dict[str, tuple[int, ...]] | None = None, value: float = 0) -> Path:
    """What a rank of DeepSpeed saves of the model; tensors of `shapes` are placeholders."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.from_numpy(array) for name, array in weights(value).items()}
    if shapes is not None:
        tensors = {name: torch.empty(0, dtype=torch.bfloat16) for name in shapes}
    sizes = OrderedDict((name, torch.Size(shape)) for name, shape in (shapes or {}).items())
    tree = {"module": OrderedDict(tensors), "buffer_names": [], "optimizer": None, "param_shapes": [sizes]}
    tree |= {"ds_config": {"train_batch_size": 1, "bf16": {"enabled": True}}, "ds_version": "0.14.4"}
    torch.save({**tree, "lr_scheduler": None, "global_steps": 5, "dp_world_size": 8}, path)
    return path


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_weights_beside_the_states_of_accelerate(tmp_path, name):
    folder = accelerate_checkpoint(tmp_path / "checkpoint-5")
    put(folder / name, 3)
    value, told = taken(folder)
    assert value == 3
    line = next(line for line in told.splitlines() if "the trainer's own" in line)
    assert all(state in line for state in STATES)


@pytest.mark.pt
def test_weights_beside_the_states_of_accelerate_in_pytorch_format(tmp_path):
    folder = accelerate_checkpoint(tmp_path / "checkpoint-5")
    put(folder / "pytorch_model.bin", 3)
    assert taken(folder)[0] == 3
    put(folder / "model.safetensors", 4)  # the same under transformers' two names: safetensors come first
    value, told = taken(folder)
    assert value == 4
    assert "not read: pytorch_model.bin; name one as SOURCE" in told
    assert taken(folder / "pytorch_model.bin")[0] == 3


def test_a_folder_of_states_alone(tmp_path):
    folder = accelerate_checkpoint(tmp_path / "checkpoint-5")
    refused(
        folder, match=r"found .*optimizer\.bin.*; wanted a file that ends in \.safetensors, .*, or folders"
    )
    (folder / "pytorch_model_fsdp_0").mkdir()
    (folder / "pytorch_model_fsdp_0" / "__0_0.distcp").write_bytes(b"x")
    for source in (folder, folder / "pytorch_model_fsdp_0"):
        refused(source, match=r"shards of torch\.distributed .*gather them with `accelerate merge-weights`")


def test_averaged_weights_of_a_checkpoint_come_first(tmp_path):
    folder = accelerate_checkpoint(tmp_path / "checkpoint-5")
    put(folder / "model_ema" / RESULT, 1)
    refused(folder, use_ema=False, match="only averaged weights: leave out --no-ema")
    put(folder / "model" / RESULT, 2)
    value, told = taken(folder)
    assert value == 1
    assert "took model_ema/, the averaged weights" in told
    assert "not read: model/; name one as SOURCE" in told
    value, told = taken(folder, use_ema=False)
    assert value == 2
    assert "took model/, the trained weights" in told
    assert "not read: model_ema/; name one" in told
    put(folder / "model.safetensors", 3)
    refused(folder, use_ema=False, match=r"found model\.safetensors, model/; wanted one model")
    value, told = taken(folder)
    assert value == 1
    assert "not read: model.safetensors, model/; name one" in told
    (folder / "model_ema" / RESULT).unlink()  # an average that was not saved whole is not replaced silently
    refused(folder, match=r"checkpoint-5/model_ema: found nothing; wanted a file")


@pytest.mark.pt
def test_a_checkpoint_of_deepspeed(tmp_path):
    folder = accelerate_checkpoint(tmp_path / "checkpoint-5")
    (folder / "zero_to_fp32.py").write_text("")
    (folder / "latest").write_text("global_step5")
    refused(folder, match="the file latest names global_step5/, which holds no weights")
    for step in (5, 15):
        deepspeed_states(folder / f"global_step{step}" / "mp_rank_00_model_states.pt", value=step)
        optimizer = "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
        (folder / f"global_step{step}" / optimizer).write_bytes(b"not read")
    value, told = taken(folder)
    assert value == 5
    assert "took global_step5/, DeepSpeed's copy in the precision it trained in; its zero_to_fp32.py" in told
    assert "global_step15/, latest, optimizer.bin" in told
    assert taken(folder / "global_step15")[0] == 15
    (folder / "latest").unlink()
    refused(folder, match=r"found global_step15/, global_step5/; wanted one model")
    put(folder / "model" / RESULT, 2)
    value, told = taken(folder)
    assert value == 2
    assert "global_step15/, global_step5/" in told
    put(folder / "model_ema" / RESULT, 1)
    assert taken(folder)[0] == 1


@pytest.mark.pt
@pytest.mark.parametrize("kind", ["any", "auto", "transformer"])
def test_placeholders_of_deepspeed_are_refused(tmp_path, kind):
    shapes = {"pos_embed.proj.weight": (4, 4), "adaln_single.linear.weight": (8, 4)}
    folder = tmp_path / "checkpoint-5" / "pytorch_model"
    one = deepspeed_states(folder / "zero_pp_rank_0_mp_rank_00_model_states.pt", shapes)
    message = r"2 tensors hold no values \(pos_embed.*zero_to_fp32\.py and take what it writes"
    for source in (one, folder, folder.parent):
        refused(source, kind=kind, match=message)
    deepspeed_states(folder / "zero_pp_rank_1_mp_rank_00_model_states.pt", shapes)
    refused(
        folder.parent, kind=kind, match=r"zero_pp_rank_0.*, zero_pp_rank_1.*, a rank each; .*zero_to_fp32"
    )


def test_placeholders_in_a_model_are_refused(tmp_path):
    trained, config = golden("sample_t2v_euler_ancestral", "transformer")
    name = min(trained)
    trained = {**trained, name: np.empty(0, np.float32)}
    save_weights(tmp_path / "model", trained, config)
    refused(tmp_path / "model", kind="auto", match=f"1 tensors hold no values .{name}.*ranks that shared")


def test_one_name_in_several_formats(tmp_path):
    folder = tmp_path / "model"
    put(folder / "m.ckpt", 1)
    assert taken(folder)[0] == 1
    put(folder / "m.safetensors", 2)
    value, told = taken(folder)
    assert value == 2
    assert "not read: m.ckpt; name one as SOURCE" in told


@pytest.mark.parametrize(
    "other", ["a.safetensors", "z.safetensors", "z.ckpt", "a-00001-of-00001.safetensors"]
)
def test_several_names_are_named(tmp_path, other):
    """Whatever their order: nothing but the default name decides."""
    folder = tmp_path / "model"
    put(folder / "m.safetensors", 1)
    put(folder / other, 2)
    refused(folder, match=rf"found (m\.safetensors, {other}|{other}, m\.safetensors); wanted one model")
    put(folder / RESULT, 3)
    value, told = taken(folder)
    assert value == 3
    assert other in told
    assert taken(folder / other)[0] == 2


def test_an_index_and_a_file_of_one_name(tmp_path):
    folder = tmp_path / "model"
    save_weights(folder, weights(1), {}, 10)
    assert taken(folder)[0] == 1
    put(folder / RESULT, 2)
    index = f"{RESULT}.index.json"
    refused(folder, match=f"found {index}, {RESULT}; wanted one model")
    assert taken(folder / index)[0] == 1


def test_pipelines(tmp_path):
    """One model is taken and named; several are named."""
    folder = tmp_path / "pipeline"
    put(folder / "transformer" / RESULT, 1)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    (folder / "model_index.json").write_text('{"_class_name": "Pipeline"}')
    value, told = taken(folder)
    assert value == 1
    assert "took transformer/, the only folder with weights" in told
    put(folder / "vae" / RESULT, 2)
    put(folder / "text_encoder" / "model.safetensors", 3)
    refused(folder, match="found text_encoder/, transformer/, vae/; wanted one model: give the one you mean")
    assert taken(folder / "vae")[0] == 2


def test_hidden_files_and_folders_called_like_weights(tmp_path):
    """As macOS and zero_to_fp32.py leave them."""
    folder = tmp_path / "model"
    put(folder / "m.safetensors", 1)
    (folder / "._m.safetensors").write_bytes(b"Mac OS X")
    put(folder / "pytorch_model.bin" / "x.safetensors", 2)
    assert taken(folder)[0] == 1


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npy"])
def test_git_lfs_pointers(tmp_path, suffix):
    (tmp_path / f"m{suffix}").write_bytes(LFS)
    message = rf"m\{suffix}: wanted weights, got a Git LFS pointer .* `git lfs pull`"
    refused(tmp_path / f"m{suffix}", match=message)


def test_git_lfs_pointers_beside_the_weights(tmp_path):
    folder = tmp_path / "model"
    encoder, settings = golden("text_encoder_mt5")
    write_config(folder, {**settings, "model_type": "mt5"})
    write_safetensors(folder / "model.safetensors", raw(encoder))
    for name in ("spiece.model", "config.json", "model.safetensors.index.json"):
        before = (folder / name).read_bytes() if (folder / name).is_file() else None
        (folder / name).write_bytes(LFS)
        refused(folder, kind="text", match=rf"{name}: wanted .*, got a Git LFS pointer in its place: fetch")
        (folder / name).unlink() if before is None else (folder / name).write_bytes(before)
    assert any("model.safetensors" in line for line in run(folder, tmp_path / "out", kind="text"))


@pytest.mark.pt
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_float8_in_pytorch_files(tmp_path, zipped):
    import torch

    for name in ("float8_e4m3fn", "float8_e5m2"):
        tensors = {"x": torch.ones(4).to(getattr(torch, name))}
        torch.save(tensors, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
        wanted = f"x: element type {name} is not one of float64" if zipped else "cannot name, as float8"
        refused(tmp_path / "c.pt", match=rf"c\.pt: .*{wanted}.*; cast (it|them) before")


@pytest.mark.parametrize("spelling", ["Float8E4M3FN", "Int4", "Complex64"])
def test_element_types_in_mindspore_files(tmp_path, spelling):
    tensor = b"\x08\x04" + b"\x12" + bytes([len(spelling)]) + spelling.encode() + b"\x1a\x04abcd"
    value = b"\x0a\x01x\x12" + bytes([len(tensor)]) + tensor
    (tmp_path / "c.ckpt").write_bytes(b"\x0a" + bytes([len(value)]) + value)
    refused(
        tmp_path / "c.ckpt", match=rf"c\.ckpt: x: element type {spelling} is not one of Float64, .*; cast it"
    )


def numpy_pickle(spelling: str, data: bytes) -> bytes:
    """A vector of an element type of ml_dtypes, as pickle writes it in protocol 2, in a dictionary."""
    dtype = b"cnumpy\ndtype\n(cml_dtypes\n" + spelling.encode() + b"\n\x89\x88tR(K\x03U\x01<NNNK\x01K\x01K@tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
    state = b"(K\x01K\x04\x85" + dtype + b"\x89C" + bytes([len(data)]) + data + b"tb"
    return b"\x80\x03}U\x01x" + array + state + b"s."


def test_element_types_in_pickles(tmp_path):
    for spelling in ("float8_e4m3fn", "int4"):
        (tmp_path / "c.pkl").write_bytes(numpy_pickle(spelling, b"abcd"))
        refused(
            tmp_path / "c.pkl",
            match=rf"c\.pkl: x: element type {spelling} is not one of float64, .*; cast it",
        )
    (tmp_path / "c.pkl").write_bytes(numpy_pickle("bfloat16", b"\x80\x3f" * 4))
    run(tmp_path / "c.pkl", tmp_path / "out", kind="any")
    assert read_raw(tmp_path / "out" / RESULT) == {"x": ("bfloat16", (4,), b"\x80\x3f" * 4)}


def test_a_config_that_is_none(tmp_path):
    source = put(tmp_path / "m.safetensors", 1)
    for text, got in (
        ("[1]", "got list"),
        ("{", "got Expecting"),
        ('{"a": ' + "1" * 5000 + "}", "got Exceeds"),
    ):
        (tmp_path / "config.json").write_text(text)
        refused(source, match=rf"config\.json: wanted a JSON object, the config of a model, {got}")
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\xff")
    refused(source, match=r"config\.json: wanted a JSON object, the config of a model, got 'utf")


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    """One line and exit code 2, whatever the system says."""
    folder = tmp_path / "model"
    put(folder / "m.safetensors", 1)
    code = "import pathlib\ndef fail(self): raise PermissionError(13, 'Permission denied', str(self))\n"
    done = command(folder, tmp_path / "out", "--kind", "any", code=code + "pathlib.Path.iterdir = fail")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Permission denied" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_index_decides_not_the_order_of_names(tmp_path):
    """Shards without an index are put together by their numbering, those of two models never."""
    folder = tmp_path / "model"
    for stem, value in (("b", 1), ("a", 2)):
        for i, (name, array) in enumerate(weights(value).items(), 1):
            folder.mkdir(exist_ok=True)
            write_safetensors(folder / f"{stem}-0000{i}-of-00002.safetensors", raw({name: array}))
    refused(folder, match=r"found a-00001-of-00002\.safetensors, b-00001-of-00002\.safetensors; wanted one")
    index = {name: f"b-0000{i}-of-00002.safetensors" for i, name in enumerate(weights(1), 1)}
    (folder / f"{RESULT}.index.json").write_text(json.dumps({"weight_map": index}))
    assert taken(folder)[0] == 1


def test_how_a_transformer_was_trained_goes_along(tmp_path):
    """Without it a flow model would be sampled as v-prediction, which gives noise."""
    release = ROOT / "assets" / "t2v_tiny"
    run(release, tmp_path / "copy", dtype="float32")
    assert read_objective(tmp_path / "copy") == read_objective(release)
    assert read_record(tmp_path / "copy") == read_record(release) != ModelRecord()
