"""What the gateway bench measures, each a process of its own: a trivial upstream, Codriver before it, and rivals.

Run as ``python -m codriver.bench.gateway_servers upstream|gateway|null PORT [UPSTREAM]``. The upstream is an asyncio
protocol on httptools that answers every request with the same bytes: one JSON body, or ``STREAM_CHUNKS`` events, each
written apart. ``gateway`` is what a vehicle runs: the gateway, the router with its link monitor, the ``openai`` engine
with the upstream as the cloud. ``null`` has the null engine in the cloud's place, and no link to watch.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httptools
import uvloop

from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.core.errors import EngineUnavailable
from codriver.core.messages import Policy
from codriver.engines.null import Null, NullConfig
from codriver.engines.openai import OpenAIConfig, OpenAIServer
from codriver.gateway import Gateway, GatewayConfig, serve
from codriver.observe.metrics import Metrics
from codriver.route.config import LinkConfig, RouteConfig
from codriver.route.hybrid import HybridEngine
from codriver.route.lineup import Lineup
from codriver.route.link import LinkMonitor, LinkView, SteadyLink

POLICY: Policy = "cloud-first"
STREAM_CHUNKS = 32
_BODY = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"auto","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"Hello there, driver."},"logprobs":null,"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":40,"completion_tokens":5,"total_tokens":45}}'
)
_EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"auto","choices":[{"index":0,'
    b'"delta":%b,"logprobs":null,"finish_reason":%b}]}\n\n'
)


def _chunked(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


_WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_BODY) + _BODY
_STREAM = [
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
    *[_chunked(_EVENT % (b'{"content":" word"}', b"null")) for _ in range(STREAM_CHUNKS - 1)],
    _chunked(_EVENT % (b"{}", b'"stop"')),
    _chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n",
]


class _Upstream(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        streamed = b'"stream":true' in self._body.replace(b": ", b":")
        self._body = b""
        for part in _STREAM if streamed else (_WHOLE,):
            self._transport.write(part)


async def _run_upstream(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Upstream, "127.0.0.1", port)
    await server.serve_forever()


async def _run_gateway(port: int, upstream: str) -> None:
    """As a vehicle is put together, with the cloud asked first and nothing on board."""
    config, metrics = GatewayConfig(port=port), Metrics()
    async with contextlib.AsyncExitStack() as stack:
        engine: Engine = Null(NullConfig(id="cloud", locality="cloud"))
        link: LinkView = SteadyLink()
        if upstream:

            def probe() -> Awaitable[float]:
                return server.probe(Deadline.after(LinkConfig().retry_s))

            link = monitor = LinkMonitor(probe, metrics=metrics)
            engine = server = OpenAIServer(OpenAIConfig(id="cloud", url=upstream, model="auto"), monitor)
            stack.push_async_callback(server.aclose)
            stack.callback(asyncio.create_task(monitor.run()).cancel)
        lineup = Lineup({"cloud": engine}, link, metrics=metrics)
        hybrid = HybridEngine(lineup, RouteConfig(policy=POLICY))
        listening = await serve(Gateway({"auto": hybrid}, "auto", config, metrics), config)
        await listening.until_signal()


# ---------------------------------------------------------------- started from the bench


@dataclass(frozen=True)
class Target:
    """A running system: its port and its process."""

    system: str
    port: int
    process: subprocess.Popen[bytes]

    def cpu_s(self) -> float:
        """CPU seconds used so far by the process and its children; 0.0 where there is no /proc."""
        ticks = 0
        for pid in _family(self.process.pid):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def _family(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *(grandchild for child in children for grandchild in _family(int(child)))]
    return [pid]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def pinned(core: int) -> list[str]:
    """The command's prefix that keeps it on one core, where the machine has that core and ``taskset``."""
    usable = shutil.which("taskset") and hasattr(os, "sched_getaffinity") and core in os.sched_getaffinity(0)
    return ["taskset", "-c", str(core)] if usable else []


@contextlib.contextmanager
def started(system: str, command: list[str], port: int, patience_s: float, env: dict[str, str]) -> Iterator[Target]:
    """The process, once its port answers; ended afterwards. Errors: :class:`EngineUnavailable` with its last words."""
    # A file, not a pipe: nobody would read the pipe, and a rival that logs much would wait for ever.
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env={**os.environ, **env}) as process,
    ):
        try:
            if not _answers(process, port, patience_s):
                said.seek(0)
                lines = said.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
                raise EngineUnavailable(f"{system} did not start: {lines[-1][:200]}", engine=system)
            yield Target(system, port, process)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _answers(process: subprocess.Popen[bytes], port: int, patience_s: float) -> bool:
    end_s = time.monotonic() + patience_s
    while time.monotonic() < end_s and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return True
        time.sleep(0.05)
    return False


def own_command(kind: str, port: int, upstream: int | None = None) -> list[str]:
    command = [sys.executable, "-m", "codriver.bench.gateway_servers", kind, str(port)]
    return command + ([f"http://127.0.0.1:{upstream}/v1"] if upstream else [])


def nginx_command(folder: Path, port: int, upstream: int) -> list[str] | None:
    """nginx with one worker and kept connections, as its manual advises for a proxy; ``None`` when it is not there."""
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        return None
    file = folder / "nginx.conf"
    file.write_text(
        f"worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log stderr error;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {folder}/body;\n"
        f"proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;\n"
        f"scgi_temp_path {folder}/s; upstream up {{ server 127.0.0.1:{upstream}; keepalive 64;"
        " keepalive_requests 1000000000; }\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://up; proxy_http_version 1.1;\n"
        'proxy_set_header Connection ""; proxy_buffering off; } } }\n'
    )
    return [binary, "-c", str(file), "-p", str(folder), "-e", "stderr"]


def litellm_command(folder: Path, port: int, upstream: int) -> list[str] | None:
    """LiteLLM's proxy with one worker from ``$CODRIVER_RIVALS``; ``None`` when it is not there."""
    rivals = os.environ.get("CODRIVER_RIVALS", "")
    binary = Path(rivals) / "bin" / "litellm"
    if not rivals or not binary.is_file():
        return None
    file = folder / "litellm.yaml"
    file.write_text(
        "model_list:\n  - model_name: auto\n    litellm_params:\n      model: openai/auto\n"
        f"      api_base: http://127.0.0.1:{upstream}/v1\n      api_key: none\n"
        # No key, as on our side; it will not start otherwise.
        "general_settings:\n  dangerously_permit_weak_or_unset_master_key: true\n"
    )
    return [str(binary), "--config", str(file), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]


def main(kind: str, port: int, upstream: str = "") -> None:
    with contextlib.suppress(KeyboardInterrupt):
        if kind == "upstream":
            uvloop.run(_run_upstream(port))
        else:
            uvloop.run(_run_gateway(port, upstream))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:4])
