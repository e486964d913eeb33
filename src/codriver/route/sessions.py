"""Conversations kept in the vehicle, shared by every engine that answers in them.

A request that names a session sends only what is new; the history is put before it. System messages are not kept: the
newest ones rule. What was said under a privacy class never leaves the vehicle under a weaker one later: as long as a
conversation holds such an exchange, its further requests are as strict. Placeholders keep their meaning throughout.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from codriver.core.messages import ChatRequest, Message, Privacy
from codriver.core.privacy import strictest, strictness
from codriver.core.wire import changed

from .vault import Vault

_Kept = tuple[Message, Privacy]  # the message, and under which class it was said
# A vault that has seen more values than this is given up: their placeholders are numbered anew.
_MOST_VALUES = 4096


class Sessions:
    """The least recently used conversation goes first; the oldest messages of a long one too, a whole exchange at a
    time. ``most_chars`` bounds a conversation's text, so that the vehicle's own model can still read it (0: no bound).
    """

    def __init__(self, most: int = 256, most_messages: int = 64, most_chars: int = 0) -> None:
        self._most = most
        self._most_chars = most_chars
        self._most_messages = most_messages
        self._histories: OrderedDict[str, list[_Kept]] = OrderedDict()
        self._vaults: dict[str, Vault] = {}

    def extend(self, request: ChatRequest) -> ChatRequest:
        """The request with its session's history in place; the same request when it names none."""
        options = request.codriver
        if options is None or not options.session or not (history := self._histories.get(options.session)):
            return request
        system = [m for m in request.messages if m.role in ("system", "developer")]
        fresh = [m for m in request.messages if m.role not in ("system", "developer")]
        extended = changed(request, messages=[*system, *(message for message, _ in history), *fresh])
        privacy = strictest(options.privacy, *(said for _, said in history))
        if strictness(privacy) > strictness(options.privacy):
            options = msgspec.structs.replace(options, privacy=privacy)
            extended = msgspec.structs.replace(extended, codriver=options)
        return extended

    def vault(self, request: ChatRequest) -> Vault:
        """The vault of the request's session; a new one where there is none yet. :meth:`record` keeps it."""
        name = request.codriver.session if request.codriver else None
        kept = self._vaults.get(name) if name else None
        return kept if kept is not None and len(kept) < _MOST_VALUES else Vault()

    def record(
        self, request: ChatRequest, answer: Message, privacy: Privacy = "any", vault: Vault | None = None
    ) -> None:
        """Keep what was new in ``request`` (as the client sent it) and its complete answer, both under ``privacy`` for
        good, and the vault that was used.
        """
        name = request.codriver.session if request.codriver else None
        if not name or self._most <= 0:
            return
        history = self._histories.setdefault(name, [])
        history.extend((m, privacy) for m in request.messages if m.role not in ("system", "developer"))
        history.append((answer, privacy))
        if vault is not None and len(vault):
            self._vaults[name] = vault
        while history and (self._too_long(history) or history[0][0].role != "user"):
            history.pop(0)
        self._histories.move_to_end(name)
        while len(self._histories) > self._most:
            self.forget(next(iter(self._histories)))

    def _too_long(self, history: list[_Kept]) -> bool:
        if len(history) > self._most_messages:
            return True
        return 0 < self._most_chars < sum(len(message.text()) for message, _ in history)

    def forget(self, name: str) -> None:
        self._histories.pop(name, None)
        self._vaults.pop(name, None)
