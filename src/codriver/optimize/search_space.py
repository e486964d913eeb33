"""What a search may choose."""

from __future__ import annotations

from dataclasses import dataclass

# Types by the name of a group; ``None``: all that the settings allow.
KINDS: dict[str, tuple[str, ...] | None] = {
    "all": None,
    "blocks of 32": ("Q4_0", "Q4_1", "IQ4_NL", "Q5_0", "Q5_1", "Q8_0"),
    # llama.cpp multiplies many tokens two to three times as fast in the types that it lays out anew.
    "quick to read": ("Q2_K", "Q3_K", "Q4_0", "IQ4_NL", "Q4_K", "Q5_K", "Q6_K", "Q8_0"),
}
DAMPINGS = (0.03, 0.1, 0.3)


@dataclass(frozen=True)
class Proposal:
    """``share``: of the way from the least size that may be taken to the most."""

    number: int
    recipe: str
    kinds: str
    damping: float
    share: float
