"""Where a wheel lies, asked of pip.

pip knows the user's mirrors, find-links, proxies, certificates and credentials; asking it (in a subprocess, nothing is
installed) means that no index is named here. ``--only-binary`` is part of the contract: without it pip would run the
build script of a source archive. A mirror that serves no separate metadata makes pip fetch each wheel to read it; pip's
own cache then holds it.
"""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import msgspec

from codriver.core.errors import SourceUnavailable

REPORT_ARGUMENTS = (
    *("install", "--dry-run", "--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--ignore-installed"),
    *("--no-input", "--disable-pip-version-check", "--quiet", "--report", "-"),
)
# pip's own order of precedence, weakest first.
CONFIG_SECTIONS = ("global", "install", ":env:")


@dataclass(frozen=True, slots=True)
class Wheel:
    """``url`` is ``https:``, ``http:`` or ``file:``; ``sha256`` is empty when the index gives none."""

    url: str
    sha256: str


@dataclass(frozen=True, slots=True)
class PipSettings:
    """What of the user's pip configuration a download needs. ``logins`` maps host:port to (user, password)."""

    cert: str = ""
    proxy: str = ""
    trusted_hosts: frozenset[str] = frozenset()
    logins: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False)

    def login(self, url: str) -> tuple[str, str] | None:
        return self.logins.get(urlsplit(url).netloc.rpartition("@")[2])

    def trusts(self, url: str) -> bool:
        parts = urlsplit(url)
        return parts.hostname in self.trusted_hosts or parts.netloc in self.trusted_hosts


class _Archive(msgspec.Struct):
    hashes: dict[str, str] = {}


class _Download(msgspec.Struct):
    url: str
    archive_info: _Archive = msgspec.field(default_factory=_Archive)


class _Metadata(msgspec.Struct):
    name: str


class _Install(msgspec.Struct):
    download_info: _Download
    metadata: _Metadata


class _Report(msgspec.Struct):
    install: list[_Install]


async def find_wheels(pins: Sequence[str], python: str) -> dict[str, Wheel]:
    """The wheel of every ``NAME==VERSION`` pin, in one call of ``python -m pip``.

    Raises ``SourceUnavailable`` with pip's own last words.
    """
    code, out, err = await _pip(python, [*REPORT_ARGUMENTS, *dict.fromkeys(pins)])
    if code != 0:
        raise SourceUnavailable(_last_words(err))
    try:
        report = msgspec.json.decode(out, type=_Report)
    except msgspec.DecodeError as error:
        raise SourceUnavailable(f"pip's report could not be read ({error}); pip 22.2 or newer is needed") from error
    found = {_canonical(item.metadata.name): item.download_info for item in report.install}
    wheels = {}
    for pin in pins:
        info = found.get(_canonical(pin.partition("==")[0]))
        if info is None:
            raise SourceUnavailable(f"pip's report does not mention {pin}")
        wheels[pin] = Wheel(info.url, info.archive_info.hashes.get("sha256", ""))
    return wheels


async def read_settings(python: str) -> PipSettings:
    """The user's pip configuration (files and environment); empty where pip cannot tell."""
    code, out, _ = await _pip(python, ["config", "list", "--disable-pip-version-check"])
    return parse_settings(out.decode(errors="replace")) if code == 0 else PipSettings()


def parse_settings(listing: str) -> PipSettings:
    """Read the output of ``pip config list``: lines of ``section.key='value'``."""
    sections: dict[str, dict[str, str]] = {}
    for line in listing.splitlines():
        name, _, literal = line.partition("=")
        section, _, key = name.rpartition(".")
        try:
            sections.setdefault(section, {})[key] = str(ast.literal_eval(literal))
        except (ValueError, SyntaxError):
            continue  # a line that is no setting, such as a warning
    merged: dict[str, str] = {}
    for section in CONFIG_SECTIONS:
        merged |= sections.get(section, {})
    indexes = f"{merged.get('index-url', '')} {merged.get('extra-index-url', '')}".split()
    return PipSettings(
        cert=merged.get("cert", ""),
        proxy=merged.get("proxy", ""),
        trusted_hosts=frozenset(merged.get("trusted-host", "").split()),
        logins={netloc: pair for url in indexes for netloc, pair in _login(url)},
    )


def _login(url: str) -> list[tuple[str, tuple[str, str]]]:
    parts = urlsplit(url)
    if parts.username is None:
        return []
    return [(parts.netloc.rpartition("@")[2], (unquote(parts.username), unquote(parts.password or "")))]


async def _pip(python: str, arguments: list[str]) -> tuple[int, bytes, bytes]:
    # -P keeps the current folder off the path: a pip.py lying there must not run.
    try:
        process = await asyncio.create_subprocess_exec(
            python,
            *("-P", "-m", "pip"),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise SourceUnavailable(f"{python} cannot be run: {error.strerror}") from error
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out, err


def _last_words(err: bytes) -> str:
    lines = [line.strip() for line in err.decode(errors="replace").splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return "this Python has no pip; run: python -m ensurepip"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    return "pip says: " + (" ".join(errors) or (lines[-1] if lines else "nothing"))


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
