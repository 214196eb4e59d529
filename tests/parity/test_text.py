"""Text encoders: both trees equal the reference and each other; wrong directories are refused."""

import importlib
import json
import weakref

import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

from common.text import TextConfig, model_dir, save_model, tokenize
from tests.conftest import FRAMEWORK, TREES
from tests.recorded import recorded

DEVICE = "cpu"
PROMPTS = [
    "a red ball moves left over a blue floor",
    "",
    "Two green cubes, one small, turn slowly; a 2nd light flickers.",
]


@pytest.fixture(params=["graph", "pynative"])
def mode(request):
    """MindSpore's mode as a program that uses the encoder may have set it."""
    mindspore = pytest.importorskip("mindspore")
    before = mindspore.get_context("mode")
    mindspore.set_context(mode=getattr(mindspore, f"{request.param.upper()}_MODE"))
    yield
    mindspore.set_context(mode=before)


def encoder_class(tree):
    pytest.importorskip(FRAMEWORK[tree])
    return importlib.import_module(f"{tree}.text").TextEncoder


def run(tree, config, ids_BL, keep_BL):
    states_BLE = to_numpy(encoder_class(tree)(config, DEVICE)(ids_BL, keep_BL))
    assert states_BLE.shape[:2] == ids_BL.shape
    return states_BLE


def to_numpy(tensor):
    return tensor.asnumpy() if hasattr(tensor, "asnumpy") else tensor.numpy()


def tiny_mt5(folder, rng, words=100):
    """Make `folder` the directory of a small random mT5; returns its weights."""
    width, heads, head, hidden = 32, 4, 8, 48
    config = {
        "model_type": "mt5",
        "vocab_size": words,
        "d_model": width,
        "d_kv": head,
        "d_ff": hidden,
        "num_layers": 2,
    }
    config |= {"num_heads": heads, "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 32}
    shapes = {"shared.weight": (words, width), "encoder.final_layer_norm.weight": (width,)}
    for i in range(2):
        attention, feed = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        shapes |= {f"{attention}.SelfAttention.{x}.weight": (heads * head, width) for x in "qkv"}
        shapes |= {f"{attention}.SelfAttention.o.weight": (width, heads * head)}
        shapes |= {f"{feed}.DenseReluDense.wi_{j}.weight": (hidden, width) for j in range(2)}
        shapes |= {f"{feed}.DenseReluDense.wo.weight": (width, hidden)}
        shapes |= {f"{layer}.layer_norm.weight": (width,) for layer in (attention, feed)}
    shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, heads)
    weights = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    save_model(folder, config, weights)
    return weights


def shard(folder, weights):
    """Spread the weights of the model in `folder` over two files with an index."""
    (folder / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(weights)}
    for file in set(files.values()):
        save_file(
            {n: w for n, w in weights.items() if files[n] == file}, folder / file, metadata={"format": "pt"}
        )
    index = {"metadata": {"total_size": sum(w.nbytes for w in weights.values())}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.fixture
def minilm():
    config = TextConfig(kind="minilm", max_length=24)
    try:
        model_dir(config)
    except ValueError as missing:
        pytest.skip(str(missing))
    return config


@pytest.mark.pt
def test_mt5_equals_reference_pt():
    check_golden("pt")


@pytest.mark.ms
@pytest.mark.usefixtures("mode")
def test_mt5_equals_reference_ms():
    check_golden("ms")


def check_golden(tree):
    case = recorded("text_encoder_mt5")
    config = case.record["full_config"]
    encoder = encoder_class(tree).from_weights("mt5", config, case.stored_weights, DEVICE)
    assert encoder.width == case.record["config"]["d_model"]
    got_BLE = to_numpy(encoder(case.inputs["input_ids"], case.inputs["attention_mask"].astype(bool)))
    atol = case.tolerance("last_hidden_state")
    np.testing.assert_allclose(got_BLE, case.outputs["last_hidden_state"], rtol=0, atol=atol)


@pytest.mark.ms
@pytest.mark.pt
def test_minilm_agrees(minilm):
    ids_BL, keep_BL, _ = tokenize(minilm, PROMPTS)
    difference = abs(run("ms", minilm, ids_BL, keep_BL) - run("pt", minilm, ids_BL, keep_BL))
    assert difference[keep_BL].max() <= 1e-5
    # The states of padding are ill conditioned: PyTorch's own are 6e-5 away from float64. Nothing reads them.
    assert difference[~keep_BL].max() <= 1e-3


@pytest.mark.ms
@pytest.mark.pt
def test_sharded_mt5_agrees_beyond_the_last_bucket(tmp_path):
    rng = np.random.default_rng(0)
    shard(tmp_path, tiny_mt5(tmp_path, rng))
    ids_BL = rng.integers(2, 100, (2, 150))  # buckets end at distance 128
    keep_BL = np.arange(150) < np.array([[150], [17]])
    config = TextConfig(kind="mt5", path=str(tmp_path), max_length=150)
    want_BLE, got_BLE = run("pt", config, ids_BL, keep_BL), run("ms", config, ids_BL, keep_BL)
    np.testing.assert_allclose(got_BLE, want_BLE, rtol=0, atol=2e-5)


@pytest.mark.parametrize("tree", TREES)
def test_padding_changes_nothing(tree, minilm):
    encoder = encoder_class(tree)(minilm, DEVICE)
    ids_BL, keep_BL, _ = tokenize(minilm, PROMPTS)
    short = keep_BL.sum(1).max()
    assert short < minilm.max_length
    whole_BLE = to_numpy(encoder(ids_BL, keep_BL))[:, :short]
    cut_BLE = to_numpy(encoder(ids_BL[:, :short], keep_BL[:, :short]))
    keep_BL = keep_BL[:, :short]
    np.testing.assert_allclose(whole_BLE[keep_BL], cut_BLE[keep_BL], rtol=0, atol=1e-5)


def test_tokens_are_padded_and_nothing_is_cut(minilm):
    ids_BL, keep_BL, cut = tokenize(minilm, PROMPTS)
    assert ids_BL.shape == keep_BL.shape == (3, 24)
    assert (ids_BL.dtype, keep_BL.dtype) == (np.int64, bool)
    assert (ids_BL[~keep_BL] == 0).all()
    assert keep_BL[1].sum() == 2  # the empty prompt: begin and end
    assert cut == []


def test_cut_words_are_reported(minilm):
    long = "A Lighthouse " * 11 + "by the Sea"
    ids_BL, keep_BL, cut = tokenize(minilm, ["short", long])
    assert keep_BL[1].all()
    assert len(cut) == 1
    assert "has 25 tokens, the encoder takes 22; cut off: 'by the Sea'" in cut[0]
    assert ids_BL[1, -1] == ids_BL[0, keep_BL[0]][-1], "a cut prompt still ends with the end token"


@pytest.mark.parametrize("tree", TREES)
def test_incomplete_weights_are_refused(tree, tmp_path):
    make = encoder_class(tree)
    weights = tiny_mt5(tmp_path, np.random.default_rng(0))
    del weights["encoder.block.1.layer.0.SelfAttention.k.weight"]
    save_model(tmp_path, json.loads((tmp_path / "config.json").read_text()), weights)
    with pytest.raises(
        ValueError, match=r"1 parameters are not in the weight files \(encoder.block.1.layer.0.Self.*fetch it"
    ):
        make(TextConfig(kind="mt5", path=str(tmp_path)), DEVICE)


@pytest.mark.parametrize("tree", TREES)
def test_wrong_directories_are_refused(tree, tmp_path):
    make = encoder_class(tree)

    def refuses(message, kind="mt5", **changes):
        with pytest.raises(ValueError, match=message):
            make(TextConfig(kind=kind, path=str(tmp_path), **changes), DEVICE)

    refuses(r"no config.json; wanted a directory of kind mt5 .*: download it, or correct the key path")
    weights = tiny_mt5(tmp_path, np.random.default_rng(0))
    refuses(r"model_type 'mt5', kind minilm wants 'bert'; correct the key", kind="minilm")
    shard(tmp_path, weights)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    refuses(r"index.json: names files that are not there: model-00002-of-00002.safetensors; download")
    (tmp_path / "model.safetensors.index.json").unlink()
    refuses(r"no weights, wanted model.safetensors or .*; other formats are read only by tools/convert")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "max_position_embeddings": 64}))
    refuses(
        r"max_length is 65, the model has 64 positions; set max_length to at most 64",
        kind="minilm",
        max_length=65,
    )
    with pytest.raises(ValueError, match="unknown kind 'clip'; have mt5, minilm"):
        make.from_weights("clip", {"model_type": "clip"}, {}, DEVICE)


def test_wrong_configs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="kind mt5 needs the directory of an mT5 model"):
        TextConfig(kind="mt5")
    with pytest.raises(ValueError, match="Input should be 'mt5' or 'minilm'"):
        TextConfig.model_validate({"kind": "clip"})
    with pytest.raises(ValueError, match="no such directory"):
        tokenize(TextConfig(kind="mt5", path=str(tmp_path / "absent")), ["a"])
    tiny_mt5(tmp_path, np.random.default_rng(0))
    with pytest.raises(
        ValueError, match=r"no tokenizer, wanted one of tokenizer.json, spiece.model, vocab.txt; copy"
    ):
        tokenize(TextConfig(kind="mt5", path=str(tmp_path)), ["a"])


@pytest.mark.ms
def test_bfloat16_on_cpu_is_refused_by_mindspore(minilm):
    make = encoder_class("ms")
    with pytest.raises(
        ValueError, match=r"bfloat16 has no MindSpore kernels on CPU, .*; set dtype to float32"
    ):
        make(minilm.replace(dtype="bfloat16"), "cpu")


@pytest.mark.parametrize("tree", TREES)
def test_a_text_encoder_that_was_used_gives_its_memory_back(tree, tmp_path):
    """In ms a graph that was compiled would keep the parameters for the life of the process."""
    rng, residents, gone = np.random.default_rng(0), [], []
    weights = tiny_mt5(tmp_path, rng, words=250_000)
    size_mb = sum(array.nbytes for array in weights.values()) / 2**20
    config = TextConfig(kind="mt5", path=str(tmp_path), max_length=8)
    make, runtime = encoder_class(tree), importlib.import_module(f"{tree}.runtime")
    runtime.setup("cpu")
    for _ in range(4):
        encoder = make(config, DEVICE)
        to_numpy(encoder(np.ones((1, 8), np.int64), np.ones((1, 8), bool)))
        gone.append(weakref.ref(encoder.model))
        del encoder
        runtime.free_memory()
        residents.append(psutil.Process().memory_info().rss / 2**20)
    assert [ref() for ref in gone] == [None] * 4
    assert size_mb > 30
    assert residents[3] - residents[1] < size_mb, residents  # of two more
