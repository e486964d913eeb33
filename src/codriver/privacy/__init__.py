"""Personal data in text: what it looks like, and where it stands. Nothing here talks to anybody."""

from .config import PrivacyConfig
from .names import NameFinder

__all__ = ["NameFinder", "PrivacyConfig"]
