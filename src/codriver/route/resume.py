"""Going on with an answer that another engine began.

An engine whose card says ``prefill`` continues from the last character (``ChatRequest.continue_from``), and so does a
plain text completion. Any other engine is shown the part and asked to go on; what it repeats of the part's end is taken
off again.
"""

from __future__ import annotations

from typing import Any

import msgspec

from codriver.core.engine import EngineCard
from codriver.core.messages import ChatChunk, ChatRequest, Message
from codriver.core.wire import changed, with_messages

_ASK = "Go on with your answer from exactly where it stops. Do not repeat any of it and do not comment."
_LEAST_OVERLAP_CHARS = 3
_SURE_OVERLAP_CHARS = 8


def goes_on(request: ChatRequest, card: EngineCard) -> bool:
    """True when the engine of ``card`` goes on from a part without repeating it."""
    return request.prompt is not None or card.can("prefill")


def continued(request: ChatRequest, part: str, tokens: int, card: EngineCard) -> ChatRequest:
    """``request`` as it must be put to the engine of ``card`` so that its answer follows on ``part`` (``tokens``
    long).
    """
    changes: dict[str, Any] = {}
    if request.limit_tokens is not None and tokens:
        changes["max_tokens"] = max(1, request.limit_tokens - tokens)
        changes["max_completion_tokens"] = None
    if request.prompt is not None:
        changes["prompt"] = request.prompt + part
    elif goes_on(request, card):
        changes["continue_from"] = (request.continue_from or "") + part
    else:
        told = (request.continue_from or "") + part
        changes["continue_from"] = None
        more = [Message(role="assistant", content=told), Message(role="user", content=_ASK)]
        request = with_messages(request, len(request.messages), more)
    return changed(request, **changes) if changes else request


def asked_to_go_on(request: ChatRequest) -> bool:
    """True for what :func:`continued` made for an engine that cannot prefill."""
    return bool(request.messages) and request.messages[-1].content == _ASK


class OverlapRemover:
    """Takes off the start of a continuation what it repeats of ``part``'s end, or all of ``part``.

    Text is kept back until it can no longer be a repetition; ``flush`` gives the rest.
    """

    def __init__(self, part: str) -> None:
        self._part = part
        self._seen = ""
        self._done = not part

    def take(self, text: str) -> str:
        """What of the continuation so far may be delivered now."""
        if self._done:
            return text
        self._seen += text
        if len(self._seen) < len(self._part) and self._seen in self._part:
            return ""
        return self.flush()

    def flush(self) -> str:
        self._done, seen, self._seen = True, self._seen, ""
        return seen[self._overlap(seen) :]

    def _overlap(self, seen: str) -> int:
        # One or two equal characters are chance, and so are equal ends of words: a short repetition starts with a word.
        for size in range(min(len(seen), len(self._part)), _LEAST_OVERLAP_CHARS - 1, -1):
            at = len(self._part) - size
            starts_word = (
                size >= _SURE_OVERLAP_CHARS
                or at == 0
                or seen[0].isspace()
                or not (self._part[at - 1].isalnum() and seen[0].isalnum())
            )
            if starts_word and self._part.endswith(seen[:size]):
                return size
        return 0


def with_text(chunk: ChatChunk, text: str) -> ChatChunk:
    """The chunk with its first choice's content replaced, and without the tokens that were its log-probabilities'."""
    first = chunk.choices[0]
    delta = msgspec.structs.replace(first.delta, content=text)
    choices = [msgspec.structs.replace(first, delta=delta, logprobs=None), *chunk.choices[1:]]
    return msgspec.structs.replace(chunk, choices=choices, raw=msgspec.UNSET, whole=msgspec.UNSET)


def without_overlap(chunk: ChatChunk, overlap: OverlapRemover) -> ChatChunk:
    """The chunk without what ``overlap`` takes off it, or keeps back; as it came where that is nothing."""
    came = chunk.text()
    text = overlap.take(came)
    if chunk.finish_reason:
        text += overlap.flush()
    return with_text(chunk, text) if chunk.choices and text != came else chunk
