"""Numbers of JSON as flat patterns: sequences of (characters, fewest, most), for what bounds leave of a number.

A pattern can be advanced by what is written already and printed as GBNF for the rest. Limits: a bounded number is
written without an exponent, and of a range whose ends are no whole numbers only the whole steps inside are used; new
digits end after twenty, which is as many as any double is written in, and an exponent has two.
"""

from __future__ import annotations

import math
from typing import Any

# (characters, fewest, most); None: any number of them.
Item = tuple[str, int, int | None]
Flat = tuple[Item, ...]

DIGITS = "0123456789"
_MOST_NEW = 20
_FRACTION: Flat = ((".", 1, 1), (DIGITS, 1, None))


def number_flats(schema: dict[str, Any], whole: bool) -> list[Flat]:
    """Every way to write a number of ``schema``; ``whole``: an integer. Empty where nothing is sure to fit."""
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None and high is None:
        return _unbounded(whole)
    least, most = (-math.inf if low is None else low), (math.inf if high is None else high)
    found = _from_to(max(0, least), most, whole) if most >= 0 else []
    if least < 0:
        found += [(("-", 1, 1), *flat) for flat in _from_to(max(0, -most), -least, whole)]
    return found


def _unbounded(whole: bool) -> list[Flat]:
    head: list[Flat] = [(("-", 0, 1), ("0", 1, 1)), (("-", 0, 1), ("123456789", 1, 1), (DIGITS, 0, None))]
    if whole:
        return head
    exponent: Flat = (("eE", 1, 1), ("+-", 0, 1), (DIGITS, 1, 2))
    return [one + more for one in head for more in ((), _FRACTION, exponent, _FRACTION + exponent)]


def _from_to(low: float, high: float, whole: bool) -> list[Flat]:
    """The numbers of ``low`` to ``high``, both at least 0."""
    least = math.ceil(low)
    if math.isinf(high):
        first = _whole_from(least)
        return first if whole else first + [(*flat, *_FRACTION) for flat in first]
    most = math.floor(high)
    if most < least:
        return []
    found = _between(least, most)
    if not whole:
        found += [(*flat, *_FRACTION) for flat in _between(least, most - 1)]
        found += [(*flat, (".", 1, 1), ("0", 1, None)) for flat in _between(most, most)]
    return found


def _whole_from(least: int) -> list[Flat]:
    size = len(str(least))
    return [*_between(least, 10**size - 1), (("123456789", 1, 1), (DIGITS, size, None))]


def _between(least: int, most: int) -> list[Flat]:
    """The whole numbers from ``least`` to ``most``, size by size."""
    found: list[Flat] = []
    while least <= most:
        end = min(most, 10 ** len(str(least)) - 1)
        found += _same_size(str(least), str(end))
        least = end + 1
    return found


def _same_size(low: str, high: str) -> list[Flat]:
    if not low:
        return [()]
    if set(low) == {"0"} and set(high) == {"9"}:
        return [((DIGITS, len(low), len(low)),)]
    if low[0] == high[0]:
        return [((low[0], 1, 1), *rest) for rest in _same_size(low[1:], high[1:])]
    first, last = int(low[0]), int(high[0])
    nines, zeros = "9" * (len(low) - 1), "0" * (len(low) - 1)
    found: list[Flat] = []
    if low[1:] != zeros:
        found += [((low[0], 1, 1), *rest) for rest in _same_size(low[1:], nines)]
        first += 1
    if high[1:] != nines:
        found += [((high[0], 1, 1), *rest) for rest in _same_size(zeros, high[1:])]
        last -= 1
    if first <= last:
        middle: Flat = ((DIGITS[first : last + 1], 1, 1),)
        found.append((*middle, (DIGITS, len(zeros), len(zeros))) if zeros else middle)
    return found


def advance(flats: list[Flat], text: str) -> list[Flat]:
    """What is left of each pattern once ``text`` was written; those that it does not fit are gone."""
    for letter in text:
        flats = list(dict.fromkeys(left for flat in flats for left in _step(flat, letter)))
    return flats


def _step(flat: Flat, letter: str) -> list[Flat]:
    found = []
    for at, (letters, fewest, most) in enumerate(flat):
        if letter in letters:
            left = None if most is None else most - 1
            item = () if left == 0 else ((letters, max(0, fewest - 1), left),)
            found.append((*item, *flat[at + 1 :]))
        if fewest:
            break
    return found


def printed(flat: Flat) -> str:
    """The pattern in GBNF; empty for the empty one."""
    return " ".join(_printed(item) for item in flat)


def _printed(item: Item) -> str:
    letters, fewest, most = item
    one = _quoted(letters) if len(letters) == 1 else f"[{_ranges(letters)}]"
    most = max(fewest, _MOST_NEW) if most is None else most
    if fewest == most:
        return one if most == 1 else f"{one}{{{most}}}"
    return f"{one}?" if (fewest, most) == (0, 1) else f"{one}{{{fewest},{most}}}"


def _quoted(letter: str) -> str:
    return {"\\": '"\\\\"', '"': '"\\""'}.get(letter, f'"{letter}"')


def _ranges(letters: str) -> str:
    if letters.isdigit() and len(letters) > 2 and letters in DIGITS:
        return f"{letters[0]}-{letters[-1]}"
    return letters.replace("\\", "\\\\").replace("]", "\\]")
