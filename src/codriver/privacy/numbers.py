"""Numbers whose check digits tell what they are, by python-stdnum; VIN by ISO 3779 and 49 CFR 565.

Each table row: what a candidate looks like, the check, and whether a word that names it must stand before it because
the check alone lets too many ordinary numbers pass.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from codriver.core.privacy import Finding

from .patterns import CARD, IBAN, IPV6, VIN

_VIN_VALUES = {**{str(n): n for n in range(10)}, **dict(zip("ABCDEFGH", range(1, 9), strict=True))}
_VIN_VALUES |= {"J": 1, "K": 2, "L": 3, "M": 4, "N": 5, "P": 7, "R": 9}
_VIN_VALUES |= dict(zip("STUVWXYZ", range(2, 10), strict=True))
_VIN_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
_NEAR_CHARS = 48

# stdnum's module, the form, the words of which one must stand near (None: the check is strong enough).
_NATIONAL: tuple[tuple[str, str, str | None], ...] = (
    ("de.idnr", r"\d{2} ?\d{3} ?\d{3} ?\d{3}", None),
    ("us.ssn", r"\d{3}-\d{2}-\d{4}", None),
    ("us.ssn", r"\d{9}|\d{3} \d{2} \d{4}", r"social security|ssn"),
    ("gb.nhs", r"\d{3} ?\d{3} ?\d{4}", r"nhs"),
    ("fr.nir", r"[12] ?\d{2} ?\d{2} ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}", None),
    ("it.codicefiscale", r"[A-Z]{6}\d[0-9LMNPQRSTUV][A-EHLMPR-T][0-9LMNPQRSTUV]{2}[A-Z][0-9LMNPQRSTUV]{3}[A-Z]", None),
    ("es.dni", r"\d{8}-?[A-Z]", None),
    ("es.nie", r"[XYZ]-?\d{7}-?[A-Z]", None),
    ("nl.bsn", r"\d{9}|\d{4}\.\d{2}\.\d{3}", r"bsn|burgerservice\w*|sofi\w*"),
    ("pl.pesel", r"\d{11}", None),
    ("be.nn", r"\d{2}\.?\d{2}\.?\d{2}-?\d{3}\.?\d{2}", None),
    ("ch.ssn", r"756\.?\d{4}\.?\d{4}\.?\d{2}", None),
    ("at.vnr", r"\d{4} ?\d{6}", r"sozialversicherung\w*|svnr|versicherungsnummer"),
    ("se.personnummer", r"(?:\d{2})?\d{6}[-+]\d{4}", None),
    ("dk.cpr", r"\d{6}-\d{4}", None),
    ("fi.hetu", r"\d{6}[-+A]\d{3}[0-9A-Y]", None),
    ("no.fodselsnummer", r"\d{6} ?\d{5}", None),
    ("pt.cc", r"\d{8} ?\d ?[A-Z0-9]{2}\d", None),
)


def numbers() -> Callable[[str], Iterator[Finding]]:
    """A function that finds every number of this module. Raises ``ImportError`` where python-stdnum is missing."""
    iban, luhn = import_module("stdnum.iban"), import_module("stdnum.luhn")
    national = [
        (
            re.compile(rf"(?<![\w.-])(?:{form})(?![\w-]|\.\d)", re.IGNORECASE),
            import_module(f"stdnum.{name}"),
            _near(words),
        )
        for name, form, words in _NATIONAL
    ]

    def find(text: str) -> Iterator[Finding]:
        for match in IBAN.finditer(text):
            end = _iban_end(match.group(), iban)
            if end:
                yield Finding(match.start(), match.start() + end, "IBAN")
        for match in VIN.finditer(text):
            if _is_vin(match.group().upper()):
                yield Finding(*match.span(), "VIN")
        for match in IPV6.finditer(text):
            if _is_ip(match.group()):
                yield Finding(*match.span(), "IP")
        if sum(map(text.count, "0123456789")) < 6:
            return
        for match in CARD.finditer(text):
            digits = re.sub(r"\D", "", match.group())
            if digits[0] in "23456" and luhn.is_valid(digits):
                yield Finding(*match.span(), "CARD")
        for pattern, check, near in national:
            for match in pattern.finditer(text):
                before = text[max(0, match.start() - _NEAR_CHARS) : match.start()]
                if check.is_valid(match.group()) and (near is None or near.search(before)):
                    yield Finding(*match.span(), "ID")

    return find


def _near(words: str | None) -> re.Pattern[str] | None:
    return None if words is None else re.compile(rf"\b(?:{words})\b", re.IGNORECASE)


def _iban_end(found: str, iban: Any) -> int:
    """How much of a candidate is an account number: words that follow it may look like a part of it. 0: nothing."""
    for end in range(len(found), 14, -1):
        if found[end - 1].isalnum() and iban.is_valid(found[:end], check_country=False):
            return end
    return 0


def _is_vin(vin: str) -> bool:
    """The check digit decides where it must be there (America, China); elsewhere the form: the last four are digits."""
    total = sum(_VIN_VALUES[sign] * weight for sign, weight in zip(vin, _VIN_WEIGHTS, strict=True))
    checked = vin[8] == "0123456789X"[total % 11]
    if vin[0] in "12345L":
        return checked
    return checked or (vin[-4:].isdigit() and sum(sign.isalpha() for sign in vin) >= 3)


def _is_ip(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False
