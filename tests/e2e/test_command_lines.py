"""The command lines as a user meets them: files that are there, reports that are true, errors in one line."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest

from common.checkpoint import read_safetensors, save_weights
from common.images import read_image
from common.video import probe
from tests.conftest import ONLY_PT
from tests.tiny import build, tiny_transformer_config, tiny_vae_config

from .command_lines import ROOT, needs_encoder, sample_settings, write


@needs_encoder
def test_sample_writes_videos_sheets_and_reports(tree, tmp_path, call):
    settings = sample_settings(tmp_path, num_samples=2, batch_size=2, prompt=["a red ball", "a blue box"])
    code, out, err = call(tree, "sample", write(tmp_path, settings))
    assert code == 0, err
    folder = tmp_path / "out"
    stems = [
        "0000_a_red_ball_seed0",
        "0001_a_red_ball_seed1",
        "0002_a_blue_box_seed2",
        "0003_a_blue_box_seed3",
    ]
    assert sorted(p.stem for p in folder.glob("*.mp4")) == stems
    assert all(stem in out for stem in stems)
    info = probe(folder / "0000_a_red_ball_seed0.mp4")
    assert (info.num_frames, info.height, info.width) == (5, 32, 48)
    report = json.loads((folder / "0003_a_blue_box_seed3.json").read_text())
    assert report["seed"] == 3
    assert report["prompt"] == "a blue box"
    assert report["config"]["sampler"]["num_steps"] == 2
    assert {"load", "text", "denoise", "decode"} <= set(report["seconds_so_far"])
    assert report["peak_memory_mb"] > 0
    assert {"numpy", "python"} < set(report["versions"])
    tensors = [read_safetensors(folder / f"{stem}.safetensors")["latent_CTHW"] for stem in stems]
    assert all((a != b).any() for i, a in enumerate(tensors) for b in tensors[:i]), "seeds must differ"


@needs_encoder
@ONLY_PT
def test_one_frame_is_an_image(tree, tmp_path, call):
    code, _, err = call(tree, "sample", write(tmp_path, sample_settings(tmp_path, num_frames=1)))
    assert code == 0, err
    assert read_image(tmp_path / "out" / "0000_a_red_ball_seed0.png").shape == (32, 48, 3)


@needs_encoder
@ONLY_PT
def test_prompts_from_a_file_and_a_cut_prompt_is_said(tree, tmp_path, call):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball\n\n" + "very " * 30 + "long\n")
    code, _, err = call(tree, "sample", write(tmp_path, sample_settings(tmp_path)), f"prompt={prompts}")
    assert code == 0
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 2
    assert "warning: prompt 'very very" in err
    assert "cut off:" in err


@needs_encoder
@ONLY_PT
def test_ranks_share_the_prompts(tree, tmp_path, call, monkeypatch):
    config = write(tmp_path, sample_settings(tmp_path, prompt=["a", "b", "c"]))
    made = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert call(tree, "sample", config, f"output={tmp_path / str(rank)}")[0] == 0
        made.append({p.name for p in (tmp_path / str(rank)).glob("*.mp4")})
    assert made == [{"0000_a_seed0.mp4", "0002_c_seed2.mp4"}, {"0001_b_seed1.mp4"}]


@needs_encoder
@ONLY_PT
def test_weights_from_a_model_directory(tree, tmp_path, call):
    """A checkpoint in the hub's layout, sharded, gives the same video as the weights it was saved from."""
    settings = sample_settings(tmp_path)
    assert call(tree, "sample", write(tmp_path, settings))[0] == 0
    for name, kind, config in (
        ("transformer", "transformer", tiny_transformer_config(caption_channels=384, num_layers=3)),
        ("vae", "vae", tiny_vae_config(use_attention=False)),
    ):
        model = build(tree, kind, config)
        weights = {n: tree.numpy(p) for n, p in tree.runtime.parameters(model).items()}
        released = {"_class_name": "Released", **config.model_dump(mode="json")}
        save_weights(tmp_path / name, weights, released, max_shard_bytes=50_000)
        settings[name] = {"path": str(tmp_path / name)}
    assert call(tree, "sample", write(tmp_path, settings), f"output={tmp_path / 'again'}")[0] == 0
    first, again = (
        read_safetensors(tmp_path / name / "0000_a_red_ball_seed0.safetensors") for name in ("out", "again")
    )
    np.testing.assert_array_equal(first["frames_THWC"], again["frames_THWC"])


BAD_SAMPLES = {
    "frames": (["num_frames=6"], "num_frames: got 6, wanted a multiple of 4 plus 1"),
    "size": (["height=40"], "height: got 40, wanted a multiple of 16"),
    "sampler": (
        ["sampler.name=EulerDiskrete"],
        "sampler 'EulerDiskrete' is unknown; did you mean 'EulerDiscrete'?",
    ),
    "device": (
        ["device=tpu"],
        "device: wanted auto, cpu, cuda or ascend",
    ),
    "other device": (["device={other}"], "device: got '{other}'"),
    "key": (["sampler.steps=3"], "unknown key 'sampler.steps'; did you mean 'num_steps'?"),
    "prompt file": (["prompt=nowhere.txt"], "prompts nowhere.txt: got no such file"),
    "no weights": (
        ["transformer.config=null", "transformer.random_seed=null", "transformer.path=nowhere"],
        "model directory nowhere",
    ),
    "two sources": (["transformer.config=null", "transformer.path=x"], "it would ignore the checkpoint"),
    "text width": (
        ["transformer.config.caption_channels=100"],
        "states are 384 wide, the transformer was trained on 100",
    ),
    "no space": (["output=/dev/null/x"], "output /dev/null/x:"),
}


@needs_encoder
@pytest.mark.parametrize("mistake", BAD_SAMPLES)
def test_mistakes_are_one_line_and_exit_code_2(tree, tmp_path, call, mistake):
    overrides, message = BAD_SAMPLES[mistake]
    other = {"ms": "cuda", "pt": "ascend"}[tree.name]
    overrides = [o.format(other=other) for o in overrides]
    code, _, err = call(tree, "sample", write(tmp_path, sample_settings(tmp_path)), *overrides)
    assert code == 2
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert message.format(other=other) in line
    assert "Traceback" not in err
    assert len([text for text in err.splitlines() if text.startswith("error")]) == 1


@needs_encoder
@ONLY_PT
def test_a_second_run_keeps_what_the_first_made(tree, tmp_path, call):
    config, folder = write(tmp_path, sample_settings(tmp_path)), tmp_path / "out"
    assert call(tree, "sample", config)[0] == 0
    first = (folder / "0000_a_red_ball_seed0.mp4").read_bytes()
    assert call(tree, "sample", config)[0] == 0
    assert len(list(folder.glob("*.mp4"))) == 1, "the same again is no other content"
    assert call(tree, "sample", config, "sampler.guidance_scale=2")[0] == 0
    assert call(tree, "sample", config, "seed=1")[0] == 0
    stems = ["0000_a_red_ball_seed0", "0000_a_red_ball_seed0_2", "0000_a_red_ball_seed1"]
    assert sorted(path.stem for path in folder.glob("*.mp4")) == stems
    assert (folder / "0000_a_red_ball_seed0.mp4").read_bytes() == first
    code, _, err = call(tree, "sample", config, "sampler.guidance_scale=3", "overwrite=error")
    assert (code, "it is there already" in err, "step" in err) == (2, True, False)
    assert call(tree, "sample", config, "sampler.guidance_scale=3", "overwrite=replace")[0] == 0
    assert (folder / "0000_a_red_ball_seed0.mp4").read_bytes() != first


@needs_encoder
def test_latents_that_are_not_finite_stop_the_step_they_appear_in(tree, tmp_path, call, monkeypatch):
    """As half precision overflows, in one of two videos: no further step, no decoding."""
    draw, steps = tree.pipeline.seeded_noise, []

    def overflowing(shape, seeds, window=0):
        def noise(index):
            steps.append(index)
            return draw(shape, seeds, window)(index) * np.where([False, index == 2], np.inf, 1).reshape(
                2, 1, 1, 1, 1
            ).astype(np.float32)

        return noise

    monkeypatch.setattr(tree.long_video, "seeded_noise", overflowing)
    config = write(tmp_path, sample_settings(tmp_path, prompt=["a red ball", "a cube"], batch_size=2))
    code, _, err = call(tree, "sample", config, "sampler.num_steps=9")
    assert code == 2
    line = err.strip().splitlines()[-1]
    assert re.search(
        r"after step 2 of 9 \(timestep \d+\) the latents are not finite, with dtype float32", line
    )
    assert "prompts: 'a cube'; set dtype=bfloat16" in line
    assert max(steps) == 2
    assert not list((tmp_path / "out").glob("*.mp4"))


@needs_encoder
@ONLY_PT
def test_a_weight_that_is_not_finite_is_named(tree, tmp_path, call):
    config = tiny_vae_config(use_attention=False)
    weights = {n: tree.numpy(p) for n, p in tree.runtime.parameters(build(tree, "vae", config)).items()}
    weights["decoder.conv_out.weight"] = weights["decoder.conv_out.weight"].copy()
    weights["decoder.conv_out.weight"].flat[3] = np.nan
    save_weights(tmp_path / "vae", weights, config.model_dump(mode="json"))
    settings = sample_settings(tmp_path, vae={"path": str(tmp_path / "vae")})
    code, _, err = call(tree, "sample", write(tmp_path, settings))
    assert code == 2
    assert "1 of" in err
    assert "values of decoder.conv_out.weight are not finite" in err


@needs_encoder
@ONLY_PT
def test_braces_of_a_template_are_literal(tree, tmp_path, call):
    settings = sample_settings(tmp_path, prompt_template='{"style": {0}, {x} {{}}', prompt=["a {red} ball"])
    code, _, err = call(tree, "sample", write(tmp_path, settings))
    assert code == 0, err


@needs_encoder
@ONLY_PT
def test_all_prompts_of_a_run_have_one_text_length(tree, tmp_path, call, monkeypatch):
    """Another length, or a mask where there was none, is another graph of the whole denoiser in ms."""
    lengths, make = set(), tree.pipeline.LatentSampler.__call__

    def noted(self, text_GLC, keep_text_GL, *rest):
        lengths.add((text_GLC.shape[1], keep_text_GL is None))
        return make(self, text_GLC, keep_text_GL, *rest)

    monkeypatch.setattr(tree.pipeline.LatentSampler, "__call__", noted)
    prompts = ["a", "a red ball " * 30, "a red ball " * 50]
    settings = sample_settings(tmp_path, prompt=prompts, text={"kind": "minilm", "max_length": 256})
    assert call(tree, "sample", write(tmp_path, settings))[0] == 0
    assert lengths == {(192, False)}


@needs_encoder
def test_mistakes_are_found_before_anything_is_loaded(tree, tmp_path, call, monkeypatch):
    """Text encoder, VAE, precision and template: none of them waits for the transformer or for denoising."""
    loaded = []
    for name in ("load_transformer", "load_vae", "TextEncoder"):
        monkeypatch.setattr(tree.sample, name, lambda *a, name=name, **k: loaded.append(name))
    config = write(tmp_path, sample_settings(tmp_path))
    from_folder = ["vae.config=null", "vae.random_seed=null", "vae.path=nowhere"]
    mistakes = {
        "text encoder nowhere": ["text.path=nowhere"],
        "model directory nowhere": from_folder,
        "must contain {} once": ["prompt_template=a photo"],
        "states are 384 wide": ["transformer.config.caption_channels=100"],
    }
    if tree.name == "ms":
        mistakes["dtype: bfloat16 has no MindSpore kernels on CPU"] = ["dtype=bfloat16"]
        mistakes["vae_dtype: bfloat16 has no"] = ["vae_dtype=bfloat16"]
        mistakes["text.dtype: bfloat16 has no"] = ["text.dtype=bfloat16"]
    for message, keys in mistakes.items():
        code, _, err = call(tree, "sample", config, *keys)
        assert (code, message in err, err.count("\n")) == (2, True, 1), err
    assert not loaded


@needs_encoder
@ONLY_PT
def test_a_bug_keeps_its_traceback(tree, tmp_path, call, monkeypatch):
    """Only what a user can cause becomes one line: a ValueError deep inside a step is ours."""

    def planted(*_):
        return np.zeros((2, 3)) @ np.zeros((2, 3))

    monkeypatch.setattr(tree.long_video, "decode", planted)
    with pytest.raises(ValueError, match="matmul"):
        call(tree, "sample", write(tmp_path, sample_settings(tmp_path)))


@needs_encoder
def test_the_text_encoder_is_gone_before_the_transformer_is_loaded(tree, tmp_path, call, monkeypatch):
    """Its weights are the larger ones: both in memory at once would decide which cards can sample."""
    encoders, alive, load = [], [], tree.sample.load_transformer

    class Watched(tree.text.TextEncoder):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            encoders.append(weakref.ref(self.model))

    def load_and_look(*arguments, **options):
        alive.extend(ref() is not None for ref in encoders)
        return load(*arguments, **options)

    monkeypatch.setattr(tree.sample, "TextEncoder", Watched)
    monkeypatch.setattr(tree.sample, "load_transformer", load_and_look)
    code, _, err = call(tree, "sample", write(tmp_path, sample_settings(tmp_path)))
    assert (code, alive) == (0, [False]), err


@ONLY_PT
def test_wrong_checkpoint_lists_every_key_before_anything_runs(tree, tmp_path, call):
    config = tiny_vae_config(use_attention=False)
    weights = {n: tree.numpy(p) for n, p in tree.runtime.parameters(build(tree, "vae", config)).items()}
    weights["decoder.conv_in.conv.weight"] = np.zeros((1, 2, 3, 3, 3), np.float32)
    weights["surprise"] = weights.pop("encoder.conv_out.conv.bias")
    save_weights(tmp_path / "vae", weights, config.model_dump(mode="json"))
    settings = sample_settings(tmp_path, vae={"path": str(tmp_path / "vae")})
    code, _, err = call(tree, "sample", write(tmp_path, settings))
    assert code == 2
    assert "1 missing, 1 unexpected, 1 misshapen" in err
    for name in (
        "missing encoder.conv_out.conv.bias",
        "unexpected surprise",
        "misshapen decoder.conv_in.conv.weight",
    ):
        assert name in err
    assert "step" not in err, "it must fail before denoising"


@pytest.mark.pt
def test_usage_help_and_interrupt_from_the_shell(tmp_path):
    usage = subprocess.run([sys.executable, "-m", "pt.sample"], cwd=ROOT, capture_output=True, text=True)
    assert usage.returncode == 2
    assert "python -m pt.sample CONFIG" in usage.stderr
    settings = sample_settings(tmp_path, sampler={"num_steps": 999})
    line = [sys.executable, "-m", "pt.sample", write(tmp_path, settings)]
    process = subprocess.Popen(
        line, cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    time.sleep(0.5)
    for line in process.stderr:  # wait for the first step
        if "step" in line or "error" in line:
            break
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    process.stderr.close()
    assert not list((tmp_path / "out").glob(".*")), "a half file stayed"
