"""A real HTTP origin on loopback that can misbehave, and entries that point at it."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import web

from codriver.catalogue import CatalogueEntry, Part, Source, Store

MakeEntry = Callable[..., CatalogueEntry]


class Origin:
    """Serves ``files``. Misbehaviour is taken from the lists, one item per request, until they are empty."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.etag = '"one"'
        self.ranges = True
        self.login = ""
        self.logins: list[str] = []
        self.redirects: dict[str, str] = {}
        self.statuses: list[int] = []
        self.drop_after: list[int] = []
        self.hold_after: int | None = None
        self.held = asyncio.Event()
        self.release = asyncio.Event()
        self.asked: list[str] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.headers.get("Range", "whole"))
        self.logins.append(request.headers.get("Authorization", ""))
        if request.path in self.redirects:
            raise web.HTTPFound(self.redirects[request.path])
        if self.statuses:
            return web.Response(status=self.statuses.pop(0))
        if self.login and request.headers.get("Authorization") != self.login:
            return web.Response(status=401)
        if request.path not in self.files:
            return web.Response(status=404)
        body, start = self.files[request.path], 0
        current = request.headers.get("If-Range") in (None, self.etag)
        headers = {"ETag": self.etag}
        if self.ranges and current and "Range" in request.headers:
            start = int(request.headers["Range"].removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                return web.Response(status=416)
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        response = web.StreamResponse(status=206 if start else 200, headers=headers)
        response.content_length = len(body) - start
        response.content_type = "text/html" if request.path.endswith("/") else "application/octet-stream"
        await response.prepare(request)
        end = len(body)
        if self.drop_after:
            end = min(end, start + self.drop_after.pop(0))
        if self.hold_after is not None:
            await response.write(body[start : start + self.hold_after])
            start += self.hold_after
            self.held.set()
            await self.release.wait()
        await response.write(body[start:end])
        if end < len(body):
            assert request.transport is not None
            request.transport.close()
        return response


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    server = Origin()
    app = web.Application()
    app.router.add_get("/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    server.release.set()
    await runner.cleanup()


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(autouse=True)
def own_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the real user's folders or proxies reaches a test."""
    monkeypatch.setenv("CODRIVER_HOME", str(tmp_path / "home"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def body() -> bytes:
    """Three and a half megabytes that do not compress."""
    return random.Random(7).randbytes(3_500_000)


@pytest.fixture
def make_entry(body: bytes) -> MakeEntry:
    def make(*sources: Part | tuple[Part, ...], content: bytes = body, **changes: object) -> CatalogueEntry:
        values: dict[str, object] = {
            "name": "tiny",
            "kind": "data",
            "file": "tiny.bin",
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "licence": "CC0",
            "description": "random bytes",
            "sources": tuple(Source(item if isinstance(item, tuple) else (item,)) for item in sources),
        }
        return CatalogueEntry(**(values | changes))  # type: ignore[arg-type]

    return make
