"""The mix of requests: deterministic, in the shares asked for, short, and gradable."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from codriver.bench.datasets import Question
from codriver.bench.grading import grade
from codriver.bench.workload import Limits, Mix, Sources, Workload, chat_items, command_items, domains
from codriver.core.errors import BadConfigValue

QUESTIONS = Sources(
    {
        "commonsenseqa": [Question(f"c-{n}", "commonsenseqa", f"Which {n}?", ("a", "b", "c"), "B") for n in range(30)],
        "asdiv": [Question(f"a-{n}", "asdiv", f"How many is {n}?", (), str(n)) for n in range(30)],
    }
)


def test_the_same_seed_gives_the_same_work() -> None:
    first = Workload.mixed(60, 1, QUESTIONS)
    assert first == Workload.mixed(60, 1, QUESTIONS)
    assert first != Workload.mixed(60, 2, QUESTIONS)


@pytest.mark.parametrize("n", [1, 7, 100, 333])
def test_shares_follow_the_mix_whatever_sources_there_are(n: int) -> None:
    work = Workload.mixed(n, 3, QUESTIONS)
    kinds: Counter[str] = Counter(item.kind for item in work)
    assert len(work) == n
    for kind, share in (("command", 0.40), ("chat", 0.15), ("question", 0.45)):
        assert abs(kinds[kind] - share * n) <= 1.5
    without = Counter(item.kind for item in Workload.mixed(n, 3))
    assert without["question"] == 0
    assert sum(without.values()) == n


def test_nothing_repeats_before_the_source_is_used_up() -> None:
    items = [item.id for item in Workload.mixed(100, 4, QUESTIONS) if item.source == "asdiv"]
    assert len(set(items)) == len(items)
    many = Counter(item.id for item in Workload.mixed(1000, 4, QUESTIONS) if item.source == "chat")
    assert max(many.values()) - min(many.values()) <= 1


def test_there_are_enough_commands_and_each_domain_has_its_own() -> None:
    commands, chat = command_items(Limits(4.0, 2.5)), chat_items(Limits(10.0, 3.0))
    assert len(commands) >= 120 and len(chat) >= 40
    said = [item.messages[-1]["content"] for item in [*commands, *chat]]
    assert len(set(said)) == len(said)
    per_domain = Counter(item.answer for item in commands)
    assert set(per_domain) == set(domains())
    assert min(per_domain.values()) >= 15
    examples = {message["content"] for item in commands for message in item.messages[:-1]}
    assert not examples & set(said)


def test_a_command_is_bound_to_a_schema_that_holds_its_answer() -> None:
    item = command_items(Limits(4.0, 2.5))[0]
    form = item.response_format()
    assert form is not None and form["type"] == "json_schema"
    schema = form["json_schema"]["schema"]
    assert item.answer in schema["properties"]["domain"]["enum"]
    assert grade(item, json.dumps({"domain": item.answer})).correct is True


def test_prompts_and_answers_are_short_and_limits_come_from_the_mix() -> None:
    mix = Mix(command_limits=Limits(3.0, 1.0))
    for item in Workload.mixed(200, 5, QUESTIONS, mix):
        assert sum(len(message["content"]) for message in item.messages) < 600
        assert item.max_tokens <= 64
        assert 0 < item.first_token_s < item.deadline_s == mix.limits(item.kind).deadline_s
        assert item.kind != "command" or item.deadline_s == 3.0
        wrong = grade(item, "" if item.kind == "chat" else "Z")
        assert wrong.correct is False


def test_a_mix_of_nothing_is_refused() -> None:
    for n, mix in ((0, Mix()), (5, Mix(command=0, chat=0, question=0)), (5, Mix(command=-1))):
        with pytest.raises(BadConfigValue, match="at least one item, and weights"):
            Workload.mixed(n, 1, None, mix)
