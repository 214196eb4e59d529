"""The machine a program runs on, as far as a report needs it."""

import platform
import resource
from pathlib import Path


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
    peaks = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    # getrusage also counts the process that started this one, until this program replaced it
    return next(peaks, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024
