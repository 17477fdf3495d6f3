"""CPU seconds and memory of one call, by the standard library: the reference's interpreter does not have gimkit."""

import ctypes
import sys
import time
from pathlib import Path


def cpu_seconds(run, *inputs, **options) -> float:
    """CPU seconds of run(*inputs, **options).

    >>> cpu_seconds(sum, range(10)) >= 0
    True
    """
    start = time.process_time()
    run(*inputs, **options)
    return time.process_time() - start


def peak(warm_up, run) -> float:
    """The largest growth of resident memory in MiB during run(), after warm_up(); meaningful in a new process only."""
    warm_up()
    return growing(run)[1]


def growing(run, *arguments, **options):
    """The result of run(...), and the largest growth of resident memory meanwhile in MiB (NaN except on Linux).

    >>> result, mib = growing(bytes, 2**24)
    >>> len(result)
    16777216

    Memory that earlier calls freed, and the process kept, is returned to the system first. Earlier calls still have
    some influence: on mini-llama the growth of one gradient method was within 15% of that in a new process, that of
    "exact" up to 1.5 times as large (134 and 176 instead of 114).
    """
    if not sys.platform.startswith("linux"):
        return run(*arguments, **options), float("nan")
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, which getrusage would inherit from the parent
    before = _resident("VmRSS")
    result = run(*arguments, **options)
    return result, _resident("VmHWM") - before


def cost(run, model, *arguments, **options) -> tuple:
    """The result of run(model, ...), and {"seconds", "cpu_seconds", "peak_mib"}: on the GPU all memory in use.

    >>> cost(gimkit.score_nodes, model, task[:2])[1].keys()
    dict_keys(['seconds', 'cpu_seconds', 'peak_mib'])
    """
    device = next(model._module.parameters()).device
    on_gpu = device.type == "cuda"
    if on_gpu:
        import torch

        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start, cpu = time.perf_counter(), time.process_time()
    result, peak = growing(run, model, *arguments, **options)
    if on_gpu:
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) / 2**20
    return result, {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu, "peak_mib": peak}


def free_mib(model) -> float:
    """Memory that is free where a model is, in MiB."""
    device = next(model._module.parameters()).device
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0] / 2**20
    lines = Path("/proc/meminfo").read_text().splitlines() if sys.platform.startswith("linux") else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable")), 4096.0)


def _resident(key: str) -> float:
    """A memory line of this process in MiB: VmRSS is the present size, VmHWM the largest since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))
