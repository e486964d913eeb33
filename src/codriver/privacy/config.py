"""The settings of this room."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from codriver.core.config import setting


@dataclass(frozen=True)
class PrivacyConfig:
    """What ``redact`` looks for beside what has a form of its own."""

    names: tuple[str, ...] = setting((), "Names that redact hides wherever they stand, such as those of contacts.")
    names_file: Path | None = setting(None, "A file with one such name a line; # starts a comment.")
    phone_regions: tuple[str, ...] = setting(
        ("DE", "FR", "GB", "US"), "Countries (ISO 3166) whose phone numbers are found without their country code."
    )
