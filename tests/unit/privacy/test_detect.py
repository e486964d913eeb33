"""What is found and, as important, what is not: a command to the car must reach the cloud as it was said."""

from __future__ import annotations

import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from codriver.core.errors import BadConfigValue, MissingFile
from codriver.core.privacy import Finding, Unreadable, without_overlaps
from codriver.privacy import NameFinder, PrivacyConfig
from codriver.privacy.detect import make_detector
from codriver.privacy.names import read_names

DETECTOR = make_detector(PrivacyConfig(names=("Anna Maria Schmidt", "May Jones", "Li", "O'Brien")))


def found(text: str) -> list[tuple[str, str]]:
    return [(finding.kind, text[finding.start : finding.end]) for finding in DETECTOR.find(text)]


FOUND = {
    "EMAIL": [
        "mail [a.b+c@ex-ample.co.uk] now", "<[jürgen@müller.de]>", "at [john%40example.com]", "([a@b.io]).",
    ],
    "PHONE": [
        "call [+49 151 12345678]", "ruf [0151 12345678] an", "[(415) 555-2671]", "[+1 (212) 555-0187]",
        "[0049 30 901820]", "[01 42 68 53 00]", "tel:[030/901820]", "[+4915112345678]!",
        "[089 1234567] and [089 7654321]",
    ],
    "IBAN": ["[DE89 3704 0044 0532 0130 00] OK", "[gb29nwbk60161331926819]", "to [FR1420041010050500013M02606]."],
    "CARD": ["[4111 1111 1111 1111] until", "[5500-0000-0000-0004]", "[378282246310005]"],
    "VIN": ["VIN [1HGCM82633A004352]", "[wvwzzz1jzxw000001] is mine", "[1M8GDM9AXKP042788]"],
    "PLATE": [
        "[M-AB 1234]", "[B-MW 12E] is blocking", "[AB12 CDE]", "[AB-123-CD]", "my plate is [7abc123]",
        "Kennzeichen [m ab 1234]", "[GH-123-K]", "matrícula: [1234 BCD]",
    ],
    "GPS": [
        "go to [48.137154, 11.576124]", "[-33.8568 151.2153]", "[48°08'14\"N 11°34'31\"E]", "latitude: [48.13]",
        "[8FWH4HX8+QV]", "geo:[48.137154,11.576124]",
    ],
    "ADDRESS": [
        "to [Hauptstraße 12a, 80331 München] please", "[Frankfurter Ring 5]", "[lindenstraße 7]", "[221b Baker Street]",
        "[1600 Pennsylvania Avenue]", "[12 rue de la Paix]", "[Via Garibaldi 12]", "[Calle Mayor, 5]",
        "[Keizersgracht 123]",         "[10 downing street]",
    ],
    "IP": ["ping [192.168.1.17]", "[2001:db8::8a2e:370:7334]"],
    "URL": ["[https://bob:pw@host/x] and", "[https://h.example/x?a=1&access_token=abc]"],
    "BIRTHDATE": [
        "born on [3 May 1990]", "DOB: [1990-05-03]", "geboren am [3.5.1990]", "my birthday is [May 3rd]",
        "née le [3 mai 1990]", "date of birth [05/03/90]",
    ],
    "ID": [
        "[12345678Z]", "NIE [X1234567L]", "[RSSMRA85T10A562S]", "Steuer-ID [86095742719]", "ssn [123-45-6789]",
        "NI [AB123456C]", "passport no [C01X00T47]", "PESEL [44051401359]", "AHV [756.9217.0769.85]",
        "NIR [2 95 10 99 126 111 93]", "bsn [111222333]", "[131052-308T]",
    ],
    "NAME": [
        "call [anna]", "[Anna  Maria Schmidt]'s car", "[SCHMIDT]", "[May] called", "text [Li] now", "[O'Brien]",
    ],
}  # fmt: skip
NOT_FOUND = [
    "set 21.5 degrees", "A4 motorway", "take the A99 and exit 12", "M1 motorway", "DIN-A4", "USB-C 3",
    "turn left in 300 meters", "tyre pressure 2.5 bar at 4 tyres", "the year 2026 BMW", "12 cars on the road",
    "5 miles down the road", "1500 rpm at 20:15:30", "range 412 km, 78 %", "version 1.2.3", "Spring 2026",
    "navigate to Main Street", "87.5 FM, 101.3 MHz", "from 12:00 to 14:30", "set seat to position 3",
    "E10 fuel 1.859 per litre", "charge to 80 percent by 7 am", "ISO 26262 part 6", "error P0420 in ECU 7E8",
    "speed limit 130", "10.5, 12.3", "born to run 2026", "2026-11-25T04:20:16", "the 3 Series", "Golf 8", "std::vector",
    "I-5 north", "US-101", "B 27", "play 1989 by Taylor Swift", "1,234,567 km", "3.14159 and 2.71828",
    "may I turn left", "Annapolis", "delight", "Parkplatz 12", "4111 1111 1111 1112", "1HGCM82633A004353",
    "GB29NWBK60161331926818", "https://example.org/a?b=1", "user@localhost", "mach die Heizung auf 22 Grad",
    "order 4711-2233", "999.999.999.999", "fan speed 2 of 5", "-" * 300, "=" * 300, "ha" * 200, "", " ", "😀",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "marked"), [(kind, text) for kind, texts in FOUND.items() for text in texts])
def test_found(kind: str, marked: str) -> None:
    plain = marked.replace("[", "").replace("]", "")
    expected = [part.partition("]")[0] for part in marked.split("[")[1:]]
    assert found(plain) == [(kind, value) for value in expected]
    assert found(f"Zeile\n{plain}\nline") == [(kind, value) for value in expected]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_not_found(text: str) -> None:
    assert found(text) == []


def test_findings_are_in_order_and_do_not_overlap() -> None:
    text = "; ".join(one.replace("[", "").replace("]", "") for texts in FOUND.values() for one in texts)
    findings = DETECTOR.find(text)
    assert all(a.end <= b.start for a, b in pairwise(findings))
    assert len(findings) >= 60


def test_what_overlaps_becomes_one_so_that_nothing_is_left_over() -> None:
    findings = [Finding(5, 9, "B"), Finding(0, 6, "A"), Finding(0, 3, "C"), Finding(9, 10, "D")]
    assert without_overlaps(findings) == [Finding(0, 9, "A"), Finding(9, 10, "D")]


@pytest.mark.parametrize("text", ["see data:image/png;base64,iVBORw0", "a1b2" * 50, "0a" * 100])
def test_encoded_data_is_refused(text: str) -> None:
    with pytest.raises(Unreadable, match="encoded data cannot be looked into"):
        DETECTOR.find(text)


_PIECES = "1 |1.|Aa |a@|ab://|a:|1 a |born |ab12 |(1) |1°|plate my |<A|+1 |Aa-|1-|rue |.a@"


@pytest.mark.parametrize("piece", _PIECES.split("|"))
def test_no_text_takes_long(piece: str) -> None:
    """Ten times the text takes about ten times as long: no pattern looks at the same place again and again."""

    def took_s(times: int) -> float:
        began_s = time.process_time()
        DETECTOR.find(piece * times)
        return time.process_time() - began_s

    took_s(10)
    # A pattern that looks again at every place takes a hundred times as long: the bound lies well away from both, and
    # the best of three is what a busy machine disturbs least.
    assert min(took_s(10_000) for _ in range(3)) < 60 * max(min(took_s(1_000) for _ in range(3)), 0.002)


# ---------------------------------------------------------------- names and settings


def test_names_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "names"
    file.write_text("# friends\nZoé Müller # neighbour\n\n  Bob  \n")
    assert read_names(file) == ["Zoé Müller", "Bob"]
    detector = make_detector(PrivacyConfig(names_file=file))
    assert [finding.kind for finding in detector.find("zoé und Bob")] == ["NAME", "NAME"]
    with pytest.raises(MissingFile, match=r"The file of names .*none does not exist"):
        read_names(tmp_path / "none")
    file.write_bytes(b"\xff")
    with pytest.raises(BadConfigValue, match=r"The file of names .* cannot be read"):
        read_names(file)


def test_no_names_find_nothing() -> None:
    assert NameFinder([]).find("Anna") == NameFinder(["", " "]).find("Anna") == []


def test_an_unknown_region_is_refused() -> None:
    with pytest.raises(BadConfigValue, match=r"'privacy.phone_regions' holds 'XX'; allowed: countries by ISO 3166"):
        make_detector(PrivacyConfig(phone_regions=("DE", "XX")))


@pytest.mark.parametrize("module", ["phonenumbers", "stdnum.iban"])
def test_without_the_extra_there_is_a_reason_instead_of_a_detector(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    detector = make_detector(PrivacyConfig())
    assert "pip install 'codriver[privacy]'" in detector.why_not
    with pytest.raises(Unreadable, match="without the extra"):
        detector.find("x")
