"""python -m tools.convert SOURCE DESTINATION [--kind ...] [--dtype ...] [--shard-gb N] ...

Checkpoints of PyTorch (.pt .pth .bin .ckpt), MindSpore (.ckpt) and safetensors into one another; the networks
that judge videos (I3D, LPIPS) from the files they are published in.
docs/convert.md has a command for each released file.

Exit code 0: done and read back; 2: could not, nothing was written; 130: interrupted, nothing was written.
"""

import argparse
import io
import signal
import sys
from pathlib import Path

from common.errors import InputError

from .casting import FLOATS
from .formats import FORMATS
from .job import Job, convert
from .kinds import KINDS


def main() -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be no text
    try:
        convert(parse(sys.argv[1:]), warn=lambda line: print(f"warning: {line}", file=sys.stderr))
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def parse(arguments: list[str]) -> Job:
    """The command line as a job; a mistake in it ends the program with exit code 2."""
    description = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m tools.convert", None, __doc__, formatter_class=description)
    add = parser.add_argument
    add("source", type=Path, help="a file, an index, or a model directory in any sharding")
    add("destination", type=Path, help="a file by its suffix, or a model directory")
    add(
        "--also",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="another part of the model, as the heads of LPIPS; repeatable",
    )
    add("--to", choices=tuple(FORMATS), help="format of a directory's weights (default safetensors)")
    add("--kind", choices=("auto", *KINDS), default="auto", help="which model it must be; any: no check")
    add("--dtype", choices=("keep", *FLOATS[1:]), default="keep", help="cast floating-point tensors")
    add("--shard-gb", type=float, metavar="N", help="shards of at most N * 10^9 bytes (default one file)")
    add("--config", type=Path, metavar="FILE", help="the model's config.json, if not beside the source")
    add("--no-ema", dest="use_ema", action="store_false", help="trained weights, not their average")
    add(
        "--drop",
        action="append",
        default=[],
        metavar="PREFIX",
        help="leave out names that begin so; repeatable",
    )
    add("--allow-overflow", action="store_true", help="store infinity for values too large for the type")
    values = vars(parser.parse_args(arguments))
    return Job(**{**values, "drop": tuple(values["drop"]), "also": tuple(values["also"])})


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as for Ctrl-C
    sys.exit(main())
