"""JSON that is given out while it is written: followed, so that another engine can always finish it.

Nothing reaches the client that cannot become one valid value of the schema that was asked for. An engine that leaves it
- prose before the value, a fence, a member of the wrong type - counts as dead there, and the next one goes on from what
was good. Limits: one answer without tools, of a schema that :mod:`codriver.engines.json_text` can follow; every engine
that may take over must be able to go on within JSON (``json_resume``). Any other JSON is held until it is whole.
"""

from __future__ import annotations

from collections.abc import Iterable

from codriver.core.engine import EngineCard
from codriver.core.errors import EngineDied
from codriver.core.messages import ChatChunk, ChatRequest
from codriver.engines.json_text import JsonText, text_for


class Followed:
    """The JSON answer to one request, as far as the client has it."""

    def __init__(self, request: ChatRequest) -> None:
        self._text = _text_of(request)

    @property
    def is_followed(self) -> bool:
        """True for JSON of a schema that can be followed."""
        return self._text is not None

    def can_be_finished(self, by: Iterable[EngineCard]) -> bool:
        """True when each of these engines could finish the answer wherever it is cut."""
        return self.is_followed and all(card.can("json_resume") and card.can("prefill") for card in by)

    def take(self, chunk: ChatChunk, engine: str) -> None:
        """Note what the client is about to get. Raises :class:`EngineDied` where it must not get it."""
        text = chunk.text()
        if self._text is not None and text and not self._text.add(text):
            raise EngineDied(f"The engine '{engine}' left the JSON that was asked for.", engine=engine)

    @property
    def is_whole(self) -> bool:
        """True when only the end is missing."""
        return self._text is not None and self._text.is_closed


def _text_of(request: ChatRequest) -> JsonText | None:
    wants = request.response_format
    if wants is None or wants.type == "text" or request.tools or (request.n or 1) > 1:
        return None
    begun = request.continue_from or any(message.role == "assistant" for message in request.messages[-1:])
    if request.prompt is not None or begun:
        return None  # the value may have begun before the answer
    return text_for(wants.json_schema.schema if wants.type == "json_schema" and wants.json_schema else None)
