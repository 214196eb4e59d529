"""Which video files a run reads: one file, a folder searched recursively, or a list."""

from collections.abc import Iterator
from pathlib import Path

from common.errors import InputError
from common.files import listed_path, read_lines

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
LIST_SUFFIX = ".txt"


def find_videos(source: str | Path, *, images: bool = False) -> list[Path]:
    """The video files behind `source`, sorted by path; the files themselves are not opened.

    A folder is searched recursively by suffix, links followed, hidden names left out. A `.txt` file lists one
    path per line, relative to its own folder; its order does not count, repeats count once, and a path that
    is missing is returned, so that the reader names it. Any other file stands for itself.

    Args:
        images: find pictures too.

    Raises:
        InputError: no such file or folder, or nothing found in it.
    """
    source = Path(source)
    wanted = VIDEO_SUFFIXES + (IMAGE_SUFFIXES if images else ())
    if source.is_dir():
        found = [path for path in _below(source, frozenset()) if path.suffix.lower() in wanted]
        if not found:
            raise InputError(
                f"videos {source}: found none in it or below, wanted files ending in {', '.join(wanted)}; "
                "check the path"
            )
        return sorted(found)
    if not source.is_file():
        raise InputError(
            f"videos {source}: got no such file, wanted a folder, a video or a {LIST_SUFFIX} list; "
            "check the path"
        )
    return _listed(source) if source.suffix.lower() == LIST_SUFFIX else [source]


def _below(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """The files, those behind links too; a link back to a folder that it is in leads nowhere."""
    above |= {folder.resolve()}
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if path.resolve() not in above:
                yield from _below(path, above)
        elif path.is_file():
            yield path


def _listed(path: Path) -> list[Path]:
    lines = read_lines(path, "videos", "a UTF-8 text with one path per line")
    return sorted({listed_path(line, path) for _, line in lines})
