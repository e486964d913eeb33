"""One answer of a stepped runtime as chunks: role, text as it becomes whole, log-probabilities, the end, usage."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from codriver.core.messages import (
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Delta,
    Logprobs,
    TokenLogprob,
    TopLogprob,
    Usage,
)

from .step_loop import Step
from .text_stream import TextStream


class AnswerWriter:
    """One answer's chunks."""

    def __init__(self, decode: Callable[[list[int]], str], request: ChatRequest, prompt_tokens: int) -> None:
        stop = request.stop
        self._text = TextStream(decode, [stop] if isinstance(stop, str) else stop or [])
        self._decode = decode
        self._wants_logprobs = bool(request.logprobs)
        self._shows_top = bool(request.top_logprobs)
        self._prompt_tokens = prompt_tokens
        self._tokens = 0
        self._waiting: list[TokenLogprob] = []
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = ""
        self.finished = False

    def begin(self, model: str) -> ChatChunk:
        self._model = model
        return self._chunk(ChunkChoice(delta=Delta(role="assistant", content="")))

    def chunks(self, step: Step) -> list[ChatChunk]:
        self._tokens += len(step.ids)
        if self._wants_logprobs:
            tops = step.tops or [[]] * len(step.ids)
            self._waiting.extend(map(self._logprob, step.ids, step.logprobs, tops))
        text = self._text.push(step.ids)
        if step.finish and not self._text.stopped:
            text += self._text.flush()
        finish = "stop" if self._text.stopped else step.finish
        found = []
        if text:
            logprobs = Logprobs(content=self._waiting) if self._waiting else None
            self._waiting = []
            found.append(self._chunk(ChunkChoice(delta=Delta(content=text), logprobs=logprobs)))
        if finish:
            self.finished = True
            logprobs = Logprobs(content=self._waiting) if self._waiting else None
            found.append(self._chunk(ChunkChoice(logprobs=logprobs, finish_reason=finish)))
        return found

    def _logprob(self, token: int, logprob: float, tops: list[tuple[int, float]]) -> TokenLogprob:
        text = self._decode([token])
        raw = list(text.encode())
        top = [self._top(*one) for one in tops or [(token, logprob)]] if self._shows_top else []
        return TokenLogprob(text, min(0.0, logprob), raw, top)

    def _top(self, token: int, logprob: float) -> TopLogprob:
        text = self._decode([token])
        return TopLogprob(text, logprob, list(text.encode()))

    def usage(self) -> ChatChunk:
        chunk = self._chunk(None)
        chunk.usage = Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._tokens,
            total_tokens=self._prompt_tokens + self._tokens,
        )
        return chunk

    def _chunk(self, choice: ChunkChoice | None) -> ChatChunk:
        choices = [choice] if choice is not None else []
        return ChatChunk(id=self._id, created=self._created, model=self._model, choices=choices)
