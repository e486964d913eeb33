from __future__ import annotations

import pytest

from codriver.core.errors import BadConfigValue
from codriver.optimize.requirement import Requirement, parse_requirements


def test_a_line_is_read() -> None:
    found = parse_requirements("ppl<=+3%, size<=110MB,ttft_ms <= 300@512, same_top>=0.9, rss<=1.5GiB,")
    assert found == [
        Requirement("ppl", True, 0.03, relative=True),
        Requirement("size", True, 110e6),
        Requirement("ttft_ms", True, 300, tokens=512),
        Requirement("same_top", False, 0.9),
        Requirement("rss", True, 1.5 * 2**30),
    ]
    assert [str(one) for one in found[:3]] == ["ppl<=+3%", "size<=1.1e+08", "ttft_ms<=300@512"]
    assert found[2].key == "ttft_ms@512"


def test_a_multiple_counts_against_the_reference() -> None:
    agreement, latency = parse_requirements("agreement>=0.99, latency<=0.66x")
    assert agreement == Requirement("agreement", False, 0.99) and str(latency) == "latency<=0.66x"
    assert latency.met(6.6, {"latency": 10.0}) and not latency.met(6.7, {"latency": 10.0})


@pytest.mark.parametrize(("value", "met"), [(20.6, True), (20.61, False)])
def test_a_share_counts_against_the_reference(value: float, met: bool) -> None:
    assert parse_requirements("ppl<=+3%")[0].met(value, {"ppl": 20.0}) is met


def test_at_least_and_absolute() -> None:
    assert parse_requirements("same_top>=0.9")[0].met(0.9, {})
    assert not parse_requirements("kl<=0.05")[0].met(0.06, {})
    with pytest.raises(BadConfigValue, match="'kl' cannot be required in percent: the reference has no such value"):
        parse_requirements("kl<=+3%")[0].met(0.1, {})


def test_task_sets_are_metrics_by_their_names() -> None:
    found = parse_requirements("mmlu>=-1%, own>=0.6, mmlu_flips<=0.05", ["mmlu", "own"])
    assert [str(one) for one in found] == ["mmlu>=-1%", "own>=0.6", "mmlu_flips<=0.05"]
    assert found[0].met(0.594, {"mmlu": 0.6}) and not found[0].met(0.593, {"mmlu": 0.6})
    assert found[1].met(0.6, {}) and not found[2].met(0.06, {})
    with pytest.raises(BadConfigValue, match=r"there is no metric 'mmlu'; known: ppl"):
        parse_requirements("mmlu>=0.6")
    with pytest.raises(BadConfigValue, match=r"write mmlu>=-40% for a share below the reference"):
        parse_requirements("mmlu>=40%", ["mmlu"])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("ppl", "'ppl' is not valid: write a metric, <= or >=, and a number"),
        ("size<=", "write a metric"),
        ("latency<=0.66", r"a multiple of the reference's value \(0\.66x\) belongs to latency"),
        ("ppl<=2x", "belongs to latency, and to it alone"),
        ("speed>=3", "there is no metric 'speed'; known: ppl, kl,"),
        ("ppl>=3", r"'ppl' \(perplexity\) takes <="),
        ("ppl<=3%", r"write ppl<=\+3% for a share over the reference"),
        ("size<=100", "'size' takes a unit: B, kB, MB, GB, KiB, MiB or GiB"),
        ("ppl<=20MB", "'ppl' takes no unit"),
        ("ttft_ms<=300", r"a prompt's length \(@512\) belongs to ttft_ms, and to it alone"),
        ("ppl<=20@512", "belongs to ttft_ms, and to it alone"),
        ("kl<=+0.3", "only a share in percent counts against the reference"),
    ],
)
def test_what_cannot_be_required_is_told(line: str, told: str) -> None:
    with pytest.raises(BadConfigValue, match=told):
        parse_requirements(line)
