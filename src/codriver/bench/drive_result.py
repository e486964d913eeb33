"""A drive as it was: how it was set up, what was measured, and the sentences a reader needs to judge it."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from .drive_outcomes import Figure, PolicyRun, Summary, mean, summarise
from .drive_settings import POLICIES, DriveSettings, Window, policy


@dataclass(frozen=True, slots=True)
class Signal:
    """A way to choose who is asked: the share of requests that call the strong model, and the accuracy reached as a
    share of the strong model's own, with its 95 % bootstrap interval. ``through_link``: measured in the drive;
    otherwise as if the link were always up. ``over_link_share``: the same against the strong model over this link.
    """

    name: str
    case: str
    calls: float
    strong_share: Figure
    through_link: bool
    over_link_share: float = math.nan


@dataclass(frozen=True)
class DriveResult:
    """``partial``: the drive was cut short and some requests are missing."""

    mode: Literal["live", "replay"]
    settings: DriveSettings
    windows: dict[str, Window]
    runs: list[PolicyRun]
    signals: list[Signal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    started: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    partial: bool = False

    def summaries(self) -> list[Summary]:
        return [summarise(run) for run in self.runs]

    def cases(self) -> list[str]:
        """Traces (and sets, in a replay) in the order in which they were driven."""
        return list(dict.fromkeys(run.trace for run in self.runs))


def live_notes(settings: DriveSettings, runs: Sequence[PolicyRun]) -> list[str]:
    """The assumptions of a live drive, and how busy it kept the machine."""
    price = settings.price
    notes = [
        f"The link delays each way by {settings.base_delay_ms:g} ms beside what the trace's rate and queue cost. "
        "Packet loss and TCP on the radio are not modelled.",
        "Vehicle and cloud share this machine's cores, which they would not in a real car; the cloud computes "
        "only where the vehicle does not (on Linux; elsewhere it is merely nice), and is slower for it.",
        f"Cost assumes ${price.input_usd:g} per million tokens read and ${price.output_usd:g} per million written, the "
        "list price of a small hosted model (GPT-4o mini, July 2024); the cloud here is a stand-in and costs nothing.",
    ]
    if settings.documents:
        notes.append(
            "Every tenth request asks about documents of 1,600 tokens that come with it. Under the policies without a "
            "router they go up whole; the stand-in reads 60 to 100 tokens a second, a real cloud thousands."
        )
    if any(policy(name).scores for name in settings.policies):
        notes.append(
            "Drafts are scored by a stand-in for vLLM that asks for one token after each part of the draft: its time "
            "says nothing of vLLM's."
        )
    for run in runs:
        if run.busy:
            told = ", ".join(f"{name} {part:.0%}" for name, part in run.busy.items())
            notes.append(f"Share of all cores used under '{run.policy}' on {run.trace}: {told}.")
    return notes


def replay_notes(settings: DriveSettings) -> list[str]:
    price = settings.price
    return [
        "Right and wrong are as recorded for the two models. Times are drawn: the cloud's from 16,083 recorded calls "
        "of a hosted model (taskdistill), the vehicle's from SmolLM2-135M under llama.cpp on two cores (404 prompt and "
        "88 answer tokens a second). So accuracy is that of the recorded pair, and time that of a small car.",
        "The router is the product's own, in virtual time. Its prior is fitted on four fifths of the prompts and "
        "judged on the other fifth, five times; the price of a call is set on those four fifths.",
        "The share of the strong model's accuracy is against that model with a perfect link; the last column sets it "
        "against the strong model over the same link.",
        f"Each request has 15 s, one comes every second; the link delays each way by {settings.base_delay_ms:g} ms.",
        f"Cost assumes ${price.input_usd:g} per million tokens read and ${price.output_usd:g} written.",
    ]


def policy_sentences() -> dict[str, str]:
    return {one.title: one.sentence for one in POLICIES}


def overall_accuracy(runs: Sequence[PolicyRun]) -> Figure:
    return mean([float(fate.right) for run in runs for fate in run.fates if fate.graded])
