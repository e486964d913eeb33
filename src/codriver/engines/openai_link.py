"""One HTTP exchange with a remote server: pool, TLS, deadline, and what the link's observer is told.

The rule kept here: every exchange ends - by its answer, by its deadline (one timer, however many reads), or by being
left, which closes the connection at once so that the server stops working.
"""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, TypeVar

from codriver.core.clock import SYSTEM_CLOCK
from codriver.core.deadline import Deadline
from codriver.core.engine import LinkObserver
from codriver.core.errors import DeadlineExceeded, EngineError, UpstreamMalformed

from . import openai_errors
from .http_answer import Answer, Disconnected, HttpFailure
from .http_client import Connection
from .http_pool import Place, Pool

T = TypeVar("T")
_ERROR_BODY_BYTES = 64 << 10
_INFLATED_BYTES = 1 << 20  # unpacked at a time


class Expiry:
    """A deadline over many awaits for the price of one timer: when it fires, the await under way is cancelled.

    Never held open across a ``yield``: between two awaits it only remembers that it fired.
    """

    def __init__(self, deadline: Deadline) -> None:
        self._fired = False
        self._task: asyncio.Task[Any] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | asyncio.Task[None] | None = None
        if math.isinf(deadline.at_s):
            return
        if deadline.clock is SYSTEM_CLOCK:
            self._timer = self._loop.call_later(deadline.remaining_s(), self._fire)
        else:
            self._timer = asyncio.ensure_future(self._sleep(deadline))

    async def _sleep(self, deadline: Deadline) -> None:
        await deadline.clock.sleep(deadline.remaining_s())
        self._fire()

    def _fire(self) -> None:
        self._fired = True
        if self._task is not None:
            self._task.cancel()

    async def wait(self, work: Callable[[], Awaitable[T]]) -> T:
        """Await ``work()``. Errors: :class:`DeadlineExceeded`."""
        if self.passed():
            raise DeadlineExceeded("The deadline passed before the answer was complete.")
        task = self._task = asyncio.current_task(self._loop)
        assert task is not None
        cancelling = task.cancelling()
        try:
            return await work()
        except asyncio.CancelledError:
            # As asyncio.timeout does: a cancellation from outside, too, must still come through.
            if self.passed() and task.uncancel() <= cancelling:
                raise DeadlineExceeded("The deadline passed before the answer was complete.") from None
            raise
        finally:
            self._task = None

    def passed(self) -> bool:
        return self._fired

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class Exchange:
    """A request, and an answer that began with 2xx. ``async with`` sends and waits for the answer's head.

    Leaving before the answer's end closes the connection. Errors: whatever :mod:`.openai_errors` makes of the answer
    or of its absence, and :class:`DeadlineExceeded`.
    """

    def __init__(self, link: Link, head: bytes, body: bytes | None, deadline: Deadline) -> None:
        self._link = link
        self._head = head
        self._body = body
        self._deadline = deadline
        self._unpack: _Unpack | None = None

    async def __aenter__(self) -> Exchange:
        if self._deadline.expired():
            raise DeadlineExceeded("The deadline passed before the request was sent.")
        self._expiry = Expiry(self._deadline)
        self._connection: Connection | None = None
        self._link.observer.sent()
        try:
            await self._begin()
        except BaseException:
            self._end(done=False)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._end(done=kind is None)

    @property
    def content_type(self) -> str:
        """The media type, without its parameters."""
        found = self._answer.headers.get(b"content-type", b"application/octet-stream")
        return found.partition(b";")[0].strip().lower().decode("latin-1")

    async def whole(self, limit_bytes: int) -> bytes:
        """The body in one. Errors: as :meth:`read`, and :class:`UpstreamMalformed` when it is too large."""
        pieces = []
        left_bytes = limit_bytes
        while piece := await self.read():
            pieces.append(piece)
            left_bytes -= len(piece)
            if left_bytes < 0:
                raise UpstreamMalformed(
                    f"The answer of '{self._link.engine}' is larger than {limit_bytes} bytes.", engine=self._link.engine
                )
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def read(self) -> bytes:
        """The next bytes of the body, empty at its end.

        Errors: :class:`EngineDied`, :class:`UpstreamMalformed`, :class:`DeadlineExceeded`.
        """
        if self._unpack is None:
            return await self._read()
        while not (piece := self._unpack.more()):
            packed = await self._read()
            if not packed:
                if self._unpack.cut():
                    raise openai_errors.cut_short(self._link.engine)
                return b""
            self._unpack.feed(packed)
        return piece

    async def _read(self) -> bytes:
        assert self._connection is not None
        try:
            piece = await self._expiry.wait(self._connection.read)
        except HttpFailure as error:
            if not isinstance(error, Disconnected):
                raise openai_errors.cut_short(self._link.engine, f"its framing broke ({error})") from error
            died = openai_errors.cut_short(self._link.engine)
            self._link.observer.failed(died.message)
            raise died from error
        if piece:
            self._link.observer.received(len(piece))
        return piece

    async def _begin(self) -> None:
        link = self._link
        try:
            connection = self._connection = await self._expiry.wait(self._send)
        except HttpFailure as error:
            mapped = openai_errors.connection_error(error, link.engine, str(link.place))
            if openai_errors.blames_link(error):
                link.observer.failed(mapped.message)
            raise mapped from error
        assert connection.answer is not None
        answer = self._answer = connection.answer
        link.observer.received(answer.field_bytes)
        packing = answer.headers.get(b"content-encoding")
        if packing is not None and packing.lower() != b"identity":
            self._unpack = _Unpack(packing.lower(), link.engine)
        if not 200 <= answer.status < 300:
            raise await self._refused(answer)

    async def _send(self) -> Connection:
        return await self._link.pool.exchange(self._head, self._body)

    async def _refused(self, answer: Answer) -> Exception:
        body = b""
        try:
            while len(body) < _ERROR_BODY_BYTES and (piece := await self.read()):
                body += piece
        except EngineError:
            pass  # the status line alone says enough
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in answer.headers.items()}
        wall_s = self._deadline.clock.wall_s()
        return openai_errors.refusal(answer.status, headers, body, self._link.engine, wall_s)

    def _end(self, done: bool) -> None:
        self._expiry.end()
        connection, self._connection = self._connection, None
        if connection is not None:
            # An answer that has come in full has ended, also where nobody wanted all of it.
            if done or (connection.answer and connection.answer.complete):
                connection.release()
            else:
                connection.abort()
        self._link.observer.settled()


class _Unpack:
    """A gzip body, unpacked a bounded piece at a time: a small answer may hold a very large one."""

    def __init__(self, packing: bytes, engine: str) -> None:
        if packing not in (b"gzip", b"x-gzip"):
            raise UpstreamMalformed(
                f"The answer of '{engine}' is packed as '{packing.decode('latin-1')}', which was not asked for.",
                engine=engine,
            )
        self._engine = engine
        self._inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self._packed = b""

    def feed(self, packed: bytes) -> None:
        self._packed += packed

    def more(self) -> bytes:
        """The next bytes, none when more input is needed. Errors: :class:`UpstreamMalformed`."""
        try:
            piece = self._inflate.decompress(self._packed, _INFLATED_BYTES)
        except zlib.error as error:
            raise UpstreamMalformed(
                f"The answer of '{self._engine}' is not gzip: {error}.", engine=self._engine
            ) from error
        self._packed = self._inflate.unconsumed_tail
        return piece

    def cut(self) -> bool:
        return not self._inflate.eof


class Link:
    """The connections to one server. ``headers`` go with every request (they hold the key: never printed)."""

    def __init__(self, engine: str, place: Place, headers: dict[str, str], observer: LinkObserver) -> None:
        self.engine = engine
        self.observer = observer
        self.place = place
        self.pool = Pool(place)
        self._headers = b"".join(
            f"{name}: {value}\r\n".encode("ascii") for name, value in {"Host": place.authority, **headers}.items()
        )

    def exchange(
        self, method: str, path: str, body: bytes | None, deadline: Deadline, headers: bytes = b""
    ) -> Exchange:
        """``headers`` are this request's own lines, each with its end; neither they nor ``path`` are checked here."""
        start = f"{method} {path} HTTP/1.1\r\n".encode("ascii")
        length = b"" if body is None else b"Content-Length: %d\r\n" % len(body)
        return Exchange(self, b"".join((start, self._headers, headers, length, b"\r\n")), body, deadline)

    async def aclose(self) -> None:
        await self.pool.aclose()
