"""What no body may be, whichever API it speaks: other than UTF-8, or an object that says a member twice.

Of two equal members one parser takes the first and another the last, and bodies go upstream in their own bytes: what
was checked here, be it a model, a limit or a privacy class, would not be what counts there. Limit: only the body's own
members and those of ``codriver`` are looked at, which takes one or two microseconds; what lies deeper decides nothing.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from codriver.core.errors import MalformedBody
from codriver.core.parsing import parse_as, where_not_utf8


class _Name(str):
    """Each is another key to a dictionary, even where two read the same: so a duplicate is still there."""

    __slots__ = ()
    __hash__ = object.__hash__


_Members = dict[_Name, msgspec.Raw]
_decoder = msgspec.json.Decoder(_Members, dec_hook=str.__new__)
_option_decoder = msgspec.json.Decoder(_Members | None, dec_hook=str.__new__)


def refuse_ambiguous(body: bytes) -> None:
    """Raise :class:`MalformedBody` for a body that two parsers may read differently."""
    if not body.isascii() and (place := where_not_utf8(body)):
        raise MalformedBody(f"The request body is not valid JSON: {place}.")
    members: _Members = parse_as(_decoder, body)
    names = set(map(str, members))
    if len(names) < len(members):
        _refuse_duplicate(members, "")
    if "codriver" in names:
        options = parse_as(_option_decoder, next(raw for name, raw in members.items() if str(name) == "codriver"))
        if options and len(set(map(str, options))) < len(options):
            _refuse_duplicate(options, "codriver.")


def _refuse_duplicate(members: _Members, inside: str) -> None:
    (name, _), *_ = Counter(map(str, members)).most_common(1)
    twice = inside + name[:100]
    raise MalformedBody(f"The request body says '{twice}' more than once; say it once.", param=twice)
