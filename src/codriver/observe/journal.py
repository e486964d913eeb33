"""What became of the last requests and of the link: the memory behind the console's page.

A :class:`Journal` is made once in ``apps/`` and handed in; :class:`NoJournal` keeps nothing. Limits: so many requests,
so many looks at the link, so many watchers, each with a queue of so many events; one that is full is lost. Rule: only
the fields of :class:`Told` are ever kept of an answer, each of them bounded: never a request's or an answer's text.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Annotated, Literal

import msgspec

from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.core.errors import RateLimited

REQUESTS = 200
LOOKS = 300
WATCHERS = 16
QUEUED = 256
# Between two looks at a link whose state stays the same.
_LOOK_S = 2.0

Word = Annotated[str, msgspec.Meta(max_length=80)]
Sentence = Annotated[str, msgspec.Meta(max_length=300)]
_encoder = msgspec.json.Encoder()


class AttemptTold(msgspec.Struct, frozen=True, omit_defaults=True):
    """One attempt, in milliseconds: ``started_ms`` since the request came, ``ttft_ms`` since the attempt's start."""

    engine: Word
    outcome: Word
    started_ms: float
    took_ms: float
    why: Sentence = ""
    tokens: int = 0
    ttft_ms: float | None = None
    confidence: float | None = None


class FailoverTold(msgspec.Struct, frozen=True, omit_defaults=True):
    from_engine: Word = msgspec.field(name="from")
    to: Word
    policy: Word = ""
    error: Word = ""
    at_chars: int = 0


class SemanticTold(msgspec.Struct, frozen=True, omit_defaults=True):
    route: Word | None = None


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is kept of the ``codriver`` extension; a member that is not here is dropped."""

    engine: Word = ""
    locality: Word = ""
    link: Word = ""
    privacy: Word = ""
    semantic: SemanticTold | None = None
    confidence: float | None = None
    attempts: Annotated[tuple[AttemptTold, ...], msgspec.Meta(max_length=32)] = ()
    failovers: Annotated[tuple[FailoverTold, ...], msgspec.Meta(max_length=32)] = ()


class Ended(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="request"):
    """One request, at its end. ``code`` is the error's, empty where there was none; ``at_s`` is Unix time."""

    number: int
    at_s: float
    id: str
    route: str
    status: int
    took_ms: float
    engine: str = ""
    code: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    told: Told | None = None


class LinkLook(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="link"):
    """The link as the router saw it at ``at_s``. Figures that are not known are null."""

    at_s: float
    state: str
    rtt_ms: float | None = None
    bps: float | None = None


def read_told(extension: object) -> Told | None:
    """The kept part of an extension; None where it is none, or breaks a bound."""
    try:
        return msgspec.convert(extension, Told)
    except msgspec.ValidationError:
        return None


class Watcher:
    """One reader of what happens from now on. ``None`` from :meth:`next` means that the journal was closed."""

    def __init__(self, on_lost: Callable[[], None]) -> None:
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUED)
        self._on_lost = on_lost

    async def next(self) -> bytes | None:
        """The next event, as JSON."""
        return await self._queue.get()

    def offer(self, event: bytes | None) -> bool:
        """False where the queue is full: the reader is too slow, and has been told."""
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self._on_lost()
            return False
        return True


class NoJournal:
    """Keeps nothing: the null version."""

    def next_number(self) -> int:
        return 0

    def ended(self, entry: Ended) -> None: ...

    def link(self, state: LinkState, rtt_s: float, throughput_bps: float) -> None: ...


LinkState = Literal["up", "degraded", "down"]
NO_JOURNAL = NoJournal()


class Journal(NoJournal):
    """The last requests and looks at the link, and whoever watches for more. Belongs to one event loop."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._requests: deque[Ended] = deque(maxlen=REQUESTS)
        self._looks: deque[LinkLook] = deque(maxlen=LOOKS)
        self._watchers: set[Watcher] = set()
        self._count = 0

    @property
    def watchers(self) -> int:
        return len(self._watchers)

    def next_number(self) -> int:
        """Counts requests, so that a reader who comes back knows which ones it has."""
        self._count += 1
        return self._count

    def ended(self, entry: Ended) -> None:
        self._requests.append(entry)
        if self._watchers:
            self._tell(_encoder.encode(entry))

    def link(self, state: LinkState, rtt_s: float, throughput_bps: float) -> None:
        """A look at the link; kept when its state changed, and now and then while it stays the same."""
        now_s = self._clock.wall_s()
        last = self._looks[-1] if self._looks else None
        if last is not None and last.state == state and 0 <= now_s - last.at_s < _LOOK_S:
            return
        look = LinkLook(now_s, state, _known(1e3 * rtt_s), _known(throughput_bps))
        self._looks.append(look)
        if self._watchers:
            self._tell(_encoder.encode(look))

    def recent(self) -> list[bytes]:
        """What is kept, as JSON events: the looks at the link, then the requests, each oldest first."""
        return [_encoder.encode(entry) for entry in (*self._looks, *self._requests)]

    def watch(self, on_lost: Callable[[], None]) -> Watcher:
        """From now on; :meth:`leave` ends it. ``on_lost`` is called when it was too slow. Errors: RateLimited."""
        if len(self._watchers) >= WATCHERS:
            raise RateLimited(f"{WATCHERS} consoles watch already, which is the most; close one of them.")
        watcher = Watcher(on_lost)
        self._watchers.add(watcher)
        return watcher

    def leave(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)

    def close(self) -> None:
        """Let every watcher's feed end."""
        self._tell(None)

    def _tell(self, event: bytes | None) -> None:
        self._watchers -= {watcher for watcher in self._watchers if not watcher.offer(event)}


def _known(value: float) -> float | None:
    return round(value, 3) if value == value else None  # noqa: PLR0124 - NaN is what differs from itself
