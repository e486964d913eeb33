"""A JSON object in a file beside a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from codriver.core.errors import BadModelFile, MissingFile


def read_json(file: Path) -> dict[str, Any]:
    """Errors: :class:`MissingFile`; :class:`BadModelFile` for what is no JSON object."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFile(f"{file} does not exist.") from None
    except OSError as error:
        raise MissingFile(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise BadModelFile(f"{file} is no JSON: {str(error)[:80]}.") from None
    if not isinstance(told, dict):
        raise BadModelFile(f"{file} is no JSON object.")
    return told
