"""A request's head: the few headers that matter here, read in one pass over the bytes."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable

import msgspec

from codriver.core.errors import MalformedBody
from codriver.core.messages import RequestOptions
from codriver.core.parsing import allowed_values
from codriver.core.privacy import strictest, strictness

_NAMES = ("policy", "engine", "privacy", "failover", "session", "priority")
_NUMBERS = ("deadline-ms", "first-token-ms", "inter-token-ms", "budget-usd")
_PRIVACY = "x-codriver-privacy"
_UNKNOWN_WORD = 1.5
_SESSION_CHARS = 256
_MOST_ENTITIES = 1000
_ENTITY_CHARS = 200
_MOST_DOCUMENTS = 64
_CONTEXT_CHARS = 2_000_000
_PREFIX = b"x-codriver-"
OPTION_HEADERS = {f"x-codriver-{name}".encode(): name.replace("-", "_") for name in _NAMES + _NUMBERS}
_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_run = os.urandom(5).hex()
_numbers = itertools.count(1)


class Head:
    """``length`` is -1 for a chunked body; ``options`` holds the ``x-codriver-*`` headers, ``trace`` the W3C ones."""

    __slots__ = ("authorization", "length", "options", "request_id", "trace")

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.length = -1
        self.authorization = b""
        self.request_id = b""
        self.options: dict[str, str] = {}
        self.trace: dict[str, str] = {}
        for name, value in headers:
            if name == b"content-length":
                self.length = int(value) if value.isdigit() else -1
            elif name == b"authorization":
                self.authorization = value
            elif name == b"x-api-key":
                # Anthropic's clients; where both are sent the other one counts.
                self.authorization = self.authorization or b"Bearer " + value
            elif name == b"x-request-id":
                self.request_id = value if _ID.fullmatch(value) else b""
            elif name in (b"traceparent", b"tracestate"):
                self.trace[name.decode()] = value.decode("latin-1")
            elif name.startswith(_PREFIX):
                self._option(name.decode("latin-1"), value.decode("latin-1").strip())
        if not self.request_id:
            self.request_id = f"req_{_run}{next(_numbers):08x}".encode()

    def _option(self, name: str, text: str) -> None:
        # A word that is none counts, so that it is refused; but not against the strictest.
        known = strictness(self.options.get(name)) if name == _PRIVACY else 0
        if not known or known < (strictness(text) if strictness(text) >= 0 else _UNKNOWN_WORD):
            self.options[name] = text

    @property
    def background(self) -> bool:
        """True when a header says so already, before the body is read."""
        return self.options.get("x-codriver-priority") == "background"

    def request_options(self, body: RequestOptions | None) -> RequestOptions | None:
        """The headers' options under the body's, which count where both set one; but of privacy classes the
        strictest counts. Errors: :class:`MalformedBody`.
        """
        if not self.options:
            _check_bounds(body)
            return body
        merged = RequestOptions()
        for name, text in self.options.items():
            setattr(merged, *_option(name, text))
        if body is not None:
            for field in msgspec.structs.fields(RequestOptions):
                value = getattr(body, field.name)
                if field.name == "privacy" and merged.privacy is not None:
                    value = strictest(value, merged.privacy)
                if value is not None:
                    setattr(merged, field.name, value)
        _check_bounds(merged)
        return merged


def _option(name: str, text: str) -> tuple[str, object]:
    field = OPTION_HEADERS.get(name.encode("latin-1"))
    if field is None:
        # A misspelt privacy header that is ignored would be a leak.
        known = ", ".join(key.decode() for key in OPTION_HEADERS)
        raise MalformedBody(f"There is no header '{name}'. Known: {known}.", param=name)
    try:
        return field, getattr(msgspec.convert({field: text}, RequestOptions, strict=False), field)
    except msgspec.ValidationError as error:
        sentence = str(error).partition(" - at ")[0]
        raise MalformedBody(
            f"The header '{name}' is not valid: {sentence}.{allowed_values(RequestOptions, field)}", param=name
        ) from error


def _check_bounds(options: RequestOptions | None) -> None:
    if options is None:
        return
    for field in ("deadline_ms", "first_token_ms", "inter_token_ms"):
        value = getattr(options, field)
        if value is not None and not 0 < value < 1e9:
            raise MalformedBody(
                f"'codriver.{field}' must be a number of milliseconds above 0.", param=f"codriver.{field}"
            )
    if options.budget_usd is not None and not options.budget_usd >= 0:
        raise MalformedBody("'codriver.budget_usd' must not be negative.", param="codriver.budget_usd")
    if len(options.entities or ()) > _MOST_ENTITIES or any(len(one) > _ENTITY_CHARS for one in options.entities or ()):
        raise MalformedBody(
            f"'codriver.entities' may hold {_MOST_ENTITIES} names of {_ENTITY_CHARS} characters at most.",
            param="codriver.entities",
        )
    if options.context is not None:
        _check_context(options.context)
    if options.session is not None and len(options.session) > _SESSION_CHARS:
        raise MalformedBody(
            f"'codriver.session' has {len(options.session)} characters, and may have {_SESSION_CHARS} at most.",
            param="codriver.session",
        )


def _check_context(documents: list[str]) -> None:
    if len(documents) > _MOST_DOCUMENTS:
        raise MalformedBody(
            f"'codriver.context' holds {len(documents)} documents, and may hold {_MOST_DOCUMENTS} at most.",
            param="codriver.context",
        )
    chars = sum(map(len, documents))
    if chars > _CONTEXT_CHARS:
        raise MalformedBody(
            f"'codriver.context' has {chars} characters, and may have {_CONTEXT_CHARS} at most.",
            param="codriver.context",
        )
