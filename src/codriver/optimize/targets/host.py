"""This machine as a target: what its memory lets through, how fast llama.cpp multiplies on it, and what it has.

``python -m codriver.optimize.targets.host THREADS REPEATS`` measures and prints JSON; :func:`measure` runs that in a
process of its own and keeps it, as a profile (``host.toml``) and with the spread over the repeats (``host.json``).
Repeats are interleaved: each test once, then all of them again. Memory: STREAM's rule (McCalpin 1995) that an array is
at least four times the last-level cache. Times are the process's own (``matmul.busy_s``), so that others on the machine
cost a figure less; the load is kept beside it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np

from codriver.core.errors import SetupError

from ..saving import save
from .matmul import Shape, busy_s, product
from .target import home

KINDS = ("F32", "F16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "Q3_K", "Q2_K")
_ONE = Shape(rows=512, width=2048, times=8)  # small enough for a cache
_MANY = Shape(rows=512, width=2048, tokens=128)
_LARGE = Shape(rows=32768, width=2048)  # 71 MB as Q8_0
_LEAST_BYTES = 64 << 20
# Additions and multiplications of int8 in a cycle of one core: a fused product and sum on each of two ports (VNNI of
# 512 and of 256 bits), and instructions for the two apart without it (AVX2). Nominal: scaling by it is an estimate.
_OPS_PER_CYCLE = (("avx512_vnni", 256.0), ("avx_vnni", 128.0), ("avx2", 64.0), ("asimddp", 64.0), ("sse4_1", 32.0))


class Spread(msgspec.Struct, frozen=True):
    """A figure over ``n`` repeats: its median, the slowest and the fastest of them."""

    median: float
    low: float
    high: float
    n: int
    unit: str


class HostFigures(msgspec.Struct, frozen=True):
    """What was measured. ``one`` and ``many``: by type, 10^9 operations a second for one token and for many at once."""

    machine: str
    started: str
    load: float
    threads: int
    cores: int
    ghz: float
    memory_gb: float
    flags: tuple[str, ...]
    zones: dict[str, float]
    bandwidth: dict[str, Spread]
    one: dict[str, Spread]
    many: dict[str, Spread]

    @property
    def peak_gops(self) -> float:
        """What the cores could do of int8 by their data sheet; 0 when the clock or the instructions are not known."""
        ops = next((ops for flag, ops in _OPS_PER_CYCLE if flag in self.flags), 0.0)
        return self.threads * self.ghz * ops


def measure(threads: int, repeats: int) -> HostFigures:
    """Measure and keep it below :func:`~codriver.optimize.targets.target.home`. Errors: :class:`SetupError`."""
    command = [sys.executable, "-m", "codriver.optimize.targets.host", str(threads), str(repeats)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise SetupError(f"This machine could not be measured: {lines[-1][:200]}")
    found = msgspec.json.decode(done.stdout, type=HostFigures)
    keep(found)
    return found


def kept() -> HostFigures | None:
    """What was measured before, or ``None``."""
    with contextlib.suppress(FileNotFoundError):
        return msgspec.json.decode((home() / "host.json").read_bytes(), type=HostFigures)
    return None


def keep(found: HostFigures) -> None:
    """Errors: those of :func:`save`."""
    save(home() / "host.json", msgspec.json.encode(found).decode())
    save(home() / "host.toml", profile(found))


def profile(found: HostFigures) -> str:
    """The profile of this machine as TOML."""
    source = f"measured {found.started}, load {found.load:.1f}, medians of {found.bandwidth['read'].n}"
    figures = {
        "memory.total_gb": found.memory_gb,
        "memory.usable_gb": found.memory_gb,
        "memory.bandwidth_gbps": found.bandwidth["read"].median,
        "cpu.cores": found.cores,
        "cpu.ghz": found.ghz,
        "cpu.int8_gops": found.many["Q8_0"].median,
        "cpu.fp16_gflops": found.many["F16"].median,
        "cpu.fp32_gflops": found.many["F32"].median,
    }
    quoted = {key: msgspec.json.encode(text).decode() for key, text in (("soc", found.machine), ("source", source))}
    lines = ["[about]", f"soc = {quoted['soc']}", "", "[about.sources]"]
    lines += [f'"{key}" = {quoted["source"]}' for key, value in figures.items() if value]
    for section in ("memory", "cpu"):
        lines += ["", f"[{section}]"]
        for key, value in figures.items():
            if key.startswith(section + ".") and value:
                number = f"{value}" if isinstance(value, int) else f"{value:.4g}"
                lines.append(f"{key.partition('.')[2]} = {number}")
    flags = [flag for flag in found.flags if any(flag == known for known, _ in _OPS_PER_CYCLE)]
    lines.append(f"flags = {msgspec.json.encode(flags).decode()}")
    usable = '["llama_cpp", "onnx_runtime", "openvino", "executorch", "litert"]'
    return "\n".join([*lines, "", "[runtimes]", f"usable = {usable}", ""])


# ---------------------------------------------------------------- in the process of its own


def main(threads: int, repeats: int) -> HostFigures:
    tests: dict[str, Callable[[], float]] = {}
    amounts: dict[str, tuple[float, str]] = {}
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        for name, (run, moved) in _streams(pool, threads).items():
            tests[name], amounts[name] = run, (moved / 1e9, "GB/s")
        for kind, shape in (("Q8_0", _LARGE), ("F16", _LARGE)):
            run = stack.enter_context(product(kind, shape, threads))
            row_bytes = shape.operations / 2 * {"Q8_0": 34 / 32, "F16": 2.0}[kind]
            tests[f"product {kind}"], amounts[f"product {kind}"] = run, (row_bytes / 1e9, "GB/s")
        for kind in KINDS:
            for name, shape in (("one", _ONE), ("many", _MANY)):
                tests[f"{name} {kind}"] = stack.enter_context(product(kind, shape, threads))
                amounts[f"{name} {kind}"] = (shape.operations / 1e9, "Gop/s")
        taken: dict[str, list[float]] = {name: [] for name in tests}
        for number in range(repeats + 1):
            for name, test in tests.items():
                seconds = test()
                if number:  # the first is to warm up
                    taken[name].append(seconds)
    rates = {name: _spread([amounts[name][0] / s for s in taken[name]], amounts[name][1]) for name in tests}
    return HostFigures(
        machine=machine_name(),
        started=time.strftime("%Y-%m-%dT%H:%M:%S"),
        load=os.getloadavg()[0],
        threads=threads,
        cores=os.cpu_count() or 1,
        ghz=_ghz(),
        memory_gb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        flags=_flags(),
        zones=temperatures(),
        bandwidth={
            name.replace("product ", "product_"): spread for name, spread in rates.items() if spread.unit == "GB/s"
        },
        one={kind: rates[f"one {kind}"] for kind in KINDS},
        many={kind: rates[f"many {kind}"] for kind in KINDS},
    )


def _streams(pool: ThreadPoolExecutor, threads: int) -> dict[str, tuple[Callable[[], float], float]]:
    """Reading alone, and STREAM's copy and add, each with the bytes that it moves, on all threads at once."""
    length = max(_LEAST_BYTES, 4 * _last_cache_bytes()) // 4 // threads * threads
    first, second, third = (np.full(length, value, np.float32) for value in (1.0, 2.0, 0.0))
    cuts = [slice(at * length // threads, (at + 1) * length // threads) for at in range(threads)]

    def on_all(one: Callable[[slice], object]) -> Callable[[], float]:
        def run() -> float:
            began_s = busy_s(threads)
            list(pool.map(one, cuts))
            return busy_s(threads) - began_s

        return run

    return {
        "read": (on_all(lambda cut: np.dot(first[cut], first[cut])), 4.0 * length),
        "copy": (on_all(lambda cut: np.copyto(third[cut], first[cut])), 8.0 * length),
        "add": (on_all(lambda cut: np.add(first[cut], second[cut], out=third[cut])), 12.0 * length),
    }


def _spread(values: list[float], unit: str) -> Spread:
    return Spread(statistics.median(values), min(values), max(values), len(values), unit)


def _last_cache_bytes() -> int:
    sizes = [0]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with contextlib.suppress(OSError, ValueError):
            text = file.read_text().strip()
            sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}.get(text[-1], 1))
    return max(sizes)


def _cpuinfo() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return ""


def _field(*names: str) -> str:
    for line in _cpuinfo().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in names:
            return value.strip()
    return ""


def machine_name() -> str:
    """The processor as it calls itself, and how many cores there are."""
    return f"{_field('model name', 'Model') or platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _flags() -> tuple[str, ...]:
    return tuple(sorted(_field("flags", "Features").split()))


def _ghz() -> float:
    with contextlib.suppress(OSError, ValueError):
        return int(Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").read_text()) / 1e6
    with contextlib.suppress(ValueError):
        return float(_field("cpu MHz")) / 1e3
    return 0.0


def temperatures() -> dict[str, float]:
    """Degrees Celsius by thermal zone; empty where the kernel shows none."""
    found: dict[str, float] = {}
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        with contextlib.suppress(OSError, ValueError):
            found[(zone / "type").read_text().strip()] = int((zone / "temp").read_text()) / 1e3
    return found


def frequencies_ghz() -> list[float]:
    """The cores' clocks as they are now; empty where the kernel does not show them."""
    found = []
    for file in sorted(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(file.read_text()) / 1e6)
    return found


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode(main(int(sys.argv[1]), int(sys.argv[2]))).decode())
