"""What the request structs do not tell of a body: a word on privacy that a later duplicate of its member hides."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from codriver.core import privacy
from codriver.core.messages import RequestOptions

_WORDS = ("local_only", "redact")  # the strictest first


def strictest(options: RequestOptions | None, body: bytes) -> RequestOptions | None:
    """``options`` as they were read from ``body``, with the strictest privacy class that any duplicate in it says.

    In JSON the last of two equal members counts; for ``privacy`` the stricter one does. Only a body that holds a
    stricter word than was understood is looked at again. One that spells the word with escapes is read as JSON says.
    """
    read = privacy.strictness(options.privacy if options is not None else None)
    if not any(privacy.strictness(word) > read and word.encode() in body for word in _WORDS):
        return options
    try:
        # Only strings matter here: a number may be too long for Python, and a member that nobody reads no UTF-8.
        members = json.loads(body.decode("utf-8", "replace"), object_pairs_hook=tuple, parse_int=str)
        said = set(_said(members))
    except (ValueError, RecursionError):
        said = {"local_only"}  # what cannot be looked at stays in the vehicle
    for word in _WORDS:
        if word in said and privacy.strictness(word) > read:
            options = options or RequestOptions()
            options.privacy = word  # type: ignore[assignment]
            break
    return options


def _said(members: Any) -> Iterator[str]:
    """Every privacy class in ``members``: an object as pairs, so that nothing of it is lost."""
    for name, inner in members:
        if name == "codriver" and isinstance(inner, tuple):
            yield from (pair[1] for pair in inner if pair[0] == "privacy" and isinstance(pair[1], str))
