"""Going on with an answer that another engine began.

An engine whose card says ``prefill`` continues from the last character (``ChatRequest.continue_from``). Any other is
shown the part and asked to go on; what it repeats of the part's end is taken off again.
"""

from __future__ import annotations

import msgspec

from codriver.core.engine import EngineCard
from codriver.core.messages import ChatChunk, ChatRequest, Message

_ASK = "Go on with your answer from exactly where it stops. Do not repeat any of it and do not comment."
_OVERLAP_CHARS = 200


def continued(request: ChatRequest, part: str, tokens: int, card: EngineCard) -> ChatRequest:
    """``request`` as it must be put to the engine of ``card`` so that its answer follows on ``part`` (``tokens``
    long).
    """
    changes: dict[str, object] = {"raw": None}
    if request.limit_tokens is not None:
        changes["max_tokens"] = max(1, request.limit_tokens - tokens)
        changes["max_completion_tokens"] = None
    if request.prompt is not None:
        changes["prompt"] = request.prompt + part
    elif card.can("prefill"):
        changes["continue_from"] = part
    else:
        told = [Message(role="assistant", content=part), Message(role="user", content=_ASK)]
        changes["messages"] = [*request.messages, *told]
    return msgspec.structs.replace(request, **changes)


class OverlapRemover:
    """Takes off the start of a continuation what it repeats of ``part``'s end.

    Chunks are kept back until their text can no longer be a repetition; ``flush`` gives the rest.
    """

    def __init__(self, part: str) -> None:
        self._tail = part[-_OVERLAP_CHARS:]
        self._seen = ""
        self._done = not part

    def take(self, text: str) -> str:
        """What of the continuation so far may be delivered now."""
        if self._done:
            return text
        self._seen += text
        if len(self._seen) < len(self._tail) and self._still_repeating():
            return ""
        return self.flush()

    def flush(self) -> str:
        self._done, seen, self._seen = True, self._seen, ""
        return seen[self._overlap(seen) :]

    def _still_repeating(self) -> bool:
        return any(self._tail[start:].startswith(self._seen) for start in range(len(self._tail)))

    def _overlap(self, seen: str) -> int:
        # One or two equal characters are chance; three and more are a repetition.
        for size in range(min(len(seen), len(self._tail)), 2, -1):
            if self._tail.endswith(seen[:size]):
                return size
        return 0


def with_text(chunk: ChatChunk, text: str) -> ChatChunk:
    """The chunk with its first choice's content replaced."""
    first = chunk.choices[0]
    delta = msgspec.structs.replace(first.delta, content=text)
    return msgspec.structs.replace(
        chunk, choices=[msgspec.structs.replace(first, delta=delta), *chunk.choices[1:]], raw=None
    )
