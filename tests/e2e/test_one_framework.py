"""One tree alone: with the other tree's framework blocked, everything imports and the command lines run."""

import importlib
import os
import sys

import numpy as np
import pytest

from common.video import write_video
from tests.e2e import command_lines as lines
from tests.e2e import test_encode
from tools.mirror import ROOT, files

ONLY = os.environ.get("TREE_ONLY", "")
pytestmark = pytest.mark.skipif(not ONLY, reason="runs with TREE_ONLY=ms or TREE_ONLY=pt, as .ci/run does")
OTHER = {"ms": ("torch",), "pt": ("mindspore", "mindone")}.get(ONLY, ())


def test_the_other_framework_is_blocked():
    for name in OTHER:
        with pytest.raises(ModuleNotFoundError, match="blocked"):
            importlib.import_module(name)


@pytest.mark.parametrize("name", sorted(files("ms")))
def test_every_module_imports(name):
    importlib.import_module(f"{ONLY}.{name.removesuffix('.py').replace('/', '.')}".removesuffix(".__init__"))


@lines.needs_encoder
@pytest.mark.parametrize("command", ["sample", "reconstruct", "encode"])
def test_a_command_line_runs(command, tmp_path, monkeypatch, capsys):
    from tools.parity.tree import Tree

    tree = Tree(ONLY)
    if command == "sample":
        settings = lines.sample_settings(tmp_path)
    elif command == "encode":
        settings = test_encode.settings(tmp_path / "cache")
    else:
        clip = tmp_path / "clip.mp4"
        write_video(clip, np.full((9, 48, 64, 3), 100, np.uint8), 8)
        settings = lines.reconstruct_settings(tmp_path, clip)
    code, _, err = lines.run(
        tree, command, lines.write(tmp_path, settings), monkeypatch=monkeypatch, capsys=capsys
    )
    assert code == 0, err
    assert not any(name in sys.modules for name in OTHER)


def test_the_parity_tool_records_with_one_framework(tmp_path):
    from tools.parity.__main__ import main

    out = str(tmp_path / "recording.safetensors")
    config = str(ROOT / "configs" / "parity_tiny.yaml")
    assert main(["dump", config, "--tree", ONLY, "--out", out, "stages=[op,sampler]", "device=cpu"]) == 0
    assert main(["compare", out, out]) == 0
    assert not any(name in sys.modules for name in OTHER)
