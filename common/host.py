"""The machine a program runs on, as far as a report needs it, and how its devices are called."""

import platform
from pathlib import Path

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None


def kind_of(device: str) -> str:
    """The kind of a device: "cuda" of "cuda:1"."""
    return device.partition(":")[0]


def number_of(device: str, otherwise: int) -> int:
    """The number of a device: 1 of "cuda:1"."""
    number = device.partition(":")[2]
    return int(number) if number else otherwise


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def peak_process_memory_mb() -> float:
    """The largest resident size of this process so far, in MiB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    if resource is not None:  # it also counts the process that started this one, until this one replaced it
        unit = 1024 if platform.system() == "Darwin" else 1  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit / 1024
    import psutil

    return psutil.Process().memory_info().peak_wset / 2**20  # type: ignore[attr-defined] Windows alone has it
