"""The words that make two questions different although their vectors are close.

A sentence vector hardly moves when "on" becomes "off" or 21 becomes 22. Limits: English; a name is seen by its capital.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)?")
_NUMBERS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million half quarter third double twice
once first second last next previous both all every each only
"""
_NEGATIONS = "no not never none nothing nobody nowhere neither nor without except cannot cant dont wont isnt doesnt"
_OPPOSITES = """
on off up down in out open close closed shut left right front rear back top bottom inside outside inner outer
more less most least increase decrease raise lower higher reduce warm warmer hot hotter cool cooler cold colder heat
start stop begin end enable disable activate deactivate lock unlock add remove before after above below over under
fast faster slow slower loud louder quiet quieter soft hard bright brighter dim darker light heavy high low long short
big small large near far minimum maximum min max am pm yes
today tomorrow yesterday tonight morning afternoon evening night monday tuesday wednesday thursday friday saturday
sunday north south east west summer winter driver passenger with from to for against
red orange yellow green blue white black solid blinking flashing enter leave manual automatic forward backward reverse
mute unmute connect disconnect always sometimes why how when where who which what
"""
_TELLING = frozenset(f"{_NUMBERS} {_NEGATIONS} {_OPPOSITES}".split())


def same_order(left: tuple[str, ...], right: tuple[str, ...]) -> bool:
    """True when the words that two questions share come in the same order: "is a faster than b" is not the reverse."""
    shared = set(left) & set(right)
    return [word for word in left if word in shared] == [word for word in right if word in shared]


def words(text: str) -> tuple[str, ...]:
    """The words and numbers of a text in small letters."""
    return tuple(word.lower() for word in _WORD.findall(text))


def telling_words(text: str) -> tuple[str, ...]:
    """What must be the same in two questions that get one answer: numbers, negations, opposites and names, in order.

    A name is a word with a capital inside a sentence; a word without small letters is one anywhere.
    """
    found: list[str] = []
    starts = True
    past = 0
    for match in _WORD.finditer(text):
        word, between = match.group(), text[past : match.start()]
        past = match.end()
        starts = starts or any(mark in between for mark in ".!?\n")
        small = word.lower().replace("’", "'")
        name = word != small and (not starts or (len(word) > 1 and word.isupper())) and small not in ("i", "i'm", "i'd")
        if word[0].isdigit() or small in _TELLING or small.endswith("n't") or name:
            found.append(small)
        starts = False
    return tuple(found)
