"""Metrics carry the right names, labels and values, and stay bounded."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from codriver.observe.metrics import MAX_ENGINES, MAX_ROUTES, Metrics, NoMetrics

_METRIC = re.compile(r"codriver_[a-z_]+")


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    page, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    families = text_string_to_metric_families(page.decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_requests_and_attempts_are_counted_and_timed() -> None:
    metrics = Metrics()
    metrics.in_flight(+1)
    metrics.request_ended("/v1/chat/completions", 200, 0.2)
    metrics.attempt_ended("cloud", "ok", 0.15, 0.04)
    metrics.attempt_ended("cloud", "link_down", 0.01, None)
    metrics.tokens("cloud", 12, 5)
    metrics.cost("cloud", 0.002)
    got = samples(metrics)
    assert got[key("codriver_requests_total", route="/v1/chat/completions", status="200")] == 1
    assert got[key("codriver_request_duration_seconds_sum", route="/v1/chat/completions")] == 0.2
    assert got[key("codriver_requests_in_flight")] == 1
    assert got[key("codriver_attempts_total", engine="cloud", outcome="link_down")] == 1
    assert got[key("codriver_time_to_first_token_seconds_count", engine="cloud")] == 1
    assert got[key("codriver_tokens_total", engine="cloud", type="output")] == 5
    assert got[key("codriver_cost_usd_total", engine="cloud")] == 0.002


async def test_tasks_are_counted_when_somebody_looks() -> None:
    metrics = Metrics()
    before = samples(metrics)[key("codriver_tasks")]
    waiting = asyncio.create_task(asyncio.sleep(60))
    assert samples(metrics)[key("codriver_tasks")] == before + 1
    waiting.cancel()


def test_without_a_loop_there_are_no_tasks() -> None:
    assert samples(Metrics())[key("codriver_tasks")] == 0


def test_states_are_one_hot() -> None:
    metrics = Metrics()
    metrics.link("up", 0.05, 2e6)
    metrics.link("down", None, None)
    metrics.breaker("cloud", "half-open")
    metrics.failover("cloud", "vehicle", "resume")
    metrics.escalated("low_confidence")
    metrics.hedged("cloud", "vehicle")
    got = samples(metrics)
    assert got[key("codriver_link_state", state="up")] == 0
    assert got[key("codriver_link_state", state="down")] == 1
    assert got[key("codriver_link_rtt_seconds")] == 0.05
    assert got[key("codriver_breaker_state", engine="cloud", state="half_open")] == 1
    assert got[key("codriver_failovers_total", from_engine="cloud", to_engine="vehicle", policy="resume")] == 1
    assert got[key("codriver_escalations_total", reason="low_confidence")] == 1
    assert got[key("codriver_hedges_total", engine="cloud", answered_by="vehicle")] == 1


def test_engine_labels_are_bounded() -> None:
    metrics = Metrics()
    for number in range(MAX_ENGINES + 50):
        metrics.cost(f"engine-{number}", 1.0)
    costs = {labels: value for (name, labels), value in samples(metrics).items() if name == "codriver_cost_usd_total"}
    assert len(costs) == MAX_ENGINES + 1
    assert costs[frozenset({("engine", "other")})] == 50


def test_two_instances_share_nothing() -> None:
    first, second = Metrics(), Metrics()
    first.cost("a", 1.0)
    assert not [name for name, _ in samples(second) if name == "codriver_cost_usd_total"]


def test_semantic_routes_stay_bounded() -> None:
    metrics = Metrics()
    for number in range(MAX_ROUTES + 5):
        metrics.semantic_route(f"r{number}")
    metrics.semantic_route("r1")
    metrics.semantic_cache("kept")
    got = samples(metrics)
    assert got[key("codriver_semantic_route_total", route="r1")] == 2
    assert got[key("codriver_semantic_route_total", route="other")] == 5
    assert got[key("codriver_semantic_cache_total", outcome="kept")] == 1
    assert sum(name == "codriver_semantic_route_total" for name, _ in got) == MAX_ROUTES + 1


def test_the_null_version_counts_nothing() -> None:
    metrics = NoMetrics()
    metrics.in_flight(+1)
    metrics.request_ended("/x", 200, 0.1)
    metrics.attempt_ended("cloud", "ok", 0.1, None)
    metrics.link("up", 0.1, 1.0)
    assert samples(metrics) == {}


def test_the_dashboard_asks_only_for_what_there_is() -> None:
    """Every metric in ``docs/grafana/codriver.json`` is on ``/metrics``, and every one of ours is on the dashboard."""
    metrics = Metrics()
    metrics.watch_spans(lambda: 0, lambda: 0)
    metrics.request_ended("/v1/models", 200, 0.1)
    metrics.attempt_ended("cloud", "ok", 0.1, 0.1)
    metrics.tokens("cloud", 1, 1)
    metrics.cost("cloud", 1.0)
    metrics.failover("cloud", "vehicle", "resume")
    metrics.escalated("schema")
    metrics.link("up", 0.1, 1e6)
    metrics.breaker("cloud", "open")
    metrics.semantic_route("climate")
    metrics.semantic_cache("hit")
    metrics.heat("hot", ["normal", "hot"], 76.0)
    served = {name for name, _ in samples(metrics) if not name.endswith("_created")}
    dashboard = (Path(__file__).parents[3] / "docs" / "grafana" / "codriver.json").read_text(encoding="utf-8")
    asked = {
        name for panel in json.loads(dashboard)["panels"] for name in _METRIC.findall(json.dumps(panel["targets"]))
    }
    assert asked <= served
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in served}
    # Its seconds are those of the first token and of the whole request, seen from the engine's side.
    assert families - {re.sub(r"_bucket$", "", name) for name in asked} == {"codriver_attempt_duration_seconds"}
