"""One HTTP download that survives drops, restarts and servers that do not do ranges.

Bytes go to ``NAME.part``; ``NAME.part.json`` holds the server's validator. A later try asks for the rest with ``Range``
and ``If-Range``; a server that answers 200 instead, or with another size, makes it start again from zero. The file is
renamed to NAME only when it is complete and, where a sha256 is known, right.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec
from yarl import URL

from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.core.errors import ChecksumMismatch, SourceUnavailable

from .entry import without_login
from .part_file import PartFile
from .store import BLOCK_BYTES, mismatch

OK, PARTIAL, RANGE_NOT_SATISFIABLE = 200, 206, 416
TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
BACKOFF_CAP_S = 8.0

OnBytes = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Remote:
    """What to fetch. ``bytes`` 0 and ``sha256`` "" mean not known beforehand; ``what`` names it in errors."""

    url: str
    what: str
    bytes: int = 0
    sha256: str = ""
    authorization: str = field(default="", repr=False)
    check_certificate: bool = True

    @property
    def shown(self) -> str:
        """The address as error messages may hold it."""
        return without_login(self.url)


@dataclass(frozen=True, slots=True)
class Retry:
    """``tries`` failures in a row without a new byte end it; the pause doubles from ``backoff_s`` up to 8 s."""

    tries: int = 5
    backoff_s: float = 0.5
    clock: Clock = SYSTEM_CLOCK


class _Validator(msgspec.Struct):
    url: str = ""
    token: str = ""
    total_bytes: int = 0


class _TryAgain(Exception):
    """Something that another try may mend."""


_TRANSIENT = (_TryAgain, aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError)


class Download:
    """A download of ``remote`` to ``target``; ``on_bytes(done, total)`` is told of progress (total 0: unknown)."""

    def __init__(self, session: aiohttp.ClientSession, remote: Remote, target: Path, on_bytes: OnBytes) -> None:
        self._session = session
        self._remote = remote
        self._target = target
        self._on_bytes = on_bytes
        self._part_path = target.with_name(target.name + ".part")
        self._validator_path = target.with_name(target.name + ".part.json")
        self._validator = _Validator()

    async def run(self, retry: Retry) -> Path:
        """Fetch until complete; returns ``target``.

        Raises ``SourceUnavailable``, ``ChecksumMismatch`` (nothing is left then), and ``OSError`` as the disk does.
        """
        with closing(PartFile(self._part_path)) as part:
            await asyncio.to_thread(part.recover)
            self._validator = self._read_validator()
            try:
                await self._retry(part, retry)
            except BaseException:
                if part.count == 0:  # an empty part is no progress, and must not look like some
                    self._discard()
                raise
            await asyncio.to_thread(part.flush)
        expected, got = self._remote.sha256, part.sha256()
        if expected and got != expected:
            self._discard()
            raise mismatch(self._remote.what, expected, got, f"The server has other bytes: {self._remote.shown}")
        os.replace(self._part_path, self._target)
        self._validator_path.unlink(missing_ok=True)
        return self._target

    async def _retry(self, part: PartFile, retry: Retry) -> None:
        failures, furthest = 0, part.count
        while True:
            try:
                return await self._attempt(part)
            except _TRANSIENT as error:
                failures = 1 if part.count > furthest else failures + 1
                furthest = max(furthest, part.count)
                if failures >= retry.tries:
                    why = str(error) or type(error).__name__
                    raise SourceUnavailable(f"{self._remote.shown}: {why} ({failures} tries)") from error
            except aiohttp.ClientError as error:
                raise SourceUnavailable(f"{self._remote.shown}: {error or type(error).__name__}") from error
            await retry.clock.sleep(min(BACKOFF_CAP_S, retry.backoff_s * 2 ** (failures - 1)))

    async def _attempt(self, part: PartFile) -> None:
        known_bytes = self._remote.bytes or self._validator.total_bytes
        if known_bytes and part.count > known_bytes:
            part.restart()
        if known_bytes and part.count == known_bytes:
            return
        headers = {"Accept-Encoding": "identity"}
        if part.count:
            headers["Range"] = f"bytes={part.count}-"
            if self._validator.token and self._validator.url == self._remote.url:
                headers["If-Range"] = self._validator.token
        async with self._session.get(
            self._remote.url, headers=headers, ssl=self._remote.check_certificate, middlewares=(self._log_in,)
        ) as response:
            self._accept(response, part)
            await self._receive(response, part)

    async def _log_in(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Our own login goes before one of ``.netrc``, and to no other host that the server redirects to."""
        if self._remote.authorization and request.url.origin() == URL(self._remote.url).origin():
            request.headers["Authorization"] = self._remote.authorization
        return await handler(request)

    def _accept(self, response: aiohttp.ClientResponse, part: PartFile) -> None:
        """Decide what the answer means for the bytes we have; raises when it cannot be used."""
        total_bytes = 0
        if response.status == PARTIAL:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            total_bytes = int(match[2]) if match and match[2] != "*" else 0
            recorded = self._validator.total_bytes
            if not match or int(match[1]) != part.count or (recorded and total_bytes and recorded != total_bytes):
                part.restart()
                raise _TryAgain("the server's range does not fit what was asked")
        elif response.status == OK:
            part.restart()
            total_bytes = response.content_length or 0
        elif response.status == RANGE_NOT_SATISFIABLE:
            part.restart()
            raise _TryAgain("the server has fewer bytes than were fetched before")
        elif response.status in TRANSIENT_STATUS:
            raise _TryAgain(f"HTTP {response.status}")
        else:
            hint = " (a token may be needed)" if response.status in (401, 403) else ""
            raise SourceUnavailable(f"{self._remote.shown}: HTTP {response.status}{hint}")
        if self._remote.bytes and total_bytes and total_bytes != self._remote.bytes:
            self._refuse_size(total_bytes)
        self._write_validator(response, total_bytes)

    async def _receive(self, response: aiohttp.ClientResponse, part: PartFile) -> None:
        total_bytes = self._remote.bytes or self._validator.total_bytes
        pending = bytearray()
        self._on_bytes(part.count, total_bytes)
        try:
            async for block in response.content.iter_any():
                pending += block
                if self._remote.bytes and part.count + len(pending) > self._remote.bytes:
                    self._refuse_size(part.count + len(pending))
                if len(pending) >= BLOCK_BYTES:
                    await self._store(part, pending, total_bytes)
        finally:
            # What arrived before a drop is worth keeping: the next try goes on after it.
            if pending:
                await self._store(part, pending, total_bytes)
        if total_bytes and part.count < total_bytes:
            raise _TryAgain(f"the connection closed after {part.count} of {total_bytes} bytes")

    async def _store(self, part: PartFile, pending: bytearray, total_bytes: int) -> None:
        block = bytes(pending)
        pending.clear()
        await asyncio.to_thread(part.write, block)
        self._on_bytes(part.count, total_bytes)

    def _refuse_size(self, got_bytes: int) -> None:
        self._discard()
        raise ChecksumMismatch(
            f"{self._remote.what} is not the pinned file and was removed: {self._remote.bytes} bytes with sha256 "
            f"{self._remote.sha256 or 'unknown'} expected, got {got_bytes} bytes or more from {self._remote.shown}"
        )

    def _discard(self) -> None:
        self._part_path.unlink(missing_ok=True)
        self._validator_path.unlink(missing_ok=True)

    def _read_validator(self) -> _Validator:
        try:
            return msgspec.json.decode(self._validator_path.read_bytes(), type=_Validator)
        except (FileNotFoundError, msgspec.DecodeError):
            return _Validator()

    def _write_validator(self, response: aiohttp.ClientResponse, total_bytes: int) -> None:
        etag = response.headers.get("ETag", "")
        # A weak ETag does not promise equal bytes, so it may not guard a range.
        token = response.headers.get("Last-Modified", "") if etag.startswith("W/") or not etag else etag
        self._validator = _Validator(self._remote.url, token, total_bytes)
        self._validator_path.write_bytes(msgspec.json.encode(self._validator))
