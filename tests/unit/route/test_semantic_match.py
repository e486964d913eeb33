"""The matcher and its report: thresholds, verdicts, conflicts and duplicates."""

from __future__ import annotations

from pathlib import Path

import pytest

from codriver.route.semantic_file import read_routes
from codriver.route.semantic_match import Matcher
from codriver.route.semantic_report import report
from tests.unit.route.test_semantic import ROUTES
from tests.unit.route.words import vector_of

pytest.importorskip("numpy", reason="needs the extra: pip install 'codriver[onnx]'")


def matcher_of(folder: Path, text: str) -> Matcher:
    file = folder / "routes.toml"
    file.write_text(text, encoding="utf-8")
    rules = read_routes(file)
    return Matcher(rules, {one: vector_of(one) for one in rules.texts()})


def test_an_example_wins_for_its_route_and_says_by_how_much(tmp_path: Path) -> None:
    found = matcher_of(tmp_path, ROUTES).match(vector_of("call my sister please"))
    assert (found.route, found.best, found.why, found.contenders) == ("phone", "phone", "matched", ("phone",))
    assert found.score == pytest.approx(1.0)
    assert found.next_score < 0.1
    assert set(found.scores) == {"climate", "phone", "manual", "(no route)"}


def test_why_no_route_is_taken(tmp_path: Path) -> None:
    matcher = matcher_of(tmp_path, ROUTES)
    assert matcher.match(vector_of("write some code")).why == "nearest to the sentences that no route takes"
    assert matcher.match(vector_of("blue elephants")).why.startswith("below the route's threshold 0.2")
    assert matcher.match(vector_of("please call explain this")).why == "less than 0.05 before the next route"


def test_a_threshold_in_the_file_replaces_the_calibrated_one(tmp_path: Path) -> None:
    matcher = matcher_of(tmp_path, ROUTES.replace("[route.phone]\n", "[route.phone]\nthreshold = 0.99\n"))
    assert matcher.thresholds["phone"] == 0.99
    assert matcher.match(vector_of("call my neighbour please")).route is None


def test_one_route_alone_is_no_reason_to_take_everything(tmp_path: Path) -> None:
    matcher = matcher_of(tmp_path, '[route.a]\nexamples = ["call my sister", "call my brother", "call my mother"]\n')
    assert matcher.match(vector_of("call my uncle")).route == "a"
    assert matcher.match(vector_of("blue elephants")).route is None


def test_a_sound_file(tmp_path: Path) -> None:
    found = report(matcher_of(tmp_path, ROUTES))
    assert found.sound
    assert (found.right, found.wrong, found.abstained) == (1.0, 0.0, 0.0)
    assert [one.route for one in found.routes] == ["climate", "phone", "manual"]
    assert not found.lost and not found.duplicates and not found.conflicts


def test_routes_that_are_closer_to_each_other_than_to_their_own_are_in_conflict(tmp_path: Path) -> None:
    text = (
        '[route.a]\nexamples = ["red one", "blue two", "green three"]\n'
        '[route.b]\nexamples = ["red four", "blue five", "green six"]\n'
    )
    found = report(matcher_of(tmp_path, text))
    assert not found.sound
    assert {(one.route, one.other, one.share) for one in found.conflicts} == {("a", "b", 1.0), ("b", "a", 1.0)}
    assert len(found.lost) == 6


def test_duplicates_within_a_route_are_told_and_across_routes_a_conflict(tmp_path: Path) -> None:
    within = ROUTES.replace('"ring my mother please"', '"Call my  sister, please!"')
    found = report(matcher_of(tmp_path, within))
    assert [(one.text, one.routes) for one in found.duplicates] == [("call my sister please", ("phone", "phone"))]
    assert found.sound
    across = ROUTES.replace('"explain how this button works"', '"call my sister please"')
    found = report(matcher_of(tmp_path, across))
    assert [one.routes for one in found.duplicates] == [("phone", "manual")]
    assert not found.sound
    assert ("manual", "phone") in {(one.route, one.to) for one in found.lost}
