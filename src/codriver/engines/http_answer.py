"""One HTTP/1.1 answer as it comes in: httptools' callbacks, the limits on what is held, and when it is complete.

The rules kept here: an answer that was cut is an error and never an end; no server makes this grow without bound.
"""

from __future__ import annotations

from typing import Any

import httptools

HEAD_LIMIT_BYTES = 64 << 10


class HttpFailure(Exception):
    """Something below the meaning of an answer went wrong; the cause, where there is one, is ``__cause__``."""


class CannotConnect(HttpFailure):
    """No connection: refused, no such name (``socket.gaierror``), no way, or no TLS (``ssl.SSLError``)."""


class ConnectTimedOut(HttpFailure):
    """No connection within the time for one."""


class Disconnected(HttpFailure):
    """The connection ended before the answer did."""


class NotHttp(HttpFailure):
    """What came is not an HTTP answer. The text says why."""


class Answer:
    """``headers`` have names in lower case, without trailers. ``heard``: a byte came. ``spoiled``: bytes came that are
    not the answer's. ``keep``: the server lets the connection be used again. ``held_bytes``: of the body, not taken
    yet. ``field_bytes``: of all header lines. ``discard`` throws the rest of the body away as it comes.
    """

    def __init__(self, bodyless: bool) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.heard = self.head_done = self.complete = False
        self.keep = self.spoiled = self.discard = False
        self.held_bytes = self.field_bytes = 0
        self._pieces: list[bytes] = []
        self._quiet_bytes = 0  # since the head or the last byte of body: chunk sizes, trailers, interim answers
        self._bodyless = bodyless
        self._parser: Any = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Errors: :class:`NotHttp`; what follows a complete answer is none."""
        self.heard = True
        if self._parser is None:
            self.spoiled = True
            return
        self._quiet_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            self._refuse("it switched to another protocol", error)
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, _TooLong):
                raise
            self._refuse(_LONG, error)
        except httptools.HttpParserError as error:
            self._refuse(str(error), error)
        if self._quiet_bytes > HEAD_LIMIT_BYTES and not self.complete:
            self._refuse(_LONG, None)

    def take(self) -> bytes:
        """What has come of the body since the last time."""
        pieces, self._pieces, self.held_bytes = self._pieces, [], 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self, in_order: bool) -> bool:
        """The connection is gone, by the server's own end or not. Whether the answer is complete."""
        if self._parser is not None:
            self._parser = None  # it refers to this object
            coding = self.headers.get(b"transfer-encoding")
            framed = b"content-length" in self.headers if coding is None else coding.lower().endswith(b"chunked")
            self.complete = in_order and self.head_done and not framed
        return self.complete

    def _refuse(self, what: str, cause: BaseException | None) -> None:
        self._parser = None
        self.spoiled = True
        if not self.complete:
            raise NotHttp(what) from cause

    def _finish(self) -> None:
        self.keep = self._parser.should_keep_alive()
        self.complete = True
        self._parser = None

    # ------------------------------------------------------------ httptools' callbacks

    def on_message_begin(self) -> None:
        if self.complete:  # a second answer to one request
            self.spoiled = True

    def on_header(self, name: bytes, value: bytes) -> None:
        self.field_bytes += len(name) + len(value) + 4
        if self.field_bytes > HEAD_LIMIT_BYTES:
            raise _TooLong
        if not self.head_done:  # else a trailer
            self.headers[name.lower()] = value.rstrip()

    def on_headers_complete(self) -> None:
        if self.head_done:
            return
        status = self._parser.get_status_code()
        if status < 200:  # an interim answer, such as 100 or 103; the real one follows
            self.headers = {}
            return
        self.status = status
        self.head_done = True
        self._quiet_bytes = 0
        if self._bodyless:
            self._finish()

    def on_body(self, body: bytes) -> None:
        self._quiet_bytes = 0
        if self.complete:
            self.spoiled = True
        elif not self.discard:
            self._pieces.append(body)
            self.held_bytes += len(body)

    def on_message_complete(self) -> None:
        if self.head_done and not self.complete:
            self._finish()


_LONG = f"its head or its framing is longer than {HEAD_LIMIT_BYTES} bytes"


class _TooLong(Exception):
    """More header lines than any honest server sends."""
