"""JSON from outside as typed structs, with sentences that say which member is wrong and what is allowed there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from .errors import MalformedBody

_MEMBER = re.compile(r"[A-Za-z_]+")


def parse_as(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    """``body`` as the decoder's type. Errors: :class:`MalformedBody` naming the member at fault."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        sentence, _, path = str(error).partition(" - at `")
        field = path.rstrip("`").removeprefix("$").removeprefix(".").replace("[...]", "") or None
        where = f" in '{field}'" if field else ""
        allowed = allowed_values(decoder.type, field or "") if "enum" in sentence else ""
        raise MalformedBody(f"The request body is not valid{where}: {sentence}.{allowed}", param=field) from error
    except UnicodeDecodeError as error:
        raise MalformedBody(f"The request body is not valid JSON: {where_not_utf8(body) or error}.") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise MalformedBody(f"The request body is not valid JSON: {error}.") from error


def allowed_values(kind: Any, path: str) -> str:
    """``" Allowed: a, b."`` for the member at ``path`` of a struct; empty where it takes more than a few words."""
    for name in _MEMBER.findall(path):
        kind = next((get_type_hints(one)[name] for one in _inside(kind) if name in _members(one)), None)
    for one in _inside(kind):
        if get_origin(one) is Literal:
            return f" Allowed: {', '.join(str(value) for value in get_args(one))}."
    return ""


def _inside(kind: Any) -> Iterator[Any]:
    """The type itself and those that it is made of."""
    yield kind
    if get_origin(kind) is not Literal:
        for one in get_args(kind):
            yield from _inside(one)


def _members(kind: Any) -> tuple[str, ...]:
    return tuple(getattr(kind, "__struct_fields__", ()))


def where_not_utf8(body: bytes) -> str:
    """What is wrong with bytes that are not UTF-8; empty where they are. A decoder of JSON counts from the start of the
    text at fault, which tells a client nothing.
    """
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"it is not UTF-8: byte 0x{body[error.start]:02x} at position {error.start} ({error.reason})"
    return ""
