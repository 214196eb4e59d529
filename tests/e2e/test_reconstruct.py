"""`reconstruct` as a user meets it: what it writes and measures, chunks, tiles, clips it cannot read."""

import json

import numpy as np
import pytest

from common.checkpoint import read_safetensors, save_weights
from common.models import OD_VAE, CausalVAEConfig
from common.noise import initial_weights
from common.video import probe
from tests.conftest import ONLY_PT, PT_AND_SLOW_MS

from .command_lines import reconstruct_settings, sample_settings, write


def test_reconstruct_writes_and_measures(tree, tmp_path, clip, call):
    code, out, err = call(tree, "reconstruct", write(tmp_path, reconstruct_settings(tmp_path, clip)))
    assert code == 0, err
    folder = tmp_path / "out"
    assert {
        "clip_restored.mp4",
        "clip_restored_sheet.png",
        "clip_restored_beside.mp4",
        "clip_restored.json",
    } <= {p.name for p in folder.iterdir()}
    report = json.loads((folder / "clip_restored.json").read_text())
    tensors = read_safetensors(folder / "clip_restored.safetensors")
    error = (tensors["frames_THWC"].astype(float) - tensors["original_THWC"]) / 255
    expected = float(np.mean(-10 * np.log10(np.mean(error**2, axis=(1, 2, 3)))))
    assert abs(report["psnr_db"] - expected) < 0.01
    assert f"PSNR {report['psnr_db']:.2f} dB" in out
    assert probe(folder / "clip_restored_beside.mp4").width == 96


@ONLY_PT
def test_reconstruct_never_overwrites_its_input(tree, tmp_path, clip, call):
    before = clip.read_bytes()
    config = write(tmp_path, reconstruct_settings(tmp_path, clip))
    assert call(tree, "reconstruct", config, f"output={clip.parent}")[0] == 0
    assert clip.read_bytes() == before


@ONLY_PT
def test_reconstruct_refuses_a_taken_name_before_any_work(tree, tmp_path, clip, call, monkeypatch):
    config = write(tmp_path, reconstruct_settings(tmp_path, clip))
    assert call(tree, "reconstruct", config)[0] == 0
    monkeypatch.setattr(tree.reconstruct, "load_vae", None)
    code, _, err = call(tree, "reconstruct", config, "start=1", "overwrite=error")
    assert (code, "it is there already, with other content" in err) == (2, True), err


@ONLY_PT
def test_reconstruct_in_chunks_is_the_same(tree, tmp_path, clip, call):
    config = write(tmp_path, reconstruct_settings(tmp_path, clip))
    for chunk in (0, 4):
        assert (
            call(tree, "reconstruct", config, f"chunk_frames={chunk}", f"output={tmp_path / str(chunk)}")[0]
            == 0
        )
    whole, chunked = (
        read_safetensors(tmp_path / c / "clip_restored.safetensors")["frames_THWC"] for c in ("0", "4")
    )
    assert np.abs(whole.astype(int) - chunked).max() <= 1


@PT_AND_SLOW_MS
def test_od_vae_goes_through_the_same_commands(tree, tmp_path, clip, call):
    """v1.2's VAE from a model directory, whole and in tiles; neither takes the other's keys."""
    small = CausalVAEConfig(hidden_size=32, hidden_size_mult=(1, 1, 1, 1), num_res_blocks=1)
    vae = tree.causal_vae.CausalVAE(small)
    shapes = {name: tuple(p.shape) for name, p in tree.runtime.parameters(vae).items()}
    weights = initial_weights(shapes, 0)
    trainer = {"lr": 1e-5, "loss_type": "LPIPS", "loss_params": {}}
    save_weights(tmp_path / "odvae", weights, {"_class_name": OD_VAE, **trainer, **small.model_dump()})
    settings = reconstruct_settings(tmp_path, clip, vae={"path": str(tmp_path / "odvae")})
    config, frames = write(tmp_path, settings), {}
    tiles = {"one": "window_frames: 0, tile_size: 0", "several": "window_frames: 2, overlap_frames: 1"}
    for name, sizes in tiles.items():
        keys = [f"{side}_tiling={{{sizes}}}" for side in ("encode", "decode")]
        code, out, err = call(tree, "reconstruct", config, *keys, f"output={tmp_path / name}")
        assert code == 0, err
        assert "PSNR" in out
        frames[name] = read_safetensors(tmp_path / name / "clip_restored.safetensors")["frames_THWC"]
    assert call(tree, "reconstruct", config)[0] == 0
    whole = read_safetensors(tmp_path / "out" / "clip_restored.safetensors")["frames_THWC"]
    assert np.array_equal(frames["one"], whole)
    assert not np.array_equal(frames["several"], whole)
    code, _, err = call(tree, "reconstruct", config, "chunk_frames=4")
    assert (code, "set encode_tiling and decode_tiling" in err) == (2, True)
    other = write(tmp_path, reconstruct_settings(tmp_path, clip))
    code, _, err = call(tree, "reconstruct", other, "decode_tiling={}")
    assert (code, "for WF-VAE set chunk_frames" in err) == (2, True)
    sample = write(tmp_path, sample_settings(tmp_path, vae={"path": str(tmp_path / "odvae")}))
    code, _, err = call(tree, "sample", sample)
    assert (code, "this is OD-VAE of v1.2, wanted a WF-VAE" in err) == (2, True)


@ONLY_PT
@pytest.mark.parametrize("content", [None, b"", b"not a video"])
def test_unreadable_and_empty_videos(tree, tmp_path, call, content):
    path = tmp_path / "bad.mp4"
    if content is not None:
        path.write_bytes(content)
    code, _, err = call(tree, "reconstruct", write(tmp_path, reconstruct_settings(tmp_path, path)))
    assert code == 2
    assert err.startswith(f"error: video {path}")
    assert len(err.strip().splitlines()) == 1


@ONLY_PT
def test_video_shorter_than_asked(tree, tmp_path, clip, call):
    config = write(tmp_path, reconstruct_settings(tmp_path, clip, num_frames=33))
    code, _, err = call(tree, "reconstruct", config)
    assert code == 2
    assert "12" in err
