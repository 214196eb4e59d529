"""`evaluate_vae` as a user meets it: a folder with broken files becomes a table, a report and a picture."""

import importlib
import json
import sys

import numpy as np
import pytest
import yaml

from common.checkpoint import save_weights
from common.evaluation import Clip
from common.fvd import frechet_distance, i3d_input
from common.images import read_image
from common.judges import I3DConfig, LPIPSConfig
from common.metrics import psnr_ssim_T
from common.noise import initial_weights
from common.runs import EvaluateVAEConfig
from common.video import read_frames, write_video
from tests.conftest import ONLY_PT
from tests.tiny import tiny_vae_config

WIDTHS = (4, 4, 6, 6, 8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two videos, one of them below, and one that is broken."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "below").mkdir()
    y, x = np.mgrid[:32, :48]
    for name, length, speed in (("a.mp4", 20, 3), ("below/b.mp4", 9, 5)):
        frames = [np.stack([5 * x + speed * t, 7 * y, 9 * t + 0 * x], -1) % 256 for t in range(length)]
        write_video(folder / name, np.stack(frames).astype(np.uint8), 8)
    (folder / "broken.mp4").write_bytes(b"nothing")
    return folder


def judge_folder(tree, folder, model, config):
    """A model directory of random weights, and `model` with the same."""
    weights = {name: tree.numpy(p) for name, p in tree.runtime.parameters(model).items()}
    shapes = {name: tuple(p.shape) for name, p in tree.runtime.trainable(model).items()}
    weights |= initial_weights(shapes, 0, gain=1.5)  # with 1 little of the picture would reach the logits
    tree.load(model, weights, "random")
    save_weights(folder, weights, config.model_dump(mode="json"))
    return str(folder)


@pytest.fixture
def evaluate(tree, tmp_path, monkeypatch, capsys):
    """Run the command line on these settings: (exit code, stdout, stderr, report or None)."""

    def evaluate(**changes):
        vae = {"config": tiny_vae_config(use_attention=False).model_dump(mode="json"), "random_seed": 0}
        settings = {"vae": vae, "num_frames": 9, "height": 32, "width": 48, "device": "cpu", "batch_size": 2}
        settings |= {"output": str(tmp_path / "out"), **changes}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
        monkeypatch.setattr(sys, "argv", ["evaluate_vae", str(tmp_path / "run.yaml")])
        module, code = importlib.import_module(f"{tree.name}.evaluate_vae"), 0
        try:
            module.cli.main(EvaluateVAEConfig, module.evaluate_vae, module.USAGE)
        except SystemExit as stop:
            code = stop.code
        report = tmp_path / "out" / "evaluation.json"
        told = capsys.readouterr()
        return code, told.out, told.err, json.loads(report.read_text()) if report.is_file() else None

    return evaluate


def test_a_folder_is_measured(tree, videos, tmp_path, evaluate):
    lpips = judge_folder(
        tree, tmp_path / "lpips", tree.lpips.LPIPS(LPIPSConfig(widths=WIDTHS)), LPIPSConfig(widths=WIDTHS)
    )
    code, out, err, report = evaluate(input=str(videos), clips_per_video=0, lpips=lpips)
    assert code == 0, err
    assert [(clip["file"], clip["start"]) for clip in report["clips"]] == [
        ("a.mp4", 0),
        ("a.mp4", 9),
        ("a.mp4", 11),
        ("below/b.mp4", 0),
    ]
    assert list(report["skipped"]) == ["broken.mp4"]
    assert report["num_files"] == 3
    assert "skipped 1 of 3 files:\n  broken.mp4: " in out
    assert all(clip["lpips"] > 0 for clip in report["clips"])
    for name, digits in (("psnr_db", 2), ("ssim", 4), ("lpips", 4)):
        mean = np.mean([clip[name] for clip in report["clips"]])
        assert report[name] == pytest.approx(mean, abs=1e-3)
        assert f"{report['clips'][0][name]:.{digits}f}" in out
    assert report["fvd"] is None
    assert read_image(tmp_path / "out" / "evaluation.png").shape == (4 * 32, 3 * 48, 3)
    assert report["picture"]["error_gain"] == 5
    assert report["config"]["clips_per_video"] == 0


@ONLY_PT
def test_one_clip_is_what_reconstruct_makes_of_it_however_it_is_batched(tree, videos, tmp_path, evaluate):
    reports = []
    for size in (1, 3):
        code, _, err, report = evaluate(input=str(videos), batch_size=size, clips_per_video=0)
        assert code == 0, err
        reports.append(report["clips"])
    for a, b in zip(*reports, strict=True):
        assert a["psnr_db"] == pytest.approx(b["psnr_db"], abs=0.01)
        assert a["ssim"] == pytest.approx(b["ssim"], abs=1e-3)
    reconstruct = importlib.import_module(f"{tree.name}.reconstruct")
    settings = {"vae": report["config"]["vae"], "input": str(videos / "a.mp4"), "num_frames": 9}
    settings |= {"height": 32, "width": 48, "device": "cpu", "output": str(tmp_path / "one")}
    reconstruct.reconstruct(reconstruct.ReconstructConfig(**settings))
    one = json.loads((tmp_path / "one" / "a_restored.json").read_text())
    assert one["psnr_db"] == pytest.approx(reports[0][0]["psnr_db"], abs=0.002)
    assert one["ssim"] == pytest.approx(reports[0][0]["ssim"], abs=2e-4)


@ONLY_PT
def test_fvd_of_the_report_is_the_distance_of_the_logits(tree, videos, tmp_path, evaluate):
    config = I3DConfig(width_divisor=8)
    model = tree.i3d.I3D(config)
    i3d = judge_folder(tree, tmp_path / "i3d", model, config)
    code, out, err, report = evaluate(input=str(videos), i3d=i3d)
    assert code == 0, err
    assert report["fvd"] > 0
    assert "2 clips are few" in report["fvd_note"]
    assert f"FVD  {report['fvd']}" in out
    assert report["lpips"] is None
    restore, clips = importlib.import_module(f"{tree.name}.evaluate_vae").restore, []
    settings = EvaluateVAEConfig(**report["config"])
    for name in ("a.mp4", "below/b.mp4"):
        clips.append(Clip(name, 0, read_frames(videos / name, range(9))))
    vae = tree.loading.load_vae(settings.vae, tiny_vae_config(use_attention=False), "float32", tree.device)
    frames = [clip.frames_THWC for clip in clips], restore(vae, clips, settings, 0)
    features = [
        np.concatenate([tree.call(model, i3d_input(x), models=(model,)) for x in part]) for part in frames
    ]
    assert report["fvd"] == pytest.approx(frechet_distance(*features), rel=1e-3, abs=2e-3)


@ONLY_PT
def test_mistakes_are_one_line(tree, videos, tmp_path, evaluate):
    for changes, message in (
        ({"input": str(tmp_path / "nowhere")}, "nowhere: got no such file, wanted a folder"),
        ({"input": str(videos / "broken.mp4")}, "none of 1 files could be read: video "),
        ({"input": str(videos), "num_frames": 8}, "frames"),
        ({"input": str(videos), "lpips": str(tmp_path)}, "no config.json"),
        ({"input": str(videos), "num_frames": 5, "i3d": "x"}, "FVD wants num_frames of at least 9"),
        ({"input": str(videos), "clips": 2}, "unknown key 'clips'"),
    ):
        code, _, err, report = evaluate(**changes)
        assert code == 2
        assert message in err
        assert len(err.strip().splitlines()) == 1
        assert report is None


def test_the_measures_are_those_of_common(videos):
    frames_THWC = read_frames(videos / "below" / "b.mp4")
    psnr_T, ssim_T = psnr_ssim_T(frames_THWC, frames_THWC)
    assert psnr_T.tolist() == [100.0] * 9
    assert ssim_T == pytest.approx(np.ones(9))
