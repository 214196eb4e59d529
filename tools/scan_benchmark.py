"""How long the scan of many annotations takes, and how much memory.

python -m tools.scan_benchmark --entries 1000000     generates JSONL and Parquet files and scans each
python -m tools.scan_benchmark --scan FILE           scans one file
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from common.config import build
from common.data.annotated import AnnotatedClips
from common.data.t2v_config import T2VDataConfig
from common.host import cpu_name, peak_process_memory_mb
from common.noise import generator

WORDS, VOCABULARY, CHUNK = 90, 8000, 10_000
SIZES = ((720, 1280), (1080, 1920), (480, 854), (1280, 720), (480, 640), (2160, 3840), (240, 320))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.scan_benchmark",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--scan", metavar="FILE", help="scan this file instead")
    parser.add_argument("--brief", action="store_true", help="with --scan: one line without the report")
    args = parser.parse_args()
    if args.scan:
        print(scan(Path(args.scan), args.brief))
        return 0
    print(f"{args.entries} entries with captions of {WORDS} words; {cpu_name()}")
    with tempfile.TemporaryDirectory() as folder:
        for write in (write_jsonl, write_parquet):
            path = write(Path(folder), args.entries)
            # in a process of its own, so that its peak is that of the scan
            subprocess.run(
                [sys.executable, "-m", "tools.scan_benchmark", "--brief", "--scan", path], check=True
            )
            path.unlink()
    return 0


def scan(path: Path, brief: bool) -> str:
    """Scan a file as training does: read, judge, group, deal the first epoch, look one entry up."""
    config = build(
        T2VDataConfig,
        {"annotations": str(path), "sizes": {"max_tokens": 924, "min_tokens": 400}},
        where="benchmark",
    )
    start = time.perf_counter()
    clips = AnnotatedClips(config, 8, seed=0)
    report = clips.report()
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    clips.item(0, 0)
    first_ms = 1000 * (time.perf_counter() - start)
    line = (
        f"{path.name}: {path.stat().st_size / 2**20:.0f} MiB, {report.scanned} entries, {report.kept} kept: "
        f"{seconds:.1f} s, first clip found in {first_ms:.0f} ms, peak {peak_process_memory_mb():.0f} MiB"
    )
    return line if brief else f"{line}\n{report}"


def write_jsonl(folder: Path, count: int) -> Path:
    """`count` entries, one a line."""
    path = folder / "annotations.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for entry in entries(count):
            file.write(json.dumps(entry) + "\n")
    return path


def write_parquet(folder: Path, count: int) -> Path:
    """The same entries as pyarrow writes them by default: in one group of rows up to a million."""
    import pyarrow as pa
    from pyarrow import parquet

    path, tables, rest = folder / "annotations.parquet", [], entries(count)
    while rows := [*islice(rest, CHUNK)]:
        tables.append(pa.Table.from_pylist(rows))
    parquet.write_table(pa.concat_tables(tables), path)
    return path


def entries(count: int) -> Iterator[dict]:
    """Made-up entries: frequent and rare words as in a language, usual sizes and rates, some faults."""
    rng = generator(0, 0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = np.array(["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(VOCABULARY)])
    frequency = 1 / np.arange(2, VOCABULARY + 2)
    frequency /= frequency.sum()
    for first in range(0, count, CHUNK):
        text = words[rng.choice(VOCABULARY, (CHUNK, WORDS), p=frequency)]
        size, num_frames = rng.integers(len(SIZES), size=CHUNK), rng.integers(20, 600, CHUNK)
        fps, score = rng.choice((24.0, 25.0, 29.97, 30.0, 60.0), CHUNK), rng.normal(5, 0.7, (CHUNK, 3))
        for row in range(min(CHUNK, count - first)):
            height, width = SIZES[size[row]]
            yield {
                "path": f"clips/{first + row:08d}.mp4",
                "cap": [" ".join(text[row])] if row % 100 else [],
                "resolution": {"height": height, "width": width},
                "num_frames": int(num_frames[row]),
                "fps": float(fps[row]),
                "aesthetic": round(float(score[row, 0]), 3),
                "cut": [0, int(num_frames[row])],
                "crop": [0, width, 0, height],
                "motion": round(float(score[row, 1]), 3),
                "tech": round(float(score[row, 2]), 3),
            }


if __name__ == "__main__":
    sys.exit(main())
