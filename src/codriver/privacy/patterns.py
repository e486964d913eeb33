"""What personal data looks like where its form alone tells: regular expressions, each with its kind.

Group ``x``, where a pattern has it, is the datum itself; the rest is what must stand around it. Every quantifier is
bounded or disjoint from what follows, so that no text makes a search slow.
"""

from __future__ import annotations

import re

_I = re.IGNORECASE
# Sectors, house numbers and the like are short; a longer number behind a street-like word is none.
_HOUSE = r"\d{1,3}(?:\s?[a-z])?(?:\s?[-/]\s?\d{1,3}[a-z]?)?(?![\w.]\d|\d)\b"
_UP = r"[A-ZÀ-ÖØ-Þ]"
_LOW = r"[\wß.'’-]"
_TOWN = rf"(?:,?\s+(?:[A-Z]{{1,2}}-)?\d{{4,5}}\s+{_UP}{_LOW}{{2,30}})?"
# "5 cars on the road" has the form of an address, and its words tell that it is none.
_NO_STREET = (
    r"(?!(?:the|a|an|on|of|to|in|at|by|for|from|with|my|your|this|that|and|or|is|are|per|more|other|different"
    r"|miles?|meters?|metres?|km|kilomet\w+|minutes?|mins?|hours?|seconds?|days?|degrees?|percent|cars?|lanes?"
    r"|times?|people|exits?|stops?|way|west|east)\b)"
)
_MONTH = (
    r"(?:jan|feb|m[aä]r|apr|ma[iy]|ju[nl]|aug|sep|o[ck]t|nov|de[cz]|januar|januari|février|fevrier|mars|avril|juin|juillet"
    r"|août|enero|gennaio)[a-zäéû]{0,8}\.?"
)
_DATE = (
    r"(?:\d{1,2}[./-]\s?\d{1,2}[./-]\s?(?:\d{4}|\d{2})|\d{4}[./-]\d{1,2}[./-]\d{1,2}"
    rf"|\d{{1,2}}(?:st|nd|rd|th|\.)?\s+(?:of\s+)?{_MONTH}(?:,?\s+\d{{4}})?"
    rf"|{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?(?:,?\s+\d{{4}})?)"
)
_BORN = (
    r"(?:\bborn\b|\bbirthday\b|\bbirth\s?date\b|\bdate_?\s?of_?\s?birth\b|\bd\.?o\.?b\b\.?|\bgeb(?:\.|oren\b|urtstag\b"
    r"|urtsdatum\b)|\bn[ée]e?\sle\b|\bdate\sde\snaissance\b|\bnat[oa]\sil\b|\bnacid[oa]\sel\b|\bfecha\sde\snacimiento\b)"
)
_PLATE_WORD = (
    r"(?:\b(?:number|licen[cs]e|registration)\s?plate\b|\blicen[cs]e\s(?:number|no)\b|\bplates?\b|\bregistration\b"
    r"|\bkennzeichen\b|\bnummernschild\b|\bimmatriculation\b|\bmatr[ií]cula\b|\btarga\b|\bkenteken\b)"
)
_NO_DISTRICT = r"(?!(?:DIN|USB|CD|DVD|ISO|LTE|HDMI|UTF|CAN|EV|SAE|CO|PM|AC|DC|VW|BMW|PS|RDS|DAB|FM|AM)-)"
_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_LAT, _LON = r"[-+]?(?:90|[1-8]?\d)[.]\d{3,12}", r"[-+]?(?:180|1[0-7]\d|\d?\d)[.]\d{3,12}"
_DMS = r"\d{1,3}\s?°\s?(?:\d{1,2}(?:[.]\d{1,8})?\s?['′’]\s?)?(?:\d{1,2}(?:[.]\d{1,8})?\s?(?:\"|″|''|”)\s?)?"
_PLUS = "23456789CFGHJMPQRVWX"

PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("URL", re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/@:\"'<>]{1,200}:[^\s/@\"'<>]{1,200}@[^\s\"'<>]{1,1000}", _I)),
    (
        "URL",
        re.compile(
            r"\b[a-z][a-z0-9+.-]{1,20}://[^\s\"'<>]{1,500}[?&#](?:[a-z_-]{0,20}(?:token|secret|password|passwd|pwd"
            r"|signature)|api_?-?key|key|auth|sig)=[^\s\"'<>]{1,1000}",
            _I,
        ),
    ),
    (
        "EMAIL",
        re.compile(
            r"(?<![\w.!#$%&'*+/=?^`{|}~-])[\w.!#$%&'*+/=?^`{|}~-]{1,64}(?:@|%40)"
            r"(?:[\w](?:[\w-]{0,62})\.){1,8}[^\W\d_][\w-]{1,62}"
        ),
    ),
    ("IP", re.compile(rf"(?<![\w.])(?:{_OCTET}\.){{3}}{_OCTET}(?![\w]|\.\d)")),
    (
        "GPS",
        re.compile(
            rf"(?<![\w.+-]){_LAT}\s?°?\s?[NS]?\s?(?:[,;/]\s?|\s)(?:lon\w{{0,6}}\W{{1,3}})?{_LON}(?:\s?°?\s?[EWO]\b)?"
        ),
    ),
    ("GPS", re.compile(rf"(?<!\w){_DMS}[NS]\b\W{{0,3}}{_DMS}[EWO]\b")),
    (
        "GPS",
        re.compile(
            r"\b(?:lat|latitude|lon|lng|long|longitude|breite|länge)\b[\"']?\s?[:=]?\s?(?P<x>[-+]?\d{1,3}[.,]\d{2,12})",
            _I,
        ),
    ),
    ("GPS", re.compile(rf"(?<!\w)[{_PLUS}]{{4,8}}\+[{_PLUS}]{{2,3}}(?!\w)")),
    ("BIRTHDATE", re.compile(rf"{_BORN}[^\n\d]{{0,30}}?(?P<x>(?<![\d.]){_DATE}(?!\d))", _I)),
    (
        "ADDRESS",  # Hauptstraße 12a, 80331 München; Damrak-like Dutch ones too
        re.compile(
            rf"\b(?!(?:Park|Stell|Sitz|Arbeits|Lade|Liege)platz)(?:{_UP}{_LOW}{{1,30}}[ ]){{0,2}}{_UP}{_LOW}{{0,40}}"
            rf"(?:straße|strasse|str\.|weg|platz|allee|gasse|ufer|damm|straat|laan|plein|gracht)\s?,?\s{_HOUSE}{_TOWN}",
        ),
    ),
    (
        "ADDRESS",  # Frankfurter Ring 5; straße in small letters, as speech recognition writes it
        re.compile(
            rf"\b(?:{_UP}{_LOW}{{2,30}}\s(?:Straße|Strasse|Str\.|Weg|Platz|Allee|Ring|Gasse|Ufer|Damm)"
            rf"|[\wß-]{{2,30}}(?:straße|strasse))\s{_HOUSE}{_TOWN}",
        ),
    ),
    (
        "ADDRESS",
        re.compile(
            rf"(?<![\w.,:/-])\d{{1,5}}[a-z]?\s(?:{_NO_STREET}[a-z][\w'’.-]{{1,25}}\s){{1,3}}"
            r"(?:street|st|road|rd|avenue|ave|lane|ln|drive|dr|boulevard|blvd|court|ct|square|place|close|crescent"
            r"|terrace|parkway|pkwy)\b(?:\.|\b)",
            _I,
        ),
    ),
    (
        "ADDRESS",
        re.compile(
            r"(?<![\w.])\d{1,4}(?:\s?(?:bis|ter))?,?\s(?:rue|avenue|boulevard|place|chemin|impasse|allée|quai)\s"
            rf"(?:(?:de|du|des|la|le|les)\s|d['’]|l['’]){{0,3}}{_UP}{_LOW}{{1,30}}(?:[\s-]{_UP}{_LOW}{{1,30}}){{0,3}}",
            0,
        ),
    ),
    (
        "ADDRESS",
        re.compile(
            r"\b(?:Via|Viale|Piazza|Corso|Calle|C/|Avenida|Plaza|Paseo|Rua|ulica|ul\.)\s?"
            rf"(?:(?:de|del|della|di|la|el|los|las|da|do)\s){{0,2}}{_UP}{_LOW}{{1,30}}(?:\s{_UP}{_LOW}{{1,30}}){{0,3}}"
            r",?\s(?:n[º°.]\s?)?\d{1,4}[a-z]?\b",
        ),
    ),
    ("PLATE", re.compile(rf"(?<![\w-]){_NO_DISTRICT}[A-ZÄÖÜ]{{1,3}}-[A-Z]{{1,2}}[ -]?[1-9]\d{{0,3}}[EH]?(?![\w-])")),
    ("PLATE", re.compile(r"(?<![\w-])[A-HJ-PR-Y]{2}\d{2} ?[A-HJ-PR-Z]{3}(?![\w-])")),  # GB
    ("PLATE", re.compile(r"(?<![\w-])[A-HJ-NP-TV-Z]{2}[ -]?\d{3}[ -]?[A-HJ-NP-TV-Z]{2}(?![\w-])")),  # FR, IT
    (
        "PLATE",  # NL and others of three groups
        re.compile(
            r"(?<![\w-])(?:[A-Z]{1,2}-\d{2,3}-[A-Z]{1,2}|\d{1,2}-[A-Z]{2,3}-\d{1,2}|\d-[A-Z]{3}-\d{2,3})(?![\w-])",
        ),
    ),
    (
        "PLATE",
        re.compile(
            rf"{_PLATE_WORD}(?:\s(?:number|no|is|ist|est|es|lautet|the|my)){{0,4}}\W{{0,4}}"
            r"(?P<x>(?=[a-zäöü -]{0,8}\d)[a-zäöü0-9](?:[ -]?[a-zäöü0-9]){3,8})\b",
            _I,
        ),
    ),
    (
        "ID",  # GB: national insurance
        re.compile(r"\b(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z](?: ?\d{2}){3} ?[A-D]\b", _I),
    ),
    (
        "ID",
        re.compile(
            r"\b(?:passport|reisepass|passeport|pasaporte|ausweis\w{0,8}|identity\scard|id\scard"
            r"|driv\w{2,5}\slicen[cs]e|führerschein\w{0,8})(?:\s(?:number|no|nr|is|ist|nummer)){0,3}\W{0,4}"
            r"(?P<x>(?=[A-Z0-9]{0,5}\d)[A-Z0-9]{7,18})\b",
            _I,
        ),
    ),
)

# Candidates whose check digits decide: numbers.py.
IBAN = re.compile(r"(?<![A-Za-z0-9])[a-z]{2}\d{2}(?:[ -]?[a-z0-9]){11,38}(?![a-z0-9])", _I)
CARD = re.compile(r"(?<![\w.])\d(?:[ -]?\d){12,18}(?![\w]|\.\d)")
VIN = re.compile(r"(?<!\w)(?=[A-Z0-9]{0,16}\d)(?=[A-Z0-9]{0,16}[A-Z])[A-HJ-NPR-Z0-9]{17}(?!\w)", _I)
IPV6 = re.compile(r"(?<![\w:.])(?=[0-9a-f:.]{0,38}:[0-9a-f]{0,4}:)[0-9a-f:.]{3,45}(?:%\w{1,16})?(?![\w:])", _I)
PHONE_LIKE = re.compile(r"[(+]{0,2}\d(?:[\s()./+-]{0,3}\d){6,25}")
PHONE_PLUS = re.compile(r"(?<![\w+])(?:\+|00)[1-9](?:[\s()./-]{0,3}\d){7,13}(?!\d)")
BLOB = re.compile(
    r"\bdata:[\w.+/-]{0,80};base64,|(?=[A-Za-z0-9+/_-]{0,99}\d)(?=[\d+/_-]{0,99}[A-Za-z])[A-Za-z0-9+/_-]{200}"
)
