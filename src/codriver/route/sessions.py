"""Conversations kept in the vehicle, shared by every engine that answers in them.

A request that names a session sends only what is new; the history is put before it. System messages are not kept: the
newest ones rule.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from codriver.core.messages import ChatRequest, Message


class Sessions:
    """The least recently used conversation goes first; the oldest messages of a long one too, a whole exchange at a
    time.
    """

    def __init__(self, most: int = 256, most_messages: int = 64) -> None:
        self._most = most
        self._most_messages = most_messages
        self._histories: OrderedDict[str, list[Message]] = OrderedDict()

    def extend(self, request: ChatRequest) -> ChatRequest:
        """The request with its session's history in place; the same request when it names none."""
        name = request.codriver.session if request.codriver else None
        history = self._histories.get(name) if name else None
        if not history:
            return request
        system = [m for m in request.messages if m.role in ("system", "developer")]
        fresh = [m for m in request.messages if m.role not in ("system", "developer")]
        return msgspec.structs.replace(request, messages=[*system, *history, *fresh], raw=None)

    def record(self, request: ChatRequest, answer: Message) -> None:
        """Keep what was new in ``request`` (as the client sent it) and its complete answer."""
        name = request.codriver.session if request.codriver else None
        if not name or self._most <= 0:
            return
        history = self._histories.setdefault(name, [])
        history.extend(m for m in request.messages if m.role not in ("system", "developer"))
        history.append(answer)
        while len(history) > self._most_messages or (history and history[0].role != "user"):
            history.pop(0)
        self._histories.move_to_end(name)
        while len(self._histories) > self._most:
            self._histories.popitem(last=False)

    def forget(self, name: str) -> None:
        self._histories.pop(name, None)
