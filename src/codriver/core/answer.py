"""An answer being put together from chunks: what the client has so far, and the whole at the end."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable

import msgspec

from .messages import (
    AnswerMessage,
    ChatChunk,
    ChatCompletion,
    ChunkChoice,
    CompletionChoice,
    FinishReason,
    FunctionCall,
    Logprobs,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)


class _Choice:
    """One choice under construction."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.refusal: list[str] = []
        self.calls: dict[int, ToolCall] = {}
        self.logprobs: list[TokenLogprob] = []
        self.finish: FinishReason | None = None

    def add(self, choice: ChunkChoice) -> None:
        delta = choice.delta
        if delta.content:
            self.content.append(delta.content)
        if delta.reasoning_content:
            self.reasoning.append(delta.reasoning_content)
        if delta.refusal:
            self.refusal.append(delta.refusal)
        if delta.tool_calls:
            for call in delta.tool_calls:
                self._add_call(call)
        if choice.logprobs and choice.logprobs.content:
            self.logprobs.extend(choice.logprobs.content)
        if choice.finish_reason:
            self.finish = choice.finish_reason

    def _add_call(self, delta: ToolCallDelta) -> None:
        call = self.calls.setdefault(delta.index, ToolCall(id="", function=FunctionCall()))
        if delta.id:
            call.id = delta.id
        if delta.function:
            call.function.name += delta.function.name or ""
            call.function.arguments += delta.function.arguments or ""

    def completed(self, index: int) -> CompletionChoice:
        message = AnswerMessage(
            content="".join(self.content) if self.content or not (self.calls or self.refusal) else None,
            refusal="".join(self.refusal) or None,
        )
        if self.reasoning:
            message.reasoning_content = "".join(self.reasoning)
        if self.calls:
            message.tool_calls = [self.calls[key] for key in sorted(self.calls)]
        logprobs = Logprobs(content=self.logprobs) if self.logprobs else None
        return CompletionChoice(index=index, message=message, logprobs=logprobs, finish_reason=self.finish)


class Answer:
    """Collects chunks of one stream. ``text`` is the first choice's content so far."""

    def __init__(self) -> None:
        self._choices: dict[int, _Choice] = {}
        self._id = self._model = ""
        self._created = 0
        self.usage: Usage | None = None
        self.codriver: dict[str, object] | None = None
        self.chunks = 0

    def add(self, chunk: ChatChunk) -> None:
        self.chunks += 1
        if chunk.codriver:
            self.codriver = chunk.codriver
            if chunk.codriver.get("restart"):
                # The answer begins anew: what came before is not part of it.
                self._choices.clear()
        if not self._id:
            self._id = chunk.id
        if not self._model:
            self._model = chunk.model
        if not self._created:
            self._created = chunk.created
        for choice in chunk.choices:
            known = self._choices.get(choice.index)
            if known is None:
                known = self._choices[choice.index] = _Choice()
            known.add(choice)
        if chunk.usage:
            self.usage = chunk.usage

    def followed_by(self, chunks: Iterable[ChatChunk]) -> Answer:
        """A copy with ``chunks`` added."""
        longer = copy.deepcopy(self)
        for chunk in chunks:
            longer.add(chunk)
        return longer

    @property
    def text(self) -> str:
        return "".join(self._choices[0].content) if 0 in self._choices else ""

    @property
    def text_pieces(self) -> int:
        """How many chunks brought text to the first choice: at least so many tokens are in it."""
        return len(self._choices[0].content) if 0 in self._choices else 0

    @property
    def tool_calls_begun(self) -> bool:
        return 0 in self._choices and bool(self._choices[0].calls)

    @property
    def finish_reason(self) -> FinishReason | None:
        return self._choices[0].finish if 0 in self._choices else None

    @property
    def complete(self) -> bool:
        """True when every choice that began has its finish reason."""
        return bool(self._choices) and all(choice.finish for choice in self._choices.values())

    def completion(self) -> ChatCompletion:
        """The whole as a non-streamed body."""
        return ChatCompletion(
            id=self._id,
            created=self._created or int(time.time()),
            model=self._model,
            choices=[self._choices[index].completed(index) for index in sorted(self._choices)],
            usage=self.usage or msgspec.UNSET,
            codriver=self.codriver or msgspec.UNSET,
        )
