"""Pieces that several tests of the drive use."""

from __future__ import annotations

from typing import Any

from codriver.bench.drive_outcomes import Fate, LinkMoment, PolicyRun
from codriver.bench.drive_result import DriveResult
from codriver.bench.drive_settings import DriveSettings, window


def fate(item: str = "a", **changes: Any) -> Fate:
    given: dict[str, Any] = {
        "item": item,
        "kind": "question",
        "source": "asdiv",
        "at_s": 1.0,
        "deadline_s": 5.0,
        "outcome": "in time",
        "where": "vehicle",
        "ttft_ms": 200.0,
        "total_ms": 900.0,
        "correct": True,
        "graded": True,
        "why": "said 2, right is 2",
        "cloud_called": False,
        "cost_usd": 0.0,
        "failovers": 0,
    }
    return Fate(**{**given, **changes})


def run_of(policy: str, fates: list[Fate], trace: str = "TMobile-UMTS-driving") -> PolicyRun:
    link = [LinkMoment(0.5 * i, 1000.0 * (i % 3), i % 3 > 0, 0, "up" if i % 3 else "down") for i in range(40)]
    return PolicyRun(policy=policy, trace=trace, fates=fates, link=link, planned=len(fates))


def live_result(partial: bool = False) -> DriveResult:
    settings = DriveSettings(seconds=20.0)
    fates = [
        fate("q<1>", attempts=[{"engine": "vehicle", "outcome": "answered"}]),
        fate("q2", where="cloud", cloud_called=True, cost_usd=1e-5, at_s=4.0, source="commonsenseqa", correct=False),
        fate("q3", where="mixed", cloud_called=True, failovers=1, at_s=7.0),
        fate("q4", outcome="deadline_exceeded", where="nobody", ttft_ms=None, at_s=9.0, correct=False),
        fate("c1", source="chat", kind="chat", graded=False, correct=None, at_s=12.0),
    ]
    runs = [run_of("vehicle-only", fates[:1] + fates[3:]), run_of("codriver", fates)]
    name = settings.traces[0]
    return DriveResult("live", settings, {name: window(name, settings)}, runs, notes=["a < b"], partial=partial)
