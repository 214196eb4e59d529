"""Annotations of captioned clips and pictures: read once, kept compactly, entry by entry on demand.

An entry has `path` and `cap` (a sentence or a list of them), `resolution` {height, width}, `num_frames`,
`fps`, `duration` (seconds, looked at where `num_frames` is missing), `aesthetic` (or `aes`), `cut` [first
frame, ...], `crop` [left, right, top, bottom], `motion` and `tech`. Files are JSON (a list), JSONL (an entry
per line) or Parquet (the same names as columns). What an entry lacks is judged later (selection.py); only
those that do not have this form are counted and named here.
"""

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.data.video_files import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from common.errors import InputError
from common.files import listed_path, parse_json, read_lines

from .selection import Columns
from .texts import Texts

MAY_MOVE = (".png", ".webp")  # suffixes of pictures that move if more than one frame is annotated
SUFFIXES = (".json", ".jsonl", ".parquet")
BUFFER = 2**18  # bytes of Parquet read at a time; a group of rows may be the whole file
MAX_NAMED = 10  # unreadable entries named in a report
ROWS = 1024  # of Parquet at a time
LARGEST = 2**31 - 1  # whole number that a column holds
NO_CROP = (-1, -1, -1, -1)


class Entry(NamedTuple):
    """One clip or picture, ready to be read."""

    path: str
    captions: tuple[str, ...]
    is_image: bool
    num_frames: int
    fps: float  # NaN if not given
    start: int  # of the clip in its file, in frames
    crop: tuple[int, ...]  # left, right, top, bottom; NO_CROP: none
    height: int  # as annotated
    width: int
    aesthetic: float  # NaN if not given


class Annotations:
    """Every entry of one or more files: numbers in arrays, texts compressed."""

    def __init__(self) -> None:
        self.roots: list[str] = []
        self.unreadable_named: list[str] = []
        self.texts = Texts()
        self._columns = {name: array(kind) for name, kind in COLUMNS.items()}
        self._crops = array("i")

    def __len__(self) -> int:
        return len(self.texts)

    def column(self, name: str) -> np.ndarray:
        """The values of one of COLUMNS."""
        return np.frombuffer(self._columns[name], _DTYPES[COLUMNS[name]]).copy()  # the array may still grow

    def columns(self) -> Columns:
        """What the selection looks at."""
        return Columns(*(self.column(name) for name in Columns._fields))

    def entry(self, index: int) -> Entry:
        """Entry number `index` in the order of the files."""
        name, *captions = self.texts[index]
        value = {column: self._columns[column][index] for column in COLUMNS}
        return Entry(
            str(Path(self.roots[value["root"]], name)),
            tuple(captions),
            bool(value["is_image"]),
            value["num_frames"],
            value["fps"],
            value["start"],
            tuple(self._crops[4 * index : 4 * index + 4]),
            value["height"],
            value["width"],
            value["aesthetic"],
        )

    def set_length(self, index: int, num_frames: int, fps: float) -> None:
        """Fill in what entry number `index` lacks."""
        self._columns["num_frames"][index] = num_frames
        self._columns["fps"][index] = fps

    def add_file(self, root: str, path: Path) -> None:
        """Append the entries of a file, whose paths begin at `root`.

        Raises:
            InputError: no such file, another format, or not a list of entries.
        """
        self.roots.append(root)
        for place, entry in _entries(path):
            try:
                self._add(entry)
            except InputError as error:
                self._add_unreadable(f"{path}, {place}: {error}")

    def _add(self, entry: dict[str, Any] | Exception) -> None:
        if isinstance(entry, Exception):
            raise entry
        path, captions = entry.get("path"), entry.get("cap") or ()
        captions = [captions] if isinstance(captions, str) else list(_items(captions, "cap"))
        if not isinstance(path, str) or not path:
            raise InputError(f"path is {path!r}")
        if not all(isinstance(caption, str) for caption in captions):
            raise InputError("cap is not text")
        size = entry.get("resolution") or {}
        if not isinstance(size, dict):
            raise InputError(f"resolution is {size}")
        crop = entry.get("crop")
        crop = NO_CROP if crop is None else tuple(_whole(edge, "crop") for edge in _items(crop, "crop"))
        if len(crop) != 4 or (crop != NO_CROP and not (0 <= crop[0] < crop[1] and 0 <= crop[2] < crop[3])):
            raise InputError(f"crop is {crop}")
        suffix = path[path.rfind(".") :].lower()
        fps = _number(entry.get("fps"), "fps")
        if fps <= 0:
            raise InputError(f"fps is {fps}")
        num_frames = _whole(entry.get("num_frames") or 0, "num_frames")
        derived = 0 if num_frames > 0 else _length(fps, _number(entry.get("duration"), "duration"))
        cut = entry.get("cut")
        start = 0 if cut is None else _whole(next(iter(_items(cut, "cut")), None), "cut")
        if start < 0:
            raise InputError(f"cut is {cut}")
        aesthetic = entry.get("aesthetic")
        row = (
            len(self.roots) - 1,
            False,
            any(caption.strip() for caption in captions),
            suffix in _KNOWN,
            suffix in IMAGE_SUFFIXES and (suffix not in MAY_MOVE or num_frames <= 1),
            _whole(size.get("height") or 0, "resolution.height"),
            _whole(size.get("width") or 0, "resolution.width"),
            derived or num_frames,
            derived > 0,
            fps,
            start,
            _number(entry.get("aes") if aesthetic is None else aesthetic, "aesthetic"),
            _number(entry.get("motion"), "motion"),
            _number(entry.get("tech"), "tech"),
        )
        self._append(row, crop, (path, *(caption for caption in captions if caption.strip())))

    def _add_unreadable(self, what: str) -> None:
        if len(self.unreadable_named) < MAX_NAMED:
            self.unreadable_named.append(what)
        nan = float("nan")
        row = (len(self.roots) - 1, True, False, False, False, 0, 0, 0, False, nan, 0, nan, nan, nan)
        self._append(row, NO_CROP, ("",))

    def _append(self, row: tuple, crop: tuple[int, ...], texts: tuple[str, ...]) -> None:
        converted = [array(kind, [value]) for kind, value in zip(COLUMNS.values(), row)]  # all fit, or none
        crops = array("i", crop)
        for column, value in zip(self._columns.values(), converted):
            column.extend(value)
        self._crops.extend(crops)
        self.texts.append(texts)


COLUMNS = {  # name and type code of the module array
    "root": "i",
    "unreadable": "b",
    "has_caption": "b",
    "known_type": "b",
    "is_image": "b",
    "height": "i",
    "width": "i",
    "num_frames": "i",
    "derived": "b",  # num_frames is fps times duration
    "fps": "d",
    "start": "i",
    "aesthetic": "f",
    "motion": "f",
    "tech": "f",
}
_DTYPES = {"b": np.bool_, "h": np.int16, "i": np.int32, "f": np.float32, "d": np.float64}
_KNOWN = frozenset(VIDEO_SUFFIXES + IMAGE_SUFFIXES)


def read_annotations(source: str | Path, root: str | None = None) -> Annotations:
    """All entries behind `source`: a `.txt` with lines `root,file`, or one annotation file.

    A relative file or root of a `.txt` begins at the folder of that `.txt`.

    Args:
        root: where the paths of a single file begin; None: at its own folder.

    Raises:
        InputError: a file is missing, of another format, or empty.
    """
    source = Path(source)
    found = Annotations()
    if source.suffix.lower() == ".txt":
        for folder, path in _listed(source):
            found.add_file(folder, path)
    else:
        found.add_file(str(source.parent) if root is None else root, source)
    if not len(found):
        raise InputError(f"annotations {source}: got no entry, wanted one or more; check the file")
    return found


def annotation_files(source: str | Path | None) -> list[Path]:
    """The file itself, or those that the lines of a `.txt` name."""
    if source is None:
        return []
    source = Path(source)
    return [source] if source.suffix.lower() != ".txt" else [path for _, path in _listed(source)]


def _listed(source: Path) -> Iterator[tuple[str, Path]]:
    for number, line in read_lines(source, "annotations", "lines `root,annotation.json`"):
        root, comma, name = line.rpartition(",")
        if not comma:
            raise InputError(
                f"annotations {source}, line {number}: got {line!r}, wanted `root,annotation.json`"
            )
        yield str(listed_path(root.strip(), source)), listed_path(name.strip(), source)


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each entry stands, and the entry, or the error that keeps it from being read."""
    if not path.is_file() or path.suffix.lower() not in SUFFIXES:
        got = "no such file" if not path.is_file() else f"suffix {path.suffix!r}"
        raise InputError(f"annotations {path}: got {got}, wanted a file ending in {', '.join(SUFFIXES)}")
    return {".json": _json, ".jsonl": _jsonl, ".parquet": _parquet}[path.suffix.lower()](path)


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    entries = parse_json(path.read_bytes(), f"annotations {path}", "a JSON list of entries")
    if not isinstance(entries, list):
        raise InputError(f"annotations {path}: got {type(entries).__name__}, wanted a JSON list of entries")
    entries.reverse()
    for number in range(1, len(entries) + 1):
        yield f"entry {number}", _as_entry(entries.pop())  # given back as they are read


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.isspace():
                continue
            try:
                entry = _as_entry(parse_json(line, "the line"))
            except InputError as error:
                entry = error
            yield f"line {number}", entry


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise InputError(
            f"annotations {path}: reading Parquet needs pyarrow; pip install pyarrow, or use JSONL"
        ) from None
    try:
        with parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
            columns = [name for name in file.schema_arrow.names if name in _FIELDS]
            number = 0
            for batch in file.iter_batches(ROWS, columns=columns, use_threads=False):
                for entry in batch.to_pylist():
                    number += 1
                    yield f"row {number}", entry
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:  # the second: texts that are no UTF-8
        raise InputError(f"annotations {path}: got {error}, wanted a Parquet file; write it again") from None


_FIELDS = {
    *("path", "cap", "resolution", "num_frames", "fps", "duration", "cut", "crop"),
    *("aesthetic", "aes", "motion", "tech"),
}


def _length(fps: float, duration_s: float) -> int:
    """Number of frames, or 0 where that cannot be told: without a rate, the file itself says more."""
    num_frames = fps * duration_s
    return int(num_frames + 0.5) if 0.5 <= num_frames <= LARGEST else 0  # not NaN either


def _as_entry(entry: Any) -> Any:
    return entry if isinstance(entry, dict) else InputError(f"not an entry but {type(entry).__name__}")


def _items(value: Any, name: str) -> list:
    """The entries of a list.

    Raises:
        InputError: it is something else; texts and tables, which have items too, are refused.
    """
    if not isinstance(value, list | tuple):
        raise InputError(f"{name} is {value!r}, wanted a list")
    return list(value)


def _whole(value: Any, name: str) -> int:
    """A whole number that fits its column; texts of one and fractions as upstream's readers take them."""
    try:
        number = int(value)
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"{name} is {value!r}, wanted a whole number") from None
    if abs(number) > LARGEST:
        raise InputError(f"{name} is {value!r}, wanted at most {LARGEST}")
    return number


def _number(value: Any, name: str) -> float:
    try:
        return float("nan") if value is None else float(value)
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"{name} is {value!r}, wanted a number") from None
