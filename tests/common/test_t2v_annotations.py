"""Annotations of every format read alike; what cannot be read is counted and named."""

import importlib.util
import json

import numpy as np
import pytest

from common.data.annotations import MAX_NAMED, read_annotations
from common.data.texts import BLOCK, Texts

needs_pyarrow = pytest.mark.skipif(
    importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed"
)
CLIP = {
    "path": "a/1.mp4",
    "cap": ["one", "zwölf"],
    "resolution": {"height": 64, "width": 96},
    "num_frames": 40,
    "fps": 23.976,
    "aesthetic": 5.5,
    "cut": [7, 47],
    "crop": [2, 50, 1, 31],
    "motion": 1.5,
    "tech": 0.25,
}
PICTURE = {"path": "2.JPG", "cap": ["three"], "resolution": {"height": 10, "width": 20}}


def write(path, entries):
    if path.suffix == ".json":
        path.write_text(json.dumps(entries))
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(map(json.dumps, entries)))
    else:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(entries), path)
    return path


@pytest.mark.parametrize("suffix", ["json", "jsonl", pytest.param("parquet", marks=needs_pyarrow)])
def test_formats_are_alike(tmp_path, suffix):
    found = read_annotations(write(tmp_path / f"x.{suffix}", [CLIP, PICTURE] * 200), root="/videos")
    assert len(found) == 400
    assert found.unreadable_named == []
    clip, picture = found.entry(200), found.entry(399)
    assert clip == (
        *("/videos/a/1.mp4", ("one", "zwölf"), False, 40, 23.976, 7, (2, 50, 1, 31), 64, 96),
        pytest.approx(5.5),
    )
    assert picture.path == "/videos/2.JPG"
    assert picture.is_image
    assert np.isnan([picture.fps, picture.aesthetic]).all()
    assert found.columns().height[:2].tolist() == [64, 10]
    assert found.column("tech")[0] == 0.25


def test_a_list_of_files_with_their_roots(tmp_path):
    write(tmp_path / "one.json", [CLIP])
    write(tmp_path / "two.jsonl", [PICTURE, PICTURE])
    (tmp_path / "data.txt").write_text(f"/somewhere,{tmp_path}/one.json\n\nbelow, two.jsonl\n")
    found = read_annotations(tmp_path / "data.txt")
    assert [found.entry(i).path for i in (0, 2)] == ["/somewhere/a/1.mp4", str(tmp_path / "below/2.JPG")]


def test_older_names_and_plain_sentences(tmp_path):
    entry = {"path": "x.mp4", "cap": "a sentence", "aes": 4.5}
    found = read_annotations(write(tmp_path / "x.json", [entry]))
    assert found.entry(0).captions == ("a sentence",)
    assert found.entry(0).aesthetic == 4.5
    assert found.entry(0).path == str(tmp_path / "x.mp4")


@pytest.mark.parametrize(
    "change",
    [
        {"path": None},
        {"path": 7},
        {"cap": [1]},
        {"cap": 3},
        {"cap": {"short": "a ball", "long": "a large ball"}},
        {"cut": "37,237"},
        {"crop": "0123"},
        {"resolution": [1, 2]},
        {"num_frames": "many"},
        {"num_frames": 2**40},
        {"fps": 0},
        {"crop": [1, 2]},
        {"crop": [9, 2, 0, 5]},
        {"cut": []},
        {"cut": [-3]},
        {"aesthetic": "good"},
    ],
)
def test_a_malformed_entry_is_named(tmp_path, change):
    found = read_annotations(write(tmp_path / "x.jsonl", [CLIP, CLIP | change, PICTURE]))
    assert found.columns().unreadable.tolist() == [False, True, False]
    assert "x.jsonl, line 3: " in found.unreadable_named[0]
    assert found.entry(2).captions == ("three",)  # the others keep their place


def test_a_blank_caption_is_none(tmp_path):
    found = read_annotations(
        write(tmp_path / "x.jsonl", [CLIP | {"cap": "  "}, CLIP | {"cap": [" ", "one"]}])
    )
    assert found.columns().has_caption.tolist() == [False, True]
    assert found.entry(1).captions == ("one",)


def test_lines_that_are_no_entries_are_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(f'{json.dumps(CLIP)}\n{{"path"\n[1]\n{{"cap": "x"}}\n' + "7\n" * 20)
    found = read_annotations(path)
    assert found.columns().unreadable.sum() == 23
    assert len(found.unreadable_named) == MAX_NAMED
    assert found.unreadable_named[2].endswith("path is None")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", "{}", "wanted a JSON list"),
        ("x.json", "[", "wanted a JSON list"),
        ("x.jsonl", "\n", "got no entry"),
        ("x.csv", "a", "suffix '.csv'"),
        ("x.txt", "no comma", "wanted `root,annotation.json`"),
        ("x.txt", "/root,missing.json", "no such file"),
        pytest.param("x.parquet", "nonsense", "wanted a Parquet file", marks=needs_pyarrow),
    ],
)
def test_a_useless_file_is_an_error(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_annotations(tmp_path / name)


def test_texts_come_back():
    texts = Texts()
    records = [[f"path {i}", *["wörter"] * (i % 3)] for i in range(2 * BLOCK + 5)]
    for record in records:
        texts.append(record)
    assert len(texts) == len(records)
    assert [texts[i] for i in range(len(records))] == records


def test_separators_and_halves_of_characters_do_no_harm():
    texts = Texts()
    for _ in range(BLOCK):
        texts.append(["a\x1eb", "c\x1fd", "e\ud800"])
    assert texts[3] == ["a b", "c d", "e?"]
