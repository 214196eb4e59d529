"""Which video files a run reads: one file, a folder searched recursively, or a list."""

from pathlib import Path

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
LIST_SUFFIX = ".txt"


def find_videos(source: str | Path, *, images: bool = False) -> list[Path]:
    """The video files behind `source`, sorted by path; the files themselves are not opened.

    A folder is searched recursively by suffix, hidden names and folders left out. A `.txt` file lists one
    path per line, relative to its own folder; its order does not count, repeats count once, and a path that
    is missing is returned, so that the reader names it. Any other file stands for itself.

    Args:
        images: find pictures too.

    Raises:
        ValueError: no such file or folder, or nothing found in it.
    """
    source = Path(source)
    wanted = VIDEO_SUFFIXES + (IMAGE_SUFFIXES if images else ())
    if source.is_dir():
        found = [path for path in source.rglob("*") if _is_wanted(path, source, wanted)]
        if not found:
            raise ValueError(
                f"videos {source}: found none in it or below, wanted files ending in {', '.join(wanted)}; "
                "check the path"
            )
        return sorted(found)
    if not source.is_file():
        raise ValueError(
            f"videos {source}: got no such file, wanted a folder, a video or a {LIST_SUFFIX} list; "
            "check the path"
        )
    return _listed(source) if source.suffix.lower() == LIST_SUFFIX else [source]


def _is_wanted(path: Path, folder: Path, suffixes: tuple[str, ...]) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in suffixes and not hidden and path.is_file()


def _listed(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"videos {path}: got {error}, wanted a UTF-8 text with one path per line") from None
    found = {path.parent / line.strip() for line in lines if line.strip()}
    if not found:
        raise ValueError(f"videos {path}: got an empty list, wanted one path per line; add some")
    return sorted(found)
