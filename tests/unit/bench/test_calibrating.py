"""What a calibration learns from an answer, and that trimming it changes nothing that matters."""

from __future__ import annotations

from pathlib import Path

import pytest

from codriver.bench import drive_inputs
from codriver.bench.calibrating import outcome_of, trimmed
from codriver.bench.drive_client import Reply
from codriver.bench.workload import Limits, chat_items, command_items
from codriver.catalogue import Store
from codriver.core.errors import MissingFile
from codriver.core.messages import ChatChunk, ChunkChoice, Delta, Logprobs, TokenLogprob
from codriver.route.config import RouteConfig
from codriver.route.quality import Draft, calibrate, draft_features

ITEM = command_items(Limits(4.0, 2.0))[0]


def reply(text: str, logprobs: list[float]) -> Reply:
    found = Reply()
    content = [TokenLogprob(token="x", logprob=value) for value in logprobs]
    choice = ChunkChoice(delta=Delta(content=text), logprobs=Logprobs(content=content), finish_reason="stop")
    found.answer.add(ChatChunk(id="x", choices=[choice]))
    return found


def test_draft_features_are_those_that_the_gate_will_see() -> None:
    probe = RouteConfig().probe_tokens
    logprobs = [-0.1 * i for i in range(probe + 5)]
    outcome = outcome_of(ITEM, reply(f'{{"domain":"{ITEM.answer}"}}', logprobs))
    assert outcome.good
    assert outcome.draft == draft_features(Draft(logprobs[:probe]))


def test_wrong_is_not_good_and_answered_small_talk_is() -> None:
    assert not outcome_of(ITEM, reply('{"domain":"moon"}', [-0.1])).good
    talk = chat_items(Limits(4.0, 2.0))[0]
    assert outcome_of(talk, reply("Hello!", [-0.1])).good
    assert not outcome_of(talk, reply("", [])).good


def test_trimming_keeps_the_probabilities() -> None:
    items = command_items(Limits(4.0, 2.0))[:60]
    outcomes = [outcome_of(one, reply(f'{{"domain":"{"climate"}"}}', [-0.1 * (n % 4)])) for n, one in enumerate(items)]
    whole = calibrate("m", outcomes)
    cut = trimmed(whole)
    assert len(cut.gate.weights) < len(whole.gate.weights)
    for outcome in outcomes:
        features = {**outcome.request, **outcome.draft}
        assert cut.gate.probability(features) == pytest.approx(whole.gate.probability(features), abs=0.02)


def test_missing_models_are_told_with_the_command_that_fetches_them(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="codriver models pull"):
        drive_inputs.Inputs.find(Store(tmp_path))
