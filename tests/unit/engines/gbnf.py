"""A small recogniser of GBNF, llama.cpp's grammar format, written apart from what makes such grammars; and a source of
texts of a grammar.
"""

from __future__ import annotations

import random
import re
from typing import Any

_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|[A-Za-z][A-Za-z0-9-]*|\{\d+(?:,\d*)?\}|[()|*+?])')
_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|.)", re.DOTALL)


class Gbnf:
    """``accepts`` tells whether a text is one of the grammar's."""

    def __init__(self, source: str) -> None:
        self.rules = {}
        for line in source.splitlines():
            name, _, body = line.partition("::=")
            tokens, at = [], 0
            while (found := _TOKEN.match(body, at)) is not None:
                tokens.append(found[1])
                at = found.end()
            assert not body[at:].strip(), f"no GBNF: {body[at:]!r}"
            self.rules[name.strip()] = self._either(tokens)
            assert not tokens, tokens

    def accepts(self, text: str) -> bool:
        self._text, self._known = text, {}  # type: ignore[var-annotated]
        return len(text) in self._ends(("rule", "root"), 0)

    def some(self, chance: random.Random) -> str:
        """A text of the grammar, short sooner than long."""
        self._costs: dict[str, float] = dict.fromkeys(self.rules, float("inf"))
        for _ in self.rules:
            self._costs = {name: self._cost(body) for name, body in self.rules.items()}
        return self._some(("rule", "root"), chance, 12)

    # ------------------------------------------------------------ writing

    def _cost(self, node: Any) -> float:
        """How deep the shallowest text of ``node`` lies."""
        kind, what = node[0], node[1]
        if kind == "rule":
            return 1 + self._costs[what]
        if kind == "either":
            return min(map(self._cost, what))
        if kind == "row":
            return max(map(self._cost, what), default=0)
        return self._cost(what) if kind == "times" and node[2] else 0

    def _some(self, node: Any, chance: random.Random, depth: int) -> str:
        kind, what = node[0], node[1]
        if kind == "text":
            return str(what)
        if kind == "class":
            shut, spans = what
            letters = (
                "aZ9 {,:é€😀nfoo-]^" if shut else "".join(chr(o) for a, b in spans for o in range(ord(a), ord(b) + 1))
            )
            return chance.choice([c for c in letters if shut != any(a <= c <= b for a, b in spans)])
        if kind == "rule":
            return self._some(self.rules[what], chance, depth - 1)
        if kind == "either":
            cheap = [way for way in what if self._cost(way) < depth] or [min(what, key=self._cost)]
            return self._some(chance.choice(cheap), chance, depth)
        if kind == "row":
            return "".join(self._some(one, chance, depth) for one in what)
        fewest, most = node[2], node[3]
        more = 0 if self._cost(what) >= depth else chance.choice([0, 0, 1, 2])
        times = max(fewest, min(fewest + more, fewest + more if most is None else most))
        return "".join(self._some(what, chance, depth) for _ in range(times))

    # ------------------------------------------------------------ reading it

    def _either(self, tokens: list[str]) -> Any:
        ways = [self._row(tokens)]
        while tokens and tokens[0] == "|":
            tokens.pop(0)
            ways.append(self._row(tokens))
        return ("either", ways)

    def _row(self, tokens: list[str]) -> Any:
        row = []
        while tokens and tokens[0] not in "|)":
            token = tokens.pop(0)
            if token == "(":
                one = self._either(tokens)
                assert tokens.pop(0) == ")"
            elif token[0] == '"':
                one = ("text", _plain(token[1:-1]))
            elif token[0] == "[":
                one = ("class", _class(token[1:-1]))
            else:
                assert token[0].isalpha(), token
                one = ("rule", token)
            row.append(self._repeated(one, tokens))
        return ("row", row)

    @staticmethod
    def _repeated(one: Any, tokens: list[str]) -> Any:
        if not tokens or tokens[0][0] not in "*+?{":
            return one
        mark = tokens.pop(0)
        if mark[0] == "{":
            fewest, comma, most = mark[1:-1].partition(",")
            return ("times", one, int(fewest), int(most) if most else None if comma else int(fewest))
        return ("times", one, int(mark == "+"), 1 if mark == "?" else None)

    # ------------------------------------------------------------ matching

    def _ends(self, node: Any, at: int) -> frozenset[int]:
        key = (id(node) if node[0] != "rule" else node[1], at)
        if key not in self._known:
            self._known[key] = frozenset(self._found(node, at))
        return self._known[key]

    def _found(self, node: Any, at: int) -> set[int]:
        kind, what = node[0], node[1]
        if kind == "text":
            return {at + len(what)} if self._text.startswith(what, at) else set()
        if kind == "class":
            shut, spans = what
            if at == len(self._text):
                return set()
            return {at + 1} if shut != any(low <= self._text[at] <= high for low, high in spans) else set()
        if kind == "rule":
            return set(self._ends(self.rules[what], at))
        if kind == "either":
            return {end for way in what for end in self._ends(way, at)}
        if kind == "row":
            here = {at}
            for one in what:
                here = {end for start in here for end in self._ends(one, start)}
            return here
        return self._times(what, node[2], node[3], at)

    def _times(self, one: Any, fewest: int, most: int | None, at: int) -> set[int]:
        here, found, count = {at}, set(), 0
        while True:
            if count >= fewest:
                if here <= found:
                    return found
                found |= here
            if count == most or not here:
                return found
            here = {end for start in here for end in self._ends(one, start)}
            count += 1


def _plain(text: str) -> str:
    named = {"n": "\n", "t": "\t", "r": "\r"}

    def letter(found: re.Match[str]) -> str:
        mark = found[1]
        if len(mark) > 1:
            return chr(int(mark[1:], 16))
        assert mark in 'ntr\\"[]', f"GBNF has no escape {mark}"
        return named.get(mark, mark)

    return _ESCAPE.sub(letter, text)


def _class(text: str) -> tuple[bool, list[tuple[str, str]]]:
    shut = text.startswith("^")
    letters = [_plain(one) for one in re.findall(r"\\x..|\\u....|\\.|.", text[shut:], re.DOTALL)]
    raw = re.findall(r"\\x..|\\u....|\\.|.", text[shut:], re.DOTALL)
    spans, at = [], 0
    while at < len(raw):
        if at + 2 < len(raw) and raw[at + 1] == "-":
            spans.append((letters[at], letters[at + 2]))
            at += 3
        else:
            spans.append((letters[at], letters[at]))
            at += 1
    return shut, spans
