"""A load on one HTTP address from kept connections: by ``wrk`` where it is installed, else by a small asyncio client.

Latency is from sending a request to the last byte of its answer. The asyncio client is slower than what it measures
at many connections, so its requests a second are a lower bound; results say which of the two was used.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = """
wrk.method = "POST"
wrk.body = %s
wrk.headers["content-type"] = "application/json"
done = function(summary, latency, requests)
  local failed = summary.errors.status + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format('\\nRESULT {"p50_ms": %%f, "p99_ms": %%f, "requests": %%d, "seconds": %%f, "failed": %%d}\\n',
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, summary.requests, summary.duration / 1e6, failed))
end
"""


@dataclass(frozen=True)
class Load:
    """What one run saw; ``failed`` counts answers other than 2xx and 3xx, and broken connections."""

    p50_ms: float
    p99_ms: float
    requests: int
    seconds: float
    failed: int


def generator() -> str:
    """Which load generator this machine has: ``wrk`` or ``asyncio``."""
    return "wrk" if shutil.which("wrk") else "asyncio"


def press(port: int, body: bytes, connections: int, seconds: float, prefix: list[str] | None = None) -> Load:
    """POST ``body`` to ``/v1/chat/completions`` on loopback for ``seconds``. ``prefix`` pins wrk to a core."""
    if generator() == "asyncio":
        return asyncio.run(_press(port, body, connections, seconds))
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "load.lua"
        script.write_text(_SCRIPT % json.dumps(body.decode()))
        command = [
            *(prefix or []),
            "wrk",
            "-t1",
            f"-c{connections}",
            "--timeout=30s",
            f"-d{max(1, round(seconds))}s",
            "-s",
            str(script),
        ]
        said = subprocess.run(
            [*command, f"http://127.0.0.1:{port}/v1/chat/completions"], capture_output=True, text=True, check=True
        )
    return Load(**json.loads(said.stdout.partition("RESULT ")[2]))


async def _press(port: int, body: bytes, connections: int, seconds: float) -> Load:
    start_s = time.perf_counter()
    runs = await asyncio.gather(*(_one(port, body, start_s + seconds) for _ in range(connections)))
    taken_ms = sorted(ms for run, _ in runs for ms in run)
    seconds = time.perf_counter() - start_s
    failed = sum(failed for _, failed in runs)
    return Load(_at(taken_ms, 0.5), _at(taken_ms, 0.99), len(taken_ms), seconds, failed)


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


async def _one(port: int, body: bytes, end_s: float) -> tuple[list[float], int]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    request, taken_ms, failed = head % len(body) + body, [], 0
    while (sent_s := time.perf_counter()) < end_s:
        writer.write(request)
        fields = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b"\r\ncontent-length: " in fields:
            await reader.readexactly(int(fields.partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]))
        else:
            await reader.readuntil(b"\r\n0\r\n\r\n")
        taken_ms.append((time.perf_counter() - sent_s) * 1000)
        failed += not fields.startswith((b"http/1.1 2", b"http/1.1 3"))
    writer.close()
    return taken_ms, failed
