"""What the converter's tests share: tensors of every element type, files made and read by other libraries."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors import TensorSpec, serialize_file

from tests.recorded import recorded
from tools.convert.formats import format_of
from tools.convert.job import Job, convert
from tools.convert.tensors import DTYPES

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {"matrix": (3, 5), "scalar": (), "empty": (0, 4), "vector": (7,)}
Raw = tuple[str, tuple[int, ...], bytes]  # element type, shape, bytes


def every_dtype() -> dict[str, Raw]:
    """Random bits, hence also NaNs with payloads and subnormal numbers, in every type and shape."""
    rng = np.random.default_rng(0)
    tensors = {}
    for dtype in DTYPES.values():
        for name, shape in SHAPES.items():
            data = rng.integers(0, 256, int(np.prod(shape)) * dtype.size, np.uint8)
            data = data & 1 if dtype.name == "bool" else data
            tensors[f"{dtype.name}.{name}"] = (dtype.name, shape, data.tobytes())
    return tensors


def raw(arrays: dict[str, np.ndarray]) -> dict[str, Raw]:
    return {name: (array.dtype.name, array.shape, array.tobytes()) for name, array in arrays.items()}


def write_safetensors(path: Path, tensors: dict[str, Raw], metadata: dict[str, str] | None = None) -> Path:
    """Through the safetensors library."""
    buffers = {name: np.frombuffer(data or b"\0", np.uint8) for name, (_, _, data) in tensors.items()}
    specs = {
        name: TensorSpec(dtype=dtype, shape=shape, data_ptr=buffers[name].ctypes.data, data_len=len(data))
        for name, (dtype, shape, data) in tensors.items()
    }
    serialize_file(specs, str(path), metadata)
    return path


def read_raw(path: Path) -> dict[str, Raw]:
    """All tensors of a file, through the converter's reader."""
    tensors = format_of(path).read(path).tensors
    return {
        ".".join(map(str, keys)): (t.dtype.name, t.shape, b"".join(t.pieces())) for keys, t in tensors.items()
    }


def run(source: Path, destination: Path, **options) -> list[str]:
    """Convert in this process; returns what was told."""
    told: list[str] = []
    convert(Job(source=source, destination=destination, **options), told.append, told.append)
    return told


def command(*arguments: object, code: str = "") -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, after `code` has prepared it."""
    return subprocess.run(
        python(*arguments, code=code), cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def python(*arguments: object, code: str = "") -> list[str]:
    """The words that start it."""
    program = f"import sys\n{code}\nfrom tools.convert.__main__ import main\nsys.exit(main())"
    return [sys.executable, "-c", program, *map(str, arguments)]


def temporary_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*"))


def golden(name: str, model: str = "") -> tuple[dict[str, np.ndarray], dict]:
    """Real parameter names: the weights and the config of (one model of) a recorded case."""
    case = recorded(name)
    config = json.loads(json.dumps(case.record.get("full_config") or case.record["config"]))
    weights = dict(case.weights_of(model) if model else case.stored_weights)
    return weights, config[model] if model else config


def write_config(folder: Path, config: dict) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "config.json"
