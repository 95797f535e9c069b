"""What every benchmark shares: interleaved medians, a machine line, peak memory in a process of its own, one table.

seconds = interleaved({"ours": f, "theirs": g}, repeats=20)     {"ours": 0.0012, "theirs": 0.0031}
print(machine())
print(table(["call", "ms"], [["ours", "1.2"], ["theirs", "3.1"]]))
bytes = peak_memory("import torch; x = torch.zeros(1000, 1000)", "x @ x")
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

__all__ = ["interleaved", "machine", "peak_memory", "table"]

HERE = Path(__file__).resolve().parent
Call = Callable[[], object]


def interleaved(calls: dict[str, Call], repeats: int = 20, least: float = 0.0, device: str = "cpu") -> dict[str, float]:
    """Return the median seconds of each call, one sample of every call in turn, so that drift hits all alike.

    Args:
        calls: name to call.
        repeats: samples of each; one more, the first, warms up and is dropped.
        least: seconds that a sample should last: short calls are repeated within it.
        device: "cuda" times with events on the current stream, "cpu" with the clock.
    """
    sample = _cuda_sample if device.startswith("cuda") else _cpu_sample
    loops = {}
    for name, call in calls.items():
        call()
        loops[name] = max(1, min(1000, round(least / max(sample(call, 1), 1e-7)))) if least else 1
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name].append(sample(call, loops[name]))
    return {name: statistics.median(times) for name, times in seconds.items()}


def _cpu_sample(call: Call, loops: int) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        call()
    return (time.perf_counter() - start) / loops


def _cuda_sample(call: Call, loops: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(loops):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / loops


def machine() -> str:
    """Return the line under which every figure stands: processor, threads, load, GPU, versions."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.*)$", info.read_text(), re.MULTILINE)
        model = found[1] if found else model
    parts = [
        f"{model} ({os.cpu_count()} cores, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, "
        f"{torch.backends.cpu.get_cpu_capability()})",
        torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU",
        f"torch {torch.__version__}, Python {platform.python_version()}",
    ]
    return "; ".join(parts)


_PROBE = """
import re, sys
setup, call, device = sys.argv[1:]
names = {}
exec(setup, names)
run = compile(call, "<call>", "exec")
exec(run, names)
if device == "cuda":
    import torch
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    exec(run, names)
    torch.cuda.synchronize()
    print(torch.cuda.max_memory_allocated() - before)
else:
    def status(key):
        return 1024 * int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
    if "fastxai" in sys.modules:
        sys.modules["fastxai"].empty_cache()
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    exec(run, names)
    print(status("VmHWM") - before)
"""


def peak_memory(setup: str, call: str, device: str = "cpu") -> int:
    """Return the bytes by which the second run of a call raises memory at its peak, above what was held before it.

    A fresh process runs both statements, with this folder importable. On the CPU this is resident memory (Linux only),
    with blocks above 64 KiB mapped one by one so that what is freed is really returned, and without what fastxai keeps
    of the first run's; on CUDA PyTorch's own count.

    Args:
        setup: statements that make the names the call uses.
        call: the statement to measure; its first run, which loads and caches, is not counted.
        device: "cpu" or "cuda".

    Raises:
        RuntimeError: the process failed; the message holds its error output.
    """
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    run = subprocess.run(
        [sys.executable, "-c", _PROBE, setup, call, device],
        env=os.environ | malloc | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if run.returncode:
        raise RuntimeError(f"the measured process failed:\n{run.stderr}")
    return int(run.stdout.split()[-1])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned Markdown table, first column left, the others right."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: list[str]) -> str:
        padded = [f"{c:>{w}}" if i else f"{c:<{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths))
    return "\n".join([line(cells[0]), f"|{rule}|", *map(line, cells[1:])])
