"""What a cache was made with, by contents."""

import shutil

import numpy as np
import pytest

from common.checkpoint import save_weights
from common.fingerprint import check_fingerprint, fingerprint, unbound
from common.runs import ModelSource
from common.text import TextConfig

from .encoded_cases import data, settings


def test_everything_that_differs_is_named(tmp_path):
    with pytest.raises(ValueError, match="another VAE and another text encoder"):
        check_fingerprint({}, {"vae": "v", "text": "t"}, tmp_path)


@pytest.fixture
def models(tmp_path):
    """Folders that look like a VAE, a text encoder, and annotations in two ways."""
    save_weights(tmp_path / "vae", {"w": np.arange(6.0)}, {"latent_dim": 4})
    (tmp_path / "text").mkdir()
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "text" / name).write_text("{}")
    (tmp_path / "text" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "a.jsonl").write_text('{"path": "1.mp4"}\n')
    (tmp_path / "data.txt").write_text("videos,a.jsonl\n")
    return tmp_path


def of(folder, annotations="a.jsonl", text=None, overrides=None, **changes):
    return fingerprint(
        ModelSource(path=str(folder / "vae"), overrides=overrides or {}),
        TextConfig(kind="mt5", path=str(folder / "text"), **(text or {})),
        data(folder, annotations=str(folder / annotations), **changes),
    )


def differs(ours, others):
    return {key for key in ours if ours[key] != others[key]}


def test_a_fingerprint_is_of_contents_not_of_places(models, tmp_path):
    before = of(models)
    moved = shutil.copytree(models, tmp_path / "moved")
    (moved / "data.txt").write_text(f"/another/root,{moved / 'a.jsonl'}\n")
    assert of(moved) == before
    assert of(moved, "data.txt") == of(models, "data.txt") == before
    for name in ("README.md", "pytorch_model.bin"):
        (moved / "text" / name).write_text("not read")
    assert of(moved) == before


def test_a_fingerprint_changes_with_what_a_cache_holds(models):
    before = of(models)
    assert differs(before, of(models, overrides={"latent_dim": 8})) == {"vae"}
    assert differs(before, of(models, text={"max_length": 8})) == {"text"}
    assert not differs(before, of(models, text={"dtype": "float16"}))
    for change in ({"sizes": {"max_tokens": 9}}, {"num_frames": 33}, {"fps": 8}, {"keep_chinese": False}):
        assert differs(before, of(models, **change)) == {"data"}, change
    for change in ({"drop_caption_ratio": 0.5}, {"workers": 3}, {"min_bucket_batches": 4}, {"root": "/x"}):
        assert of(models, **change) == before, change
    for file, key in (
        ("vae/diffusion_pytorch_model.safetensors", "vae"),
        ("vae/config.json", "vae"),
        ("text/model.safetensors", "text"),
        ("text/tokenizer.json", "text"),
        ("a.jsonl", "data"),
    ):
        path = models / file
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        assert differs(before, of(models)) == {key}, file
        path.write_bytes(content)
    assert of(models) == before


def test_a_fingerprint_of_random_weights_knows_their_seed():
    config = TextConfig(kind="minilm")
    sources = [
        ModelSource(config={"latent_dim": n}, random_seed=seed) for n, seed in ((4, 0), (4, 1), (8, 0))
    ]
    assert len({fingerprint(source, config, settings().data)["vae"] for source in sources}) == 3


def test_missing_annotations_are_said(models):
    with pytest.raises(ValueError, match=r"b.jsonl is missing, wanted it to tell .* correct its path"):
        of(models, "b.jsonl")


def test_keys_that_change_no_clip_are_those_that_are_marked():
    """As they were before the marks: a cache made then still belongs to its data."""
    assert set(unbound()) == {
        *("annotations", "root", "encoded", "group", "min_bucket_batches", "token_multiple"),
        *("drop_caption_ratio", "stock_caption_ratio", "workers", "prefetch", "max_bad_share"),
    }
