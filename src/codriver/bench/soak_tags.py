"""The tag in a soak request's text: which fault it gets, whose turn it is, and what no cloud may see of it.

A tag goes through every API and every engine unchanged, because it is text. It holds no digits in a row that could be
taken for personal data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .fault_cases import HEALTHY

SECRET = "only-for-the-vehicle"
_TAG = re.compile(r"\[\[soak (?P<fault>[^|]*)\|(?P<session>[^|]*)\|t(?P<turn>\d+)\|(?P<privacy>\w+)\]\]")


@dataclass(frozen=True)
class Tag:
    fault: str = HEALTHY
    session: str = ""
    turn: int = 0
    privacy: str = "any"

    def text(self) -> str:
        return f"[[soak {self.fault}|{self.session}|t{self.turn}|{self.privacy}]]"


def tag_in(text: str) -> Tag | None:
    """The last tag of a text."""
    tags = list(_TAG.finditer(text))
    if not tags:
        return None
    found = tags[-1]
    return Tag(found["fault"], found["session"], int(found["turn"]), found["privacy"])


def mail(number: int) -> str:
    """An address that a redacting vehicle must hide."""
    return f"driver.{number}@private.example.org"


def tells(body: str) -> str:
    """What a body shows that it must not; empty where it shows nothing."""
    if SECRET in body:
        return "a local_only text"
    return "an address that was to be redacted" if "@private.example.org" in body else ""
