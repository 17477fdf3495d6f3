"""CPU seconds and memory of one call, with the standard library alone: the reference's interpreter has no gimkit."""

import runpy
import time
from pathlib import Path

growing = runpy.run_path(str(Path(__file__).parent.parent / "gimkit" / "memory.py"))["growing"]


def cpu_seconds(run, *inputs, **options) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    run(*inputs, **options)
    return time.process_time() - start


def peak(warm_up, run) -> float:
    """MiB that a call needs at most, beyond what was resident before it; only meaningful in a fresh process."""
    warm_up()
    return growing(run)[1]
