"""A folder, a list or a file becomes the videos it means; nothing found is an error that says where."""

import pytest

from common.data.video_files import find_videos


@pytest.fixture
def folder(tmp_path):
    for name in (
        "b.mp4",
        "a/C.MOV",
        "a/deep/er/x.webm",
        "a/still.png",
        "notes.txt",
        ".hidden.mp4",
        "a/.cache/y.mp4",
    ):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "videos" / "folder.mp4").mkdir()
    return tmp_path / "videos"


def names(folder, found):
    return [str(path.relative_to(folder)) for path in found]


def test_folders_are_searched_recursively(folder):
    assert names(folder, find_videos(folder)) == ["a/C.MOV", "a/deep/er/x.webm", "b.mp4"]
    assert "a/still.png" in names(folder, find_videos(str(folder), images=True))


def test_lists_are_relative_to_their_folder_sorted_and_without_repeats(folder):
    path = folder / "a" / "list.txt"
    path.write_text("../b.mp4\n\n  C.MOV \r\n../b.mp4\nmissing file.mp4\n")
    assert names(folder, find_videos(path)) == ["a/../b.mp4", "a/C.MOV", "a/missing file.mp4"]
    path.write_text(f"{folder / 'b.mp4'}\n")
    assert find_videos(path) == [folder / "b.mp4"]


def test_a_file_stands_for_itself(folder):
    assert find_videos(folder / "b.mp4") == [folder / "b.mp4"]


def test_nothing_found(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: found none in it or below, wanted files ending in \.mp4"):
        find_videos(tmp_path / "empty")
    with pytest.raises(ValueError, match="nowhere: got no such file, wanted a folder, a video"):
        find_videos(tmp_path / "nowhere")
    (tmp_path / "list.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"list\.txt: got only blank lines"):
        find_videos(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"list\.txt: got .*, wanted a UTF-8 text"):
        find_videos(tmp_path / "list.txt")


def test_links_are_followed_but_not_round(folder, tmp_path):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    (shelf / "linked.mp4").touch()
    (folder / "a" / "shelf").symlink_to(shelf)
    (folder / "a" / "up").symlink_to(folder)
    (folder / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    assert names(folder, find_videos(folder)) == [
        "a/C.MOV",
        "a/deep/er/x.webm",
        "a/shelf/linked.mp4",
        "b.mp4",
    ]
