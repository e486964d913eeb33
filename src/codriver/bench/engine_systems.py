"""What the engine bench measures: engines through their contract, and a plain llama.cpp server in its own process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import aiohttp

from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.core.errors import EngineUnavailable
from codriver.core.messages import Usage, parse_chat
from codriver.core.wire import SseParser, decode_chunk
from codriver.engines.llama_cpp_server import thread_counts

# The rival: nothing but the wheel, its own HTTP server, and the settings that any comparison has to fix.
_PLAIN_SERVER = """
import sys, time, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, slots, context, single, many, batch = sys.argv[1], *map(int, sys.argv[2:7])
p.hostnames, p.port, p.n_parallel, p.n_ctx = ["127.0.0.1"], 0, slots, slots * context
p.cpuparams.n_threads, p.cpuparams_batch.n_threads = single, many
p.n_batch = p.n_ubatch = batch
p.use_jinja, p.warmup, p.verbosity = True, True, 0
server = xllamacpp.Server(p)
print(server.listening_address, flush=True)
sys.stdin.read()
"""
_ENGINE_PROCESS = """
import asyncio, sys
from pathlib import Path
from codriver.engines.llama_cpp import LlamaCpp
from codriver.engines.llama_cpp_config import LlamaCppConfig
async def main():
    slots, context, _, _, batch = map(int, sys.argv[2:7])
    engine = await LlamaCpp.start(LlamaCppConfig(
        model=Path(sys.argv[1]), slots=slots, context_tokens=context, batch_tokens=batch))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await engine.aclose()
asyncio.run(main())
"""


_GOODBYE_S = 5.0


@dataclass(frozen=True)
class Setup:
    """What every system is started with. ``threads``: for one token at a time, and for batches."""

    model: Path
    slots: int = 4
    context_tokens: int = 2048
    threads: tuple[int, int] = field(default_factory=thread_counts)
    batch_tokens: int = 512

    def arguments(self) -> list[str]:
        numbers = (self.slots, self.context_tokens, *self.threads, self.batch_tokens)
        return [str(self.model), *map(str, numbers)]


@dataclass
class Heard:
    """One streamed answer: when it was asked, when each piece of text came (seconds), and what it said."""

    asked_s: float
    pieces_s: list[float] = field(default_factory=list)
    text: str = ""
    usage: Usage = field(default_factory=Usage)

    @property
    def ttft_ms(self) -> float:
        return (self.pieces_s[0] - self.asked_s) * 1e3

    @property
    def cached_tokens(self) -> int:
        details = self.usage.prompt_tokens_details
        return details.cached_tokens if details else 0


class System(Protocol):
    name: str

    async def ask(self, body: bytes) -> Heard:
        """The answer to a chat completions body."""
        ...


class EngineSystem:
    """An engine through its contract."""

    def __init__(self, name: str, engine: Engine) -> None:
        self.name = name
        self.engine = engine

    async def ask(self, body: bytes) -> Heard:
        heard = Heard(time.perf_counter())
        async for chunk in self.engine.generate(parse_chat(body), Deadline.never()):
            if text := chunk.text():
                heard.pieces_s.append(time.perf_counter())
                heard.text += text
            heard.usage = chunk.usage or heard.usage
        return heard


class PlainServer:
    """A llama.cpp server over loopback TCP, asked by a bare HTTP client."""

    def __init__(self, name: str, url: str, pid: int, session: aiohttp.ClientSession) -> None:
        self.name = name
        self.pid = pid
        self._url = url + "/v1/chat/completions"
        self._session = session

    async def ask(self, body: bytes) -> Heard:
        heard, parser = Heard(time.perf_counter()), SseParser()
        async with self._session.post(self._url, data=body) as response:
            async for data in response.content.iter_any():
                for payload in parser.feed(data):
                    if payload != b"[DONE]":
                        chunk = decode_chunk(payload)
                        if text := chunk.text():
                            heard.pieces_s.append(time.perf_counter())
                            heard.text += text
                        heard.usage = chunk.usage or heard.usage
        return heard


@asynccontextmanager
async def child(script: str, setup: Setup, waits: str | None) -> AsyncIterator[tuple[int, str]]:
    """A Python process that prints one line when it is ready and ends when its input does: its id and that line.

    ``waits`` is its OMP_WAIT_POLICY; ``None`` is libgomp's own default.
    """
    env = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        *setup.arguments(),
        env={**env, **({"OMP_WAIT_POLICY": waits} if waits else {})},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode().strip()
        if not line:
            raise EngineUnavailable("A process of the engine bench ended before it was ready.")
        yield process.pid, line
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), _GOODBYE_S)
        except TimeoutError:
            process.kill()
            await process.wait()


@asynccontextmanager
async def plain_server(name: str, setup: Setup, waits: str | None) -> AsyncIterator[PlainServer]:
    connector = aiohttp.TCPConnector(force_close=True)
    async with child(_PLAIN_SERVER, setup, waits) as (pid, url), aiohttp.ClientSession(connector=connector) as session:
        yield PlainServer(name, url, pid, session)


@asynccontextmanager
async def engine_process(setup: Setup) -> AsyncIterator[int]:
    """Our engine in a process of its own, for its memory."""
    async with child(_ENGINE_PROCESS, setup, None) as (pid, _):
        yield pid


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB (10^6 bytes), the mapped model included."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def chat_body(messages: list[dict[str, str]], max_tokens: int, *, to_the_end: bool = False) -> bytes:
    """A greedy streaming request; ``to_the_end`` makes llama.cpp use all ``max_tokens``."""
    body: dict[str, object] = {
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if to_the_end:
        body["ignore_eos"] = True
    return json.dumps(body).encode()
