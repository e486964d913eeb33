"""Calibrating a car: how often is its own model right, on what, and what do its token probabilities tell of it?

The model alone answers requests that no drive asks; answers are graded by code; the outcomes go to
``route.quality.calibrate``. What the gate learns from is what it will see: the draft's first ``probe_tokens`` tokens,
or all of a shorter draft. Small talk cannot be wrong, so an answer to it counts as good.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from codriver.core.messages import TokenLogprob, parse_chat
from codriver.route.config import RouteConfig
from codriver.route.quality import (
    Calibration,
    Draft,
    Logistic,
    Outcome,
    calibrate,
    draft_features,
    request_features,
    save_calibration,
)

from .drive_client import DriveClient, Reply, request_body
from .drive_inputs import Inputs, calibration_file, calibration_items
from .drive_live import Unwatched, Watch
from .drive_processes import Child
from .grading import grade
from .workload import WorkItem

_ANSWER_S = 60.0
_LEAST_WEIGHT = 0.01
_AT_ONCE = 2


def calibrate_car(inputs: Inputs, count: int, watch: Watch | None = None, file: Path | None = None) -> str:
    """Calibrate this machine's vehicle model and save it; returns a sentence that tells how well it fits.

    Errors: :class:`MissingFile`, :class:`EngineUnavailable` when the vehicle does not start or dies.
    """
    watch = watch or Unwatched()
    file = file or calibration_file(inputs.vehicle_model)
    items = calibration_items(count, 7, inputs.questions)
    outcomes = asyncio.run(measure(inputs.vehicle_model, items, watch))
    watch.said(f"fitting {len(outcomes)} outcomes")
    found = trimmed(calibrate(inputs.vehicle_model, outcomes))
    file.parent.mkdir(parents=True, exist_ok=True)
    save_calibration(found, file)
    fit = found.fit
    return (
        f"{inputs.vehicle_model}: right on {fit.base_rate:.1%} of {fit.n} requests. Brier score {fit.brier:.3f} by "
        f"five-fold cross-validation, {fit.brier_base:.3f} for always saying the base rate. Saved: {file}"
    )


async def measure(model: str, items: Sequence[WorkItem], watch: Watch) -> list[Outcome]:
    """What became of each item when a vehicle process with this model answered it alone."""
    with tempfile.TemporaryDirectory(prefix="codriver-calibrating-") as folder:
        vehicle = Child("vehicle", ["vehicle", "--port", "0"], {"CODRIVER_ENGINE_MODEL": model}, Path(folder))
        try:
            watch.said(f"starting the vehicle ({model})")
            await vehicle.start()
            client = DriveClient(await vehicle.ready())
            try:
                return await _ask_all(client, vehicle, items, watch)
            finally:
                await client.aclose()
        finally:
            await asyncio.shield(vehicle.stop())


async def _ask_all(client: DriveClient, vehicle: Child, items: Sequence[WorkItem], watch: Watch) -> list[Outcome]:
    free = asyncio.Semaphore(_AT_ONCE)
    found: list[Outcome] = []

    async def ask(item: WorkItem) -> None:
        async with free:
            reply = await client.ask_slowly(item, "vehicle", _ANSWER_S, {"logprobs": True, "top_logprobs": 2})
            vehicle.check()
            if not reply.error:
                found.append(outcome_of(item, reply))
            if len(found) % 50 == 0:
                watch.said(f"{len(found)} of {len(items)} answered")

    await asyncio.gather(*(ask(item) for item in items))
    return found


def outcome_of(item: WorkItem, reply: Reply) -> Outcome:
    """An answered item as the router's models learn it."""
    request = parse_chat(msgspec.json.encode(request_body(item)))
    logprobs = reply.answer.completion().choices[0].logprobs
    tokens = (logprobs.content if logprobs is not None else None) or []
    verdict = grade(item, reply.answer.text)
    good = verdict.correct is not False
    return Outcome(request_features(request), draft_features(_seen_by_gate(tokens)), good)


def _seen_by_gate(tokens: Sequence[TokenLogprob]) -> Draft:
    draft = Draft()
    draft.add(tokens[: RouteConfig().probe_tokens])
    return draft


def trimmed(found: Calibration, least: float = _LEAST_WEIGHT) -> Calibration:
    """Without weights too small to matter (a word's weight is shared among all words of a request)."""

    def cut(model: Logistic) -> Logistic:
        return Logistic({slot: round(w, 3) for slot, w in sorted(model.weights.items()) if abs(w) >= least})

    return Calibration(found.model, cut(found.prior), cut(found.gate), found.fit)
