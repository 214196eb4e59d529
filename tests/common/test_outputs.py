"""Names of outputs: short enough for every file system, with the seed, and never over other content."""

import numpy as np
import pytest

from common.config import Config
from common.errors import InputError
from common.files import write_json
from common.outputs import SLUG_BYTES, Job, check_free, digest, free_stem, slug


class Made(Config):
    """A config of something that is written."""

    seed: int = 0
    device: str = "cpu"
    output: str = "x"


def leave(folder, stem, content, config=None):
    """What a run leaves: a file and its report."""
    (folder / f"{stem}.mp4").write_bytes(b"x")
    write_json(folder / f"{stem}.json", {"sha256": content, "config": (config or Made()).model_dump()})


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red ball, rolls over the GRASS today", "a_red_ball_rolls_over_the"),
        ("一只红色的大球在灰色背景上向右移动", "一只红色的大球在灰色背景上向右移动"),
        ("../../etc/passwd\x00 CON:|?*", "etc_passwd_con"),
        ("e\u0301te\u0301", "\u00e9t\u00e9"),
        ("🐈🐈", ""),
    ],
)
def test_names_keep_letters_of_every_script_and_nothing_else(prompt, name):
    assert slug(prompt) == name


@pytest.mark.parametrize("prompt", ["x" * 4000, "赤" * 4000, "ก" * 300, "é" * 300, "a " * 300])
def test_names_fit_every_file_system(prompt, tmp_path):
    stem = Job(1234, 0, prompt, 2**31 - 1).stem
    assert len(slug(prompt).encode()) <= SLUG_BYTES
    longest = f"{stem}_12_beside_sheet.png"
    assert len(longest.encode()) <= 143  # eCryptfs
    (tmp_path / longest).touch()


def test_another_seed_is_another_name():
    assert Job(0, 0, "a ball", 1).stem != Job(0, 0, "a ball", 2).stem


def test_files_with_other_content_are_kept(tmp_path):
    leave(tmp_path, "a", "1")
    assert free_stem(tmp_path, "a", "1", "number") == "a", "the same again takes its own name"
    assert free_stem(tmp_path, "a", "2", "number") == "a_2"
    leave(tmp_path, "a_2", "2")
    assert free_stem(tmp_path, "a", "2", "number") == "a_2"
    assert free_stem(tmp_path, "a", "3", "number") == "a_3"
    assert free_stem(tmp_path, "a", "3", "replace") == "a"
    with pytest.raises(InputError, match=r"a\.\w+: it is there already, .*set overwrite=number"):
        free_stem(tmp_path, "a", "3", "error")
    (tmp_path / "b.png").touch()  # nothing tells what made it
    assert free_stem(tmp_path, "b", "1", "number") == "b_2"


def test_overwrite_error_is_said_before_any_work(tmp_path):
    leave(tmp_path, "[a]", "1", Made(seed=1))
    check_free(tmp_path, "[a]", Made(seed=1, device="cuda", output="elsewhere"), "error")
    check_free(tmp_path, "[a]", Made(seed=2), "number")
    with pytest.raises(InputError, match="it is there already"):
        check_free(tmp_path, "[a]", Made(seed=2), "error")


def test_a_digest_is_of_values_shapes_and_types():
    x = np.arange(6, dtype=np.uint8)
    different = [x, x.reshape(2, 3), x.reshape(3, 2), x.astype(np.int16), x[::-1]]
    assert len({digest(array) for array in different}) == 5
    assert digest(x.reshape(2, 3).T) == digest(np.ascontiguousarray(x.reshape(2, 3).T))
