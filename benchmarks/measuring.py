"""CPU seconds and resident memory of this process, with the standard library alone."""

import ctypes
import time
from pathlib import Path


def cpu_seconds(run, *inputs, **options) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    run(*inputs, **options)
    return time.process_time() - start


def resident(key: str) -> float:
    """MiB of a memory line of this process (VmRSS: now, VmHWM: at most since the last reset). Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def peak(warm_up, run) -> float:
    """MiB that a call needs at most, beyond what was resident before it; only meaningful in a fresh process."""
    warm_up()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, which getrusage would inherit from the parent
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before
