"""A routes file: what it may say, and what a mistake in it is told."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from codriver.core.errors import BadConfigValue, CodriverError, MissingFile, UnknownConfigKey
from codriver.route.semantic_file import read_routes

GOOD = '[route.climate]\nexamples = ["warm", "warmer", "cold"]\n'


def write(folder: Path, text: str) -> Path:
    file = folder / "routes.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_file_with_everything(tmp_path: Path) -> None:
    text = (
        'margin = 0.05\nother = ["a poem"]\n[cache]\nthreshold = 0.99\nttl_s = 60\nentries = 8\n'
        '[route.manual]\nexamples = ["a", "b", "c"]\npolicy = "cloud-first"\nprivacy = "any"\nfailover = "restart"\n'
        'deadline_ms = 900\nfirst_token_ms = 300\nbudget_usd = 0.01\ntools = ["look_up"]\n'
        "cache = true\nthreshold = 0.4\n"
        '[route.phone]\nexamples = ["a", "e", "f"]\nengine = "vehicle"\nprivacy = "local_only"\npersonal = true\n'
    )
    rules = read_routes(write(tmp_path, text), ["vehicle"])
    manual, phone = rules.route["manual"], rules.route["phone"]
    assert (manual.policy, manual.failover, manual.deadline_ms, manual.tools) == (
        "cloud-first", "restart", 900, ("look_up",),
    )  # fmt: skip
    assert (phone.engine, phone.personal, phone.cache) == ("vehicle", True, False)
    assert (rules.cache.threshold, rules.cache.entries, rules.margin) == (0.99, 8, 0.05)
    assert rules.strictest == "local_only"
    assert rules.texts() == ["a", "b", "c", "e", "f", "a poem"]


@pytest.mark.parametrize(
    ("text", "kind", "told"),
    [
        (GOOD + "polcy = 'auto'", UnknownConfigKey, "route 'climate': unknown key 'polcy'. Did you mean 'policy'?"),
        (GOOD + "zzz = 1", UnknownConfigKey, "route 'climate': unknown key 'zzz'. Allowed: examples, policy, engine,"),
        ("[routes.x]\n", UnknownConfigKey, "unknown key 'routes'. Did you mean 'route'?"),
        (GOOD + "[cache]\nttl = 1", UnknownConfigKey, "[cache]: unknown key 'ttl'. Did you mean 'ttl_s'?"),
        (
            GOOD + "policy = 'fastest'",
            BadConfigValue,
            "route 'climate': not valid in 'policy': Invalid enum value 'fastest'. Allowed: auto, vehicle-only, "
            "cloud-only, cloud-first, vehicle-first.",
        ),
        (GOOD + "privacy = 'secret'", BadConfigValue, "in 'privacy': Invalid enum value 'secret'. Allowed: any, "),
        (GOOD + "deadline_ms = -5", BadConfigValue, "in 'deadline_ms': Expected `float` > 0"),
        (GOOD + "threshold = 1.5", BadConfigValue, "in 'threshold': Expected `float` <= 1"),
        (GOOD + "cache = 'yes'", BadConfigValue, "in 'cache': Expected `bool`, got `str`"),
        (GOOD + "[cache]\nentries = 0", BadConfigValue, "[cache]: not valid in 'entries': Expected `int` >= 1"),
        ("margin = 2\n" + GOOD, BadConfigValue, "not valid in 'margin': Expected `float` <= 1"),
        ("[route.x]\n", BadConfigValue, "route 'x': not valid: Object missing required field `examples`"),
        ("[route.x]\nexamples = ['a', 'b']", BadConfigValue, "'examples' has 2 sentences; allowed: at least 3."),
        ("[route.x]\nexamples = ['a', 'b', '']", BadConfigValue, "in 'examples[2]': Expected `str` of length >= 1"),
        ("[route.x]\nexamples = ['a', 'b', ' ']", BadConfigValue, "'examples' holds an empty sentence."),
        ("[route]\n", BadConfigValue, "it has 0 routes; allowed: 1 to 64 tables [route.NAME]."),
        ("route = 3", BadConfigValue, "not valid in 'route': Expected `object`, got `int`"),
        ("[route.Climate]\nexamples = ['a', 'b', 'c']", BadConfigValue, "route 'Climate': this name is not allowed;"),
        ("[route.none]\nexamples = ['a', 'b', 'c']", BadConfigValue, "and none of none, failed, other."),
        (GOOD + "engine = 'moon'", BadConfigValue, "'engine' is 'moon'; allowed: vehicle, cloud."),
        (GOOD + "engine = 'cloud'\npolicy = 'auto'", BadConfigValue, "'engine' and 'policy' contradict each other"),
        (
            GOOD + "privacy = 'local_only'\npolicy = 'cloud-only'",
            BadConfigValue,
            "'privacy' local_only and 'policy' cloud-only contradict each other.",
        ),
        (
            GOOD + "cache = true\npersonal = true",
            BadConfigValue,
            "'cache' is true; allowed: false, because the route is personal.",
        ),
        (
            GOOD + "cache = true\nprivacy = 'local_only'",
            BadConfigValue,
            "'cache' is true; allowed: false, because the route is local_only.",
        ),
        ("[route.climate\n", BadConfigValue, "cannot be read: Expected ']' at the end of a table"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, text: str, kind: type[CodriverError], told: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(kind) as caught:
        read_routes(file, ["vehicle", "cloud"])
    assert told in caught.value.message
    assert str(file) in caught.value.message
    assert caught.value.param == "route.semantic_file"


def test_no_file_and_too_many_routes(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"The routes file .*none\.toml does not exist"):
        read_routes(tmp_path / "none.toml")
    many = "".join(f'[route.r{at}]\nexamples = ["a", "b", "c"]\n' for at in range(65))
    with pytest.raises(BadConfigValue, match="it has 65 routes; allowed: 1 to 64"):
        read_routes(write(tmp_path, many))


def test_the_shipped_file_is_valid() -> None:
    with resources.as_file(resources.files("codriver.route") / "data" / "routes.toml") as file:
        rules = read_routes(file, ["vehicle", "cloud"])
    assert len(rules.route) >= 8
    assert all(len(rule.examples) >= 12 for rule in rules.route.values())
    assert {name for name, rule in rules.route.items() if rule.personal} == {"phone", "calendar"}
    assert all(rule.privacy == "local_only" for rule in rules.route.values() if rule.personal)
    assert [name for name, rule in rules.route.items() if rule.cache] == ["manual"]
