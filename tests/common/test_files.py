"""Small files: what a reader says of them names file and place; lines are the same lines everywhere."""

import numpy as np
import pytest

from common.captions import read_prompts
from common.data.annotations import read_annotations
from common.data.video_files import find_videos
from common.errors import InputError
from common.files import listed_path, parse_json, read_json, read_lines
from common.given import GivenConfig, read_given
from common.images import write_png

BREAKS = "\u2028\u2029\u0085\v\f\x1c\x1d\x1e"  # str.splitlines() ends a line at each of them
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def test_lines_end_at_lf_or_crlf_only(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(f"\ufeff one{BREAKS}line \r\n\n  \ntwo\r".encode())
    assert read_lines(path, "prompts", "text") == [(1, f"one{BREAKS}line"), (4, "two")]
    assert read_prompts(str(path)) == [f"one{BREAKS}line", "two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "prompts .*p.txt: got no such file, wanted a line"),
        (b"\n \r\n", "got only blank lines, wanted a line"),
        ("grün".encode("latin-1"), "got .*codec can't decode.*, wanted a line; save it again as UTF-8"),
    ],
)
def test_a_list_that_is_none(tmp_path, content, message):
    path = tmp_path / "p.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_lines(path, "prompts", "a line")


def test_entries_of_every_list_begin_at_its_folder(tmp_path, monkeypatch):
    """Videos, pictures and annotations alike, wherever the command is started."""
    folder = tmp_path / "set"
    folder.mkdir()
    write_png(folder / "a, b.png", np.zeros((32, 48, 3), np.uint8))
    write_png(folder / "c.png", np.full((32, 48, 3), 255, np.uint8))
    (folder / "x.jsonl").write_text('{"path": "c.png", "cap": "c"}\n')
    (folder / "videos.txt").write_text("clip.mp4\n/data/other.mp4\n")
    (folder / "pictures.txt").write_text("a, b.png\nc.png,nowhere.png\n-\n")
    (folder / "data.txt").write_text(".,x.jsonl\n")
    monkeypatch.chdir(tmp_path)
    assert [str(path) for path in find_videos("set/videos.txt")] == ["/data/other.mp4", "set/clip.mp4"]
    assert read_annotations("set/data.txt").entry(0).path == "set/c.png"
    config = GivenConfig(num_frames=5, height=32, width=48, image="set/pictures.txt")
    with pytest.raises(InputError, match=r"image set/nowhere.png: got no such file"):
        read_given(config, 3)
    (folder / "pictures.txt").write_text("a, b.png\nc.png\n-\n")
    given = read_given(config, 3)
    assert [entry.frames_NHWC.mean() for entry in given[:2]] == [0, 255]
    assert given[2].indices == ()
    assert listed_path("/abs/x", "set/list.txt").as_posix() == "/abs/x"


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "Expecting value"),
        (b'{"a": ', "Expecting value: line 1 column 7"),
        (b"\xff\xfe\x00", "codec can't decode"),
        (b"[" * 100_000, "recursion"),
        (LFS, "a Git LFS pointer in its place: fetch the file itself with `git lfs pull`"),
    ],
)
def test_json_that_is_none(tmp_path, content, got):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.json: wanted an index, got") as raised:
        read_json(path, "an index")
    assert got in str(raised.value)
    with pytest.raises(InputError, match="line 3: wanted JSON, got"):
        parse_json(content, "line 3")


def test_a_missing_json_file(tmp_path):
    with pytest.raises(InputError, match=r"x\.json: got No such file or directory, wanted a JSON file"):
        read_json(tmp_path / "x.json")
