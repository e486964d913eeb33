"""A draft scored by the server in one prefill: how much of it the server's model would have written too.

The draft goes up as the start of the answer, and vLLM tells the log-probability and the rank of each of the prompt's
tokens (``prompt_logprobs``; the first entry of each is the token itself). Up to the first token that is neither the
likeliest nor likely enough the draft stands, as in speculative decoding (Leviathan et al., "Fast Inference from
Transformers via Speculative Decoding", ICML 2023) with the typical acceptance of Medusa (Cai et al., 2024). Rule: what
cannot be matched to the draft's characters does not count as agreed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from codriver.core import wire
from codriver.core.errors import UpstreamMalformed
from codriver.core.messages import ChatChunk, ChatRequest, ChunkChoice, Delta, Usage

# One token more than the draft: where that is the end, the draft is the whole answer.
SCORING: dict[str, Any] = {
    "prompt_logprobs": 1,
    "max_tokens": 1,
    "max_completion_tokens": None,
    "stream": False,
    "stream_options": None,
    "logprobs": None,
    "top_logprobs": None,
}


class _Token(msgspec.Struct):
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


class _Said(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Said
    finish_reason: str | None = None


class _Scored(msgspec.Struct):
    choices: list[_Choice]
    prompt_logprobs: list[dict[str, _Token] | None]
    id: str = ""
    created: int = 0
    model: str = ""
    usage: Usage | None = None


_decoder = msgspec.json.Decoder(_Scored)


class Verdict(msgspec.Struct, frozen=True):
    """``text`` is agreed, ``tokens`` of the server's long; ``whole``: nothing comes after it."""

    text: str
    tokens: int
    whole: bool
    scored: _Scored

    def chunks(self) -> Iterator[ChatChunk]:
        """What is agreed as the start of a stream, and its end where it is whole."""
        scored = self.scored
        head = ChatChunk(id=scored.id, created=scored.created, model=scored.model)
        if self.text:
            yield replace(head, choices=[ChunkChoice(delta=Delta(role="assistant", content=self.text))])
        if self.whole:
            yield replace(head, choices=[ChunkChoice(finish_reason="stop")])
            if scored.usage is not None:
                yield replace(head, choices=[], usage=scored.usage)

    def rest(self, request: ChatRequest) -> ChatRequest:
        """The request for what comes after it."""
        changes: dict[str, Any] = {}
        if request.limit_tokens is not None:
            changes = {"max_tokens": max(1, request.limit_tokens - self.tokens), "max_completion_tokens": None}
        if self.text:
            changes["continue_from"] = (request.continue_from or "") + self.text
        return replace(wire.changed(request, **changes), draft=None)

    def billed(self, chunk: ChatChunk) -> ChatChunk:
        """A chunk of the rest; one that tells usage counts the scoring too."""
        usage, scored = chunk.usage, self.scored.usage
        if not usage or scored is None:
            return chunk
        prompt = usage.prompt_tokens + scored.prompt_tokens
        written = usage.completion_tokens + scored.completion_tokens
        return replace(chunk, usage=Usage(prompt, written, prompt + written), raw=msgspec.UNSET)


def verdict(answer: bytes, draft: str, least: float) -> Verdict:
    """How far the server agrees with ``draft``: tokens that are its likeliest, or at least ``least`` likely.

    Errors: :class:`UpstreamMalformed` when the answer holds no such scores.
    """
    try:
        scored = _decoder.decode(answer)
        choice = scored.choices[0]
    except (*wire.UNREADABLE, IndexError) as error:
        raise UpstreamMalformed(f"The server did not score the draft (prompt_logprobs): {error}.") from error
    # Chat templates strip a message's white space.
    draft = draft.strip()
    tokens = [next(iter(each.values())) for each in _tail(scored.prompt_logprobs, len(draft))]
    joined = "".join(token.decoded_token or "" for token in tokens)
    agreed, count = 0, 0
    if draft and joined.endswith(draft):
        at = len(draft) - len(joined)
        for token in tokens:
            if token.rank != 1 and math.exp(min(0.0, token.logprob)) < least:
                break
            at += len(token.decoded_token or "")
            agreed, count = max(0, at), count + 1
    text, more = draft[:agreed], choice.message.content or ""
    stands = bool(draft) and agreed == len(draft)
    whole = stands and choice.finish_reason == "stop" and not more
    if stands and not whole:
        text, count = text + more, count + 1
    return Verdict(text, count, whole, scored)


def _tail(entries: list[dict[str, _Token] | None], chars: int) -> list[dict[str, _Token]]:
    """The last entries whose tokens are at least ``chars`` characters together."""
    start, found = len(entries), 0
    while start > 0 and found < chars and (entry := entries[start - 1]):
        found += len(next(iter(entry.values())).decoded_token or "")
        start -= 1
    return [entry for entry in entries[start:] if entry]
