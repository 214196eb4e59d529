"""Training checkpoints and released layouts, built from real weights, become models that load bit for bit."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from common.checkpoint import StoredWeights, save_weights
from common.models import TransformerConfig, VAEConfig, read_hub_config
from common.text import TextConfig
from tests.conftest import PT_AND_SLOW_MS

from .helpers import golden, raw, read_raw, run, write_config, write_safetensors

RESULT = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def vae():
    """Weights, another set under the same names, and the config of a WF-VAE."""
    weights, config = golden("wfvae_nearest_f9")
    return weights, {name: array + np.float32(1) for name, array in weights.items()}, config


def is_frozen(name: str) -> bool:
    return "wavelet_transform" in name


def as_torch(arrays):
    import torch

    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def save(path, tree):
    import torch

    torch.save(tree, path)
    return path


def assert_model_equals(tree, folder, kind, weights):
    """Load a directory into our model and compare every parameter, bit by bit."""
    config_class, model_class = {
        "vae": (VAEConfig, lambda: tree.vae.WFVAE),
        "transformer": (TransformerConfig, lambda: tree.transformer.Transformer),
    }[kind]
    model = model_class()(read_hub_config(config_class, folder))
    tree.runtime.load_weights(model, StoredWeights(folder), str(folder))
    loaded = {name: tree.runtime.to_numpy(p) for name, p in tree.runtime.parameters(model).items()}
    assert raw(loaded) == {name: raw(weights)[name] for name in loaded}
    assert set(loaded) == set(weights)


@pytest.mark.pt
def test_merged_ckpt_prefers_the_averaged_weights(tree, tmp_path, vae):
    weights, trained, config = vae
    write_config(tmp_path, {**config, "_class_name": "WFVAEModel"})
    trained = {n: weights[n] if is_frozen(n) else trained[n] for n in weights}
    ema = {f"module.{n}": a for n, a in as_torch(weights).items() if not is_frozen(n)}
    save(
        tmp_path / "merged.ckpt",
        {
            "ema_state_dict": ema,
            "state_dict": {"gen_model": as_torch(trained), "dis_model": as_torch({"w": np.zeros(2)})},
            "optimizer_state": {"gen_optimizer": {"state": {0: as_torch({"exp_avg": np.zeros(3)})}}},
            "current_step": 7,
        },
    )
    told = "\n".join(run(tmp_path / "merged.ckpt", tmp_path / "vae"))
    assert_model_equals(tree, tmp_path / "vae", "vae", weights)
    frozen = sum(map(is_frozen, weights))
    assert f"averaged weights (EMA), {len(weights) - frozen} tensors, and {frozen} that are not" in told
    for left in ("state_dict.dis_model (1 tensors", "optimizer_state (1 tensors", "current_step"):
        assert left in told
    run(tmp_path / "merged.ckpt", tmp_path / "plain", use_ema=False)
    assert_model_equals(tree, tmp_path / "plain", "vae", trained)


LAYOUTS = {
    "flat": lambda w, other: w,
    "state_dict": lambda w, other: {"state_dict": w, "epoch": 3},
    "gen_model, empty average": lambda w, other: {"ema_state_dict": {}, "state_dict": {"gen_model": w}},
    "module. everywhere": lambda w, other: {"state_dict": {f"module.{n}": a for n, a in w.items()}},
    "compiled": lambda w, other: {"model": {f"_orig_mod.{n}": a for n, a in w.items()}},
    "compiled inside": lambda w, other: {n.replace(".", "._orig_mod.", 1): a for n, a in w.items()},
    "dotted ema": lambda w, other: {
        **{f"ema.{n}": a for n, a in w.items()},
        **other,
        **{f"moment1.{n}": a for n, a in other.items()},
    },
    "dotted groups": lambda w, other: {
        **{f"model.{n}": a for n, a in other.items()},
        **{f"ema.module.{n}": a for n, a in w.items()},
    },
    "averages without names": lambda w, other: {
        "model": other,
        "ema": {"decay": 0.99, "shadow_params": list(w.values())},
    },
    "loss beside": lambda w, other: {
        "state_dict": {**w, **{f"loss.discriminator.{n}": a for n, a in other.items()}}
    },
    "unknown name": lambda w, other: {
        "my_weights": w,
        "optimizer": {"state": dict(enumerate(other.values()))},
    },
}


@pytest.mark.pt
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(tmp_path, vae, layout):
    weights, trained, _ = vae
    save(tmp_path / "checkpoint.pt", layout(as_torch(weights), as_torch(trained)))
    told = run(tmp_path / "checkpoint.pt", tmp_path / "out")
    assert read_raw(tmp_path / "out" / RESULT) == raw(weights)
    assert any("no config.json" in line for line in told)
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("name", ["dotted ema", "dotted groups"])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_layouts_of_formats_without_nesting(tmp_path, vae, name, suffix):
    weights, trained, _ = vae
    source = write_safetensors(tmp_path / "training.safetensors", raw(LAYOUTS[name](weights, trained)))
    if suffix == ".ckpt":
        run(source, tmp_path / "training.ckpt", kind="any")
    run(tmp_path / f"training{suffix}", tmp_path / "out")
    assert read_raw(tmp_path / "out" / RESULT) == raw(weights)
    run(tmp_path / f"training{suffix}", tmp_path / "plain", use_ema=False)
    assert read_raw(tmp_path / "plain" / RESULT) == raw(trained)


@pytest.mark.pt
def test_averages_that_cannot_be_named(tmp_path, vae):
    weights, _, _ = vae
    averages = [a for n, a in as_torch(weights).items() if not is_frozen(n)]
    save(tmp_path / "c.pt", {"model": as_torch(weights), "ema": {"shadow_params": averages}})
    with pytest.raises(ValueError, match=r"averages without names do not match .* use --no-ema"):
        run(tmp_path / "c.pt", tmp_path / "out")
    run(tmp_path / "c.pt", tmp_path / "out", use_ema=False)
    assert read_raw(tmp_path / "out" / RESULT) == raw(weights)


def test_a_released_transformer_in_any_sharding(tree, tmp_path):
    weights, config = golden("sample_t2v_euler_ancestral", "transformer")
    save_weights(tmp_path / "in", weights, config, 150_000)
    run(tmp_path / "in", tmp_path / "whole", kind="transformer")
    run(tmp_path / "whole", tmp_path / "shards", kind="transformer", shard_gb=1e-4)
    files = {name: len(list((tmp_path / name).glob("*.safetensors"))) for name in ("in", "whole", "shards")}
    assert files["in"] > 1 == files["whole"] < files["shards"]
    assert read_raw(tmp_path / "whole" / RESULT) == raw(weights)
    assert_model_equals(tree, tmp_path / "shards", "transformer", weights)


@pytest.mark.parametrize("name", ["inpaint_batch_mask_grad", "causalvae_p"])
def test_kinds_of_other_released_models(tmp_path, name):
    weights, config = golden(name)
    write_config(tmp_path, config)
    source = write_safetensors(tmp_path / "in.safetensors", raw(weights))
    told = run(source, tmp_path / "out", kind="auto")
    assert f"kind      {'vae' if 'vae' in name else 'transformer'}" in told
    assert read_raw(tmp_path / "out" / RESULT) == raw(weights)


def test_a_training_folder_of_the_reference(tmp_path):
    weights, config = golden("sample_t2v_euler_ancestral", "transformer")
    trained = {name: array + np.float32(1) for name, array in weights.items()}
    ema_state = {"decay": 0.99, "optimization_step": 5, "inv_gamma": 1.0, "power": 0.66, "min_decay": 0.0}
    save_weights(tmp_path / "checkpoint-5" / "model", trained, config)
    save_weights(tmp_path / "checkpoint-5" / "model_ema", weights, {**config, **ema_state})
    (tmp_path / "checkpoint-5" / "random_states_0.pkl").write_bytes(b"")
    told = run(tmp_path / "checkpoint-5", tmp_path / "out")
    assert read_raw(tmp_path / "out" / RESULT) == raw(weights)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config
    assert any("not read: model/" in line for line in told)
    run(tmp_path / "checkpoint-5", tmp_path / "plain", use_ema=False)
    assert read_raw(tmp_path / "plain" / RESULT) == raw(trained)


@pytest.mark.pt
@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
def test_text_encoder_weights(tmp_path, sharded):
    weights, config = golden("text_encoder_mt5")
    source = tmp_path / "mt5"
    write_config(source, {**config, "model_type": "mt5"})
    (source / "spiece.model").write_bytes(b"tokens")
    tensors = as_torch(weights)
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    if sharded:
        names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
        parts = [{n: t for n, t in tensors.items() if ("SelfAttention" in n) == which} for which in (0, 1)]
        for name, part in zip(names, parts, strict=True):
            save(source / name, part)
        index = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    else:
        save(source / "pytorch_model.bin", {**tensors, "lm_head.weight": tensors["shared.weight"] + 1})
    told = run(source, tmp_path / "out", kind="text", drop=() if sharded else ("lm_head.",))
    assert any("tied: encoder.embed_tokens.weight, shared.weight are one tensor" in line for line in told)
    assert read_raw(tmp_path / "out" / "model.safetensors") == raw(weights)
    assert (tmp_path / "out" / "spiece.model").read_bytes() == b"tokens"


@PT_AND_SLOW_MS  # importing mindone takes long
def test_text_encoders_load_what_was_written(tree, tmp_path):
    weights, config = golden("text_encoder_mt5")
    config = {**config, "model_type": "mt5"}
    write_config(tmp_path / "in", config)
    write_safetensors(tmp_path / "in" / "weights.safetensors", raw(weights))
    run(tmp_path / "in", tmp_path / "out", drop=("encoder.embed_tokens.",), shard_gb=1e-5)
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    device = "cpu"
    text = TextConfig(kind="mt5", path=str(tmp_path / "out"), max_length=8)
    prompt = np.arange(8)[None] + 1, np.ones((1, 8), bool)
    states = tree.text.TextEncoder(text, device)(*prompt)
    expected = tree.text.TextEncoder.from_weights("mt5", config, weights, device)(*prompt)
    np.testing.assert_array_equal(tree.runtime.to_numpy(states), tree.runtime.to_numpy(expected))


def test_where_the_config_is_from(tmp_path, vae):
    weights, _, config = vae
    save_file(weights, tmp_path / "w.safetensors", {"config": json.dumps(config)})
    told = run(tmp_path / "w.safetensors", tmp_path / "a")
    assert "config    from the file's metadata" in told
    other = write_config(tmp_path / "other", {"latent_dim": 4})
    run(tmp_path / "w.safetensors", tmp_path / "b", config=other)
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == {"latent_dim": 4}
    with pytest.raises(ValueError, match=r"no such file; give the config\.json"):
        run(tmp_path / "w.safetensors", tmp_path / "c", config=tmp_path / "absent.json")
    with pytest.raises(ValueError, match="differs from the config of the weights"):
        run(tmp_path / "w.safetensors", tmp_path / "other")
    save_file(weights, tmp_path / "w.safetensors")
    told = run(tmp_path / "w.safetensors", tmp_path / "other")  # the directory has one already
    assert f"config    found at {tmp_path / 'other' / 'config.json'}" in told
    assert (tmp_path / "other" / RESULT).is_file()


@pytest.mark.pt
def test_a_config_inside_the_checkpoint(tmp_path, vae):
    weights, _, config = vae
    save(tmp_path / "c.pt", {"config": config, "state_dict": as_torch(weights)})
    run(tmp_path / "c.pt", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads(json.dumps(config))
