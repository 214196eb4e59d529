"""`dump CONFIG --tree ms|pt --out FILE`: run stages on one machine, with only that tree's requirements
installed.
"""

import json
import time
from collections.abc import Callable
from typing import Any

from common.cli import commit
from common.errors import InputError

from .plan import DumpConfig
from .recording import Recorder, Recording
from .stages import STAGE_FUNCTIONS, Lab
from .tree import Tree


def dump(config: DumpConfig, tree: Tree, tamper: Callable[[Any], None] | None = None) -> Recording:
    """Run the config's stages in order; `tamper` changes the transformer once it is built (see selftest).

    Raises:
        InputError: a stage that cannot run here, with the reason; nothing is skipped silently.
    """
    if config.dtype == "float64" and tree.name != "pt":
        raise InputError("dump: float64 is an oracle and runs in the pt tree only; use --tree pt")
    lab, tensors, seconds = Lab(tree, config, tamper), {}, {}
    for stage in config.stages:
        recorder, start = Recorder(stage, config.seed), time.perf_counter()
        STAGE_FUNCTIONS[stage](lab, recorder)
        tensors |= recorder.tensors
        seconds[stage] = round(time.perf_counter() - start, 2)
    facts = {
        "tree": tree.name,
        "device": tree.runtime.device_name(tree.device),
        "dtype": config.dtype,
        "versions": tree.runtime.versions(),
        "modes": {"ms": "outputs and gradients: graph; activations: PyNative", "pt": "eager"}[tree.name],
        "float32": tree.runtime.exact_float32(tree.device),
        "determinism": "inputs and random weights: Philox by name; kernels: the framework's defaults",
        "commit": commit(),
        "seconds": seconds,
        "config": json.loads(config.model_dump_json()),
    }
    return Recording(tensors, facts)
