"""Conversations kept in the vehicle, shared by every engine that answers in them.

A request that names a session sends only what is new; the history is put before it. System messages are not kept: the
newest ones rule. What was said under ``local_only`` never leaves the vehicle later: as long as a conversation holds
such an exchange, its further requests are ``local_only`` too.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from codriver.core.messages import ChatRequest, Message
from codriver.core.wire import changed

_Kept = tuple[Message, bool]  # the message, and whether it must stay in the vehicle


class Sessions:
    """The least recently used conversation goes first; the oldest messages of a long one too, a whole exchange at a
    time. ``most_chars`` bounds a conversation's text, so that the vehicle's own model can still read it (0: no bound).
    """

    def __init__(self, most: int = 256, most_messages: int = 64, most_chars: int = 0) -> None:
        self._most = most
        self._most_chars = most_chars
        self._most_messages = most_messages
        self._histories: OrderedDict[str, list[_Kept]] = OrderedDict()

    def extend(self, request: ChatRequest) -> ChatRequest:
        """The request with its session's history in place; the same request when it names none."""
        options = request.codriver
        if options is None or not options.session or not (history := self._histories.get(options.session)):
            return request
        system = [m for m in request.messages if m.role in ("system", "developer")]
        fresh = [m for m in request.messages if m.role not in ("system", "developer")]
        extended = changed(request, messages=[*system, *(message for message, _ in history), *fresh])
        if any(local for _, local in history):
            options = msgspec.structs.replace(options, privacy="local_only")
            extended = msgspec.structs.replace(extended, codriver=options)
        return extended

    def record(self, request: ChatRequest, answer: Message, local: bool = False) -> None:
        """Keep what was new in ``request`` (as the client sent it) and its complete answer; ``local``: both stay in the
        vehicle for good.
        """
        name = request.codriver.session if request.codriver else None
        if not name or self._most <= 0:
            return
        history = self._histories.setdefault(name, [])
        history.extend((m, local) for m in request.messages if m.role not in ("system", "developer"))
        history.append((answer, local))
        while history and (self._too_long(history) or history[0][0].role != "user"):
            history.pop(0)
        self._histories.move_to_end(name)
        while len(self._histories) > self._most:
            self._histories.popitem(last=False)

    def _too_long(self, history: list[_Kept]) -> bool:
        if len(history) > self._most_messages:
            return True
        return 0 < self._most_chars < sum(len(message.text()) for message, _ in history)

    def forget(self, name: str) -> None:
        self._histories.pop(name, None)
