"""What a search found out: its trials, and the front among them, as they stand beside its artifact.

The rule kept: what was worked out by a model, and not measured, says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from codriver.core.artifact import Measured
from codriver.core.errors import BadModelFile

RESULT = "search.json"


class Record(msgspec.Struct, frozen=True):
    """One trial. ``state``: how far it came; what is ``expected`` was not written. ``broken``: by how much each
    requirement is missed, as a share; 0 or less where it is met. ``predicted``: the keys of ``values`` that nothing
    was measured for.
    """

    recipe: str
    kinds: str
    damping: float
    key: str
    size_bytes: int
    expected_kl: float
    state: Literal["expected", "scored", "measured"]
    values: dict[str, float]
    broken: list[float]
    missed: list[str]
    lineage: list[str] = []
    card: list[Measured] = []
    sensed: str = ""
    predicted: list[str] = []

    @property
    def kl(self) -> float:
        return self.values.get("kl", self.expected_kl)


class Found(msgspec.Struct, frozen=True):
    """What a search leaves beside its artifact. ``front``: the measured records that no other beats in both KL and
    size, the smallest first. ``proxies``: what decided which trials were measured, as sentences. ``limits``: the
    requirements that are plain numbers, by key.
    """

    requirements: list[str]
    records: list[Record]
    front: list[Record]
    proxies: list[str] = []
    limits: dict[str, float] = {}


def front(records: Sequence[Record]) -> list[Record]:
    """The measured records that no other beats in both KL and size, the smallest first."""
    found: list[Record] = []
    distinct = {one.key: one for one in records if one.state == "measured"}.values()
    for one in sorted(distinct, key=lambda one: (one.size_bytes, one.kl)):
        if not found or one.kl < found[-1].kl:
            found.append(one)
    return found


def read_found(folder: Path) -> Found | None:
    """What a search left in an artifact's folder, if one did. Errors: :class:`BadModelFile` naming the file."""
    file = folder / RESULT
    try:
        return msgspec.json.decode(file.read_bytes(), type=Found)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadModelFile(f"The trials of a search in {file} are not valid: {error}.") from error
