"""One runtime with one model, in a process of its own: it does what is asked of it on standard input, and says how long
it took. Run by ``engines/tuning.py`` as ``python -m codriver.engines.tuning_process RUNTIME FILE CONTEXT THREADS``.

Each line in is a task, each line out its result, as JSON; the first line out says that the engine is ready.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.core.errors import CodriverError
from codriver.core.messages import ChatRequest, Usage, parse_chat

from .registry import ENGINES
from .tuning_set import passage

# Where each runtime's settings are; all of them have an id, a model, a context and threads.
CONFIGS = {
    "llama_cpp": "codriver.engines.llama_cpp_config:LlamaCppConfig",
    "openvino": "codriver.engines.openvino:OpenVinoConfig",
    "onnx_genai": "codriver.engines.onnx_genai:OnnxGenaiConfig",
}


class Task(msgspec.Struct, tag_field="do"):
    pass


class ReadTask(Task, tag="read"):
    """Read a prompt of ``words`` that was never read before, up to the first piece of the answer."""

    words: int
    seed: int


class WriteTask(Task, tag="write"):
    """Write an answer of up to ``tokens``."""

    tokens: int
    seed: int


class AnswerTask(Task, tag="answer"):
    """The greedy answer, in the pieces that it came in."""

    question: str
    tokens: int


class NextTask(Task, tag="next"):
    """The greedy next piece behind each of ``begins`` of an answer."""

    question: str
    begins: list[str]


class MemoryTask(Task, tag="memory"):
    pass


Tasks = ReadTask | WriteTask | AnswerTask | NextTask | MemoryTask


class Result(msgspec.Struct):
    """``seconds`` to the first piece, or of a token; ``tokens`` of the prompt, or written. ``error``: a sentence."""

    seconds: float = 0.0
    tokens: int = 0
    pieces: list[str] = []
    rss_bytes: int = 0
    peak_bytes: int = 0
    error: str = ""


async def start(runtime: str, file: Path, context_tokens: int, threads: int) -> Engine:
    """Errors: those of the engine's ``start``."""
    module, _, name = CONFIGS[runtime].partition(":")
    kind = ENGINES.load(runtime)
    config = getattr(importlib.import_module(module), name)
    engine: Engine = await kind.start(
        config(id=runtime, model=file, context_tokens=context_tokens, threads=threads, slots=1)
    )
    return engine


async def done(engine: Engine, task: Tasks) -> Result:
    """Errors: those of the engine's ``generate``."""
    match task:
        case ReadTask():
            return await _timed(engine, _request(passage(task.seed, task.words), 1))
        case WriteTask():
            return await _written(engine, _request(f"Tell story number {task.seed % 1000}.", task.tokens))
        case AnswerTask():
            return Result(pieces=[piece async for piece in _pieces(engine, _request(task.question, task.tokens))])
        case NextTask():
            return Result(pieces=[await _next(engine, task.question, begin) for begin in task.begins])
        case MemoryTask():
            return Result(rss_bytes=_status_bytes("VmRSS"), peak_bytes=_status_bytes("VmHWM"))


def _request(question: str, tokens: int, begin: str = "") -> ChatRequest:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = parse_chat(msgspec.json.encode(body))
    return msgspec.structs.replace(request, continue_from=begin) if begin else request


async def _pieces(engine: Engine, request: ChatRequest) -> AsyncIterator[str]:
    async for chunk in engine.generate(request, Deadline.never()):
        if text := chunk.text():
            yield text


@dataclass
class _Heard:
    """When each piece of an answer came, and its end; what the engine counted."""

    pieces_s: list[float] = field(default_factory=list)
    ended_s: float = 0.0
    usage: Usage = field(default_factory=Usage)


async def _heard(engine: Engine, request: ChatRequest) -> _Heard:
    heard = _Heard()
    begun_s = time.perf_counter()
    async for chunk in engine.generate(request, Deadline.never()):
        if chunk.text():
            heard.pieces_s.append(time.perf_counter() - begun_s)
        heard.usage = chunk.usage or heard.usage
    heard.ended_s = time.perf_counter() - begun_s
    return heard


async def _timed(engine: Engine, request: ChatRequest) -> Result:
    heard = await _heard(engine, request)
    # A model may have nothing to say: its end is as much of an answer, and took as long to read for.
    first_s = heard.pieces_s[0] if heard.pieces_s else heard.ended_s
    return Result(seconds=first_s, tokens=heard.usage.prompt_tokens)


async def _written(engine: Engine, request: ChatRequest) -> Result:
    """Seconds a token, from the first piece to the last."""
    heard = await _heard(engine, request)
    written = max(heard.usage.completion_tokens - 1, 1)
    spoke_s = heard.pieces_s[-1] - heard.pieces_s[0] if heard.pieces_s else 0.0
    return Result(seconds=spoke_s / written, tokens=written)


async def _next(engine: Engine, question: str, begin: str) -> str:
    return "".join([piece async for piece in _pieces(engine, _request(question, 1, begin))])


def _status_bytes(field: str) -> int:
    """Of this process; 0 where there is no /proc."""
    try:
        told = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in told.splitlines() if line.startswith(f"{field}:")), 0)


async def _serve(arguments: Sequence[str]) -> None:
    runtime, file, context_tokens, threads = arguments
    # What a runtime prints must not come between the results.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(result: Result) -> None:
        print(msgspec.json.encode(result).decode(), file=out, flush=True)

    try:
        engine = await start(runtime, Path(file), int(context_tokens), int(threads))
    except CodriverError as error:
        tell(Result(error=error.message))
        return
    tell(Result())
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            try:
                tell(await done(engine, msgspec.json.decode(line, type=Tasks)))
            except CodriverError as error:
                tell(Result(error=error.message))
    finally:
        await engine.aclose()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1:]))
