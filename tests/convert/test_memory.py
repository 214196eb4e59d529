"""A file of 2 GB converts in less than 1 GB of memory, whatever the formats; one tensor may be larger."""

import sys

import pytest

from .helpers import command

LIMIT = 10**9
PEAK = """
import atexit
atexit.register(lambda: print("peak", next(l for l in open("/proc/self/status") if "VmHWM" in l).split()[1]))
"""
GENERATE = """
import sys, numpy as np
from pathlib import Path
from tools.convert.formats import FORMATS
from tools.convert.tensors import DTYPES, Tensor
class Made(Tensor):
    def pieces(self):
        for start in range(0, self.nbytes // 4, 2**21):
            count = min(2**21, self.nbytes // 4 - start)
            yield (np.arange(start, start + count, dtype=np.float32) / 7).tobytes()
sizes = {"big": (1100, 2**18)} if BIG else {f"x{i}": (64, 2**18) for i in range(17)}
sizes |= {f"y{i}": (64, 2**18) for i in range(15)}
tensors = {name: Made(DTYPES["float32"], shape) for name, shape in sizes.items()}
FORMATS[FORMAT].write(Path(PATH), tensors, {})
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc"),
]


@pytest.mark.parametrize(
    ("source", "destination", "options"),
    [
        pytest.param("in.pt", "out", ("--shard-gb", "0.5"), marks=pytest.mark.pt, id="pt to shards"),
        pytest.param(
            "in.pt", "out.ckpt", ("--dtype", "bfloat16"), marks=pytest.mark.pt, id="pt to ckpt, cast"
        ),
        pytest.param("in.safetensors", "out.ckpt", (), id="safetensors to ckpt"),
        pytest.param(
            "in.ckpt", "out", ("--dtype", "float16", "--allow-overflow"), id="ckpt to safetensors, cast"
        ),
        pytest.param("in.safetensors", "out.pt", (), marks=pytest.mark.pt, id="safetensors to pt"),
    ],
)
def test_two_gigabytes(tmp_path, source, destination, options):
    big = destination != "out.pt"  # torch.save needs memory for one tensor
    settings = f"BIG, FORMAT, PATH = {big}, {source.split('.')[1]!r}, {str(tmp_path / source)!r}\n"
    made = command(code=f"{settings}{GENERATE}\nsys.exit()")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / source).stat().st_size > 2e9
    done = command(tmp_path / source, tmp_path / destination, "--kind", "any", *options, code=PEAK)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split("peak ")[-1]) * 1024
    print(f"{source} to {destination} {' '.join(options)}: {peak / 1e6:.0f} MB")
    assert peak < LIMIT
