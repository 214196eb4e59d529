"""Fixtures of the tests that start commands as a user does."""

import numpy as np
import pytest

from common.video import write_video

from .command_lines import run


@pytest.fixture
def call(monkeypatch, capsys):
    def call(tree, command, config, *overrides):
        return run(tree, command, config, *overrides, monkeypatch=monkeypatch, capsys=capsys)

    return call


@pytest.fixture
def clip(tmp_path):
    rng = np.random.default_rng(0)
    still = rng.integers(0, 255, (1, 48, 64, 3), dtype=np.uint8)
    path = tmp_path / "clip.mp4"
    write_video(path, np.concatenate([np.roll(still, 2 * i, axis=2) for i in range(12)]), 8)
    return path
