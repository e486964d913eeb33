"""Answers that are known before they are asked for, cut into the chunks that a live engine would have sent.

The null engine and the replay engine share this. A piece (a word with the space before it) stands for a token. The rule
kept here: from outside, a scripted stream has the same shape as a live one - role first, one finish reason, usage last
where asked.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from codriver.core.messages import (
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Delta,
    FunctionDelta,
    Logprobs,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)

_PIECE = re.compile(r"\s*\S+|\s+$")


@dataclass(frozen=True, slots=True)
class Script:
    """``logprobs``: one natural logarithm per piece, or none. ``tool``: a function's name and its arguments as JSON."""

    pieces: tuple[str, ...]
    prompt_tokens: int
    finish_reason: str = "stop"
    logprobs: tuple[float, ...] = ()
    tool: tuple[str, str] | None = None


def cut(text: str) -> tuple[str, ...]:
    """The text in pieces; joined they are the text again."""
    return tuple(_PIECE.findall(text))


def fit(script: Script, request: ChatRequest) -> Script:
    """The script under the request's ``continue_from`` (or the prompt that it completes), ``stop`` and token limit."""
    if script.tool is not None:
        return replace(script, finish_reason="tool_calls")
    pieces, logprobs = _continued(script, request.continue_from or _begun(script, request.prompt or ""))
    pieces, stopped = _stopped(pieces, request.stop)
    limit = request.limit_tokens
    finish = "stop" if stopped else script.finish_reason
    if limit is not None and len(pieces) > limit:
        pieces, finish = pieces[:limit], "length"
    return replace(script, pieces=pieces, logprobs=logprobs[: len(pieces)], finish_reason=finish)


def _begun(script: Script, prompt: str) -> str:
    """The start of the answer with which the prompt of a text completion ends: at least a whole piece, or nothing."""
    text = "".join(script.pieces)
    least = len(script.pieces[0]) if script.pieces else 1
    return next((text[:end] for end in range(len(text), least - 1, -1) if prompt.endswith(text[:end])), "")


def _continued(script: Script, prefix: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """What is left after ``prefix``; all of it when the prefix is not how this answer begins."""
    if not prefix or not "".join(script.pieces).startswith(prefix):
        return script.pieces, script.logprobs
    position = 0
    for index, piece in enumerate(script.pieces):
        if position + len(piece) > len(prefix):
            left = (piece[len(prefix) - position :], *script.pieces[index + 1 :])
            return left, script.logprobs[index:]
        position += len(piece)
    return (), ()


def _stopped(pieces: tuple[str, ...], stop: str | list[str] | None) -> tuple[tuple[str, ...], bool]:
    text = "".join(pieces)
    marks = [stop] if isinstance(stop, str) else stop or []
    found = [at for mark in marks if mark and (at := text.find(mark)) >= 0]
    if not found:
        return pieces, False
    kept, position = [], 0
    for piece in pieces:
        if position >= min(found):
            break
        kept.append(piece[: min(found) - position])
        position += len(piece)
    return tuple(kept), True


def chunks(script: Script, request: ChatRequest, head: ChatChunk, group: int = 1) -> Iterator[tuple[int, ChatChunk]]:
    """The stream: ``(pieces in it, chunk)``, ``group`` pieces to a chunk; all in one where the request does not stream.

    ``head`` gives every chunk its id, time and model.
    """
    count = len(script.pieces)
    asked = request.stream_options is not None and request.stream_options.include_usage
    usage = Usage(script.prompt_tokens, _tokens(script), script.prompt_tokens + _tokens(script))
    if not request.stream:
        yield count, _chunk(head, _delta(script, request, 0, count), script.finish_reason, usage)
        return
    yield 0, _chunk(head, ChunkChoice(delta=Delta(role="assistant", content=None if script.tool else "")))
    if script.tool:
        yield 1, _chunk(head, _delta(script, request, 0, 0))
    for start in range(0, count, group):
        end = min(start + group, count)
        yield end - start, _chunk(head, _delta(script, request, start, end))
    yield 0, _chunk(head, ChunkChoice(), script.finish_reason)
    if asked:
        yield 0, ChatChunk(id=head.id, created=head.created, model=head.model, usage=usage)


def new_head(model: str, wall_s: float) -> ChatChunk:
    """A chunk with a fresh id and nothing in it."""
    return ChatChunk(id=f"chatcmpl-{uuid.uuid4().hex}", created=int(wall_s), model=model)


def _tokens(script: Script) -> int:
    return len(script.pieces) + (len(cut(script.tool[1])) if script.tool else 0)


def _chunk(head: ChatChunk, choice: ChunkChoice, finish: str | None = None, usage: Usage | None = None) -> ChatChunk:
    choice.finish_reason = finish
    chunk = ChatChunk(id=head.id, created=head.created, model=head.model, choices=[choice])
    if usage is not None:
        chunk.usage = usage
    return chunk


def _delta(script: Script, request: ChatRequest, start: int, end: int) -> ChunkChoice:
    role: Any = None if request.stream else "assistant"
    if script.tool:
        name, arguments = script.tool
        call = ToolCallDelta(
            index=0,
            id=f"call_{uuid.uuid4().hex[:24]}",
            type="function",
            function=FunctionDelta(name=name, arguments=arguments),
        )
        return ChunkChoice(delta=Delta(role=role, tool_calls=[call]))
    pieces = script.pieces[start:end]
    logprobs = None
    if request.logprobs and script.logprobs:
        logprobs = Logprobs([_token(*pair, request) for pair in zip(pieces, script.logprobs[start:end], strict=True)])
    return ChunkChoice(delta=Delta(role=role, content="".join(pieces)), logprobs=logprobs)


def _token(piece: str, logprob: float, request: ChatRequest) -> TokenLogprob:
    spelled = list(piece.encode())
    top = [TopLogprob(piece, logprob, spelled)] if request.top_logprobs else []
    return TokenLogprob(piece, logprob, spelled, top)
