"""The demo judges what it shows, and refuses a mistyped key before anything is made or deleted."""

import numpy as np
import pytest

from common.captions import read_prompts
from common.files import write_safetensors
from common.given import GivenConfig, read_given
from tools import demo


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """Leaves the frames that the two trees are to have made."""
    monkeypatch.setattr(demo, "ROOT", tmp_path)

    def leave(ms_THWC, pt_THWC):
        for tree, frames_THWC in (("ms", ms_THWC), ("pt", pt_THWC)):
            folder = tmp_path / demo.OUTPUT / f"case_{tree}"
            folder.mkdir(parents=True, exist_ok=True)
            write_safetensors(folder / "a.safetensors", {"frames_THWC": frames_THWC})
        return demo.agree("case")

    return leave


def test_frames_must_agree_and_show_something(shown, capsys):
    frames = np.random.default_rng(0).integers(40, 200, (3, 16, 16, 3), np.uint8)
    assert shown(frames, frames + 1)
    assert "the trees agree: 3 frames, at most 1 of 255 grey levels apart" in capsys.readouterr().out
    assert not shown(frames, frames + 2)
    assert "DO NOT AGREE" in capsys.readouterr().out
    plain = np.broadcast_to(np.array([200, 50, 30], np.uint8), frames.shape).copy()
    assert not shown(plain, plain), "a plain colour proves little"
    assert "on frames that show too little" in capsys.readouterr().out


def test_mistakes_come_first(tmp_path, monkeypatch, capsys):
    kept = tmp_path / demo.OUTPUT / "kept"
    kept.mkdir(parents=True)
    monkeypatch.setattr(demo, "OUTPUT", tmp_path / demo.OUTPUT)
    assert demo.main(["promt=a cat"]) == 2
    assert "did you mean 'prompt'" in capsys.readouterr().err
    assert demo.main(["--help"]) == 0
    assert "python -m tools.demo" in capsys.readouterr().out
    assert kept.is_dir()


def test_the_pictures_it_draws_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    image, prompt = (key.partition("=")[2] for key in demo.draw_pictures(demo.OUTPUT / "given"))
    config = GivenConfig(num_frames=17, height=96, width=96, image=str(tmp_path / image))
    assert [entry.indices for entry in read_given(config, 2)] == [(0,), (0, 16)]
    assert len(read_prompts(str(tmp_path / prompt))) == 2
