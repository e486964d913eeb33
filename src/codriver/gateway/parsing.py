"""JSON bodies of the routes whose shapes only the gateway knows, with the same sentences as ``core.messages``."""

from __future__ import annotations

from typing import Any

import msgspec

from codriver.core.errors import MalformedBody


def decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    """Errors: :class:`MalformedBody` naming the field at fault."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        sentence, _, path = str(error).partition(" - at `")
        field = path.rstrip("`").removeprefix("$.").removeprefix("$") or None
        where = f" in '{field}'" if field else ""
        raise MalformedBody(f"The request body is not valid{where}: {sentence}.", param=field) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBody(f"The request body is not valid JSON: {error}.") from error
