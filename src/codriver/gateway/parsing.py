"""What the request structs alone do not tell of a body: a ``local_only`` that a later duplicate of its member hides."""

from __future__ import annotations

import json
from typing import Any

from codriver.core.messages import RequestOptions


def strictest(options: RequestOptions | None, body: bytes) -> RequestOptions | None:
    """``options`` as they were read from ``body``, with ``local_only`` where any duplicate in it says so.

    In JSON the last of two equal members counts; for ``privacy`` the stricter one does. Only a body that holds the
    word and was not understood by it is looked at again. One that spells the word with escapes is read as JSON says.
    """
    if b"local_only" not in body or (options is not None and options.privacy == "local_only"):
        return options
    try:
        # Only strings matter here: a number may be too long for Python, and a member that nobody reads no UTF-8.
        members = json.loads(body.decode("utf-8", "replace"), object_pairs_hook=tuple, parse_int=str)
        if not _says_local_only(members):
            return options
    except (ValueError, RecursionError):
        pass  # what cannot be looked at stays in the vehicle
    options = options or RequestOptions()
    options.privacy = "local_only"
    return options


def _says_local_only(members: Any) -> bool:
    """``members``: an object as pairs, so that nothing of it is lost."""
    return any(
        ("privacy", "local_only") in inner for name, inner in members if name == "codriver" and isinstance(inner, tuple)
    )
