"""Layers of configuration, and errors that name the key and what is allowed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from codriver.core import config
from codriver.core.config import describe, load, setting
from codriver.core.errors import BadConfigValue, MissingFile, UnknownConfigKey


@dataclass(frozen=True)
class Engine:
    threads: int = setting(2, "How many threads.", least=1, most=64)
    model: str = setting("m", "Which model.")
    file: Path | None = setting(None, "Where it is.")
    mode: Literal["fast", "exact"] = setting("fast", "How.")
    tags: tuple[str, ...] = setting((), "Which labels.")


@dataclass(frozen=True)
class Link:
    patience_s: float = setting(0.5, "How long.", least=0.0)
    watch: bool = setting(True, "Whether.")


@dataclass(frozen=True)
class Car:
    engine: Engine = field(default_factory=Engine)
    link: Link = field(default_factory=Link)


def toml(folder: Path, text: str) -> Path:
    file = folder / "car.toml"
    file.write_text(text)
    return file


def test_defaults() -> None:
    assert load(Car) == Car()


def test_flags_beat_environment_beats_file_beats_defaults(tmp_path: Path) -> None:
    file = toml(tmp_path, '[engine]\nthreads = 3\nmodel = "f"\nmode = "exact"\n')
    env = {"CODRIVER_ENGINE_THREADS": "4", "CODRIVER_ENGINE_MODEL": "e", "PATH": "x"}
    got = load(Car, file, env, {"engine.threads": 5, "engine.model": None})
    assert (got.engine.threads, got.engine.model, got.engine.mode) == (5, "e", "exact")


def test_text_of_the_environment_becomes_what_the_field_is() -> None:
    env = {
        "CODRIVER_ENGINE_FILE": "/tmp/x", "CODRIVER_ENGINE_TAGS": "a, b,", "CODRIVER_LINK_WATCH": "off",
        "CODRIVER_LINK_PATIENCE_S": "2",
    }  # fmt: skip
    got = load(Car, env=env)
    assert got.engine.file == Path("/tmp/x")
    assert got.engine.tags == ("a", "b")
    assert got.link == Link(2.0, False)


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        ("[engin]\nthreads=1", UnknownConfigKey, "Unknown configuration key 'engin'"),
        ("[engine]\nthread=1", UnknownConfigKey, "Did you mean 'engine.threads'?"),
        ("[zzz]\na=1", UnknownConfigKey, "Allowed: engine, link."),
        ("engine=1", BadConfigValue, "write it as a table [engine]"),
        ("[engine]\nthreads=0", BadConfigValue, "'engine.threads' is 0; allowed: at least 1 and at most 64."),
        ("[engine]\nthreads=true", BadConfigValue, "'engine.threads' is True; allowed: int."),
        ('[engine]\nmode="slow"', BadConfigValue, "'engine.mode' is 'slow'; allowed: fast | exact."),
        ('[link]\nwatch="maybe"', BadConfigValue, "'link.watch' is 'maybe'; allowed: bool."),
        ("[engine\n", BadConfigValue, "is not valid TOML"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path: Path, text: str, error: Any, sentence: str) -> None:
    with pytest.raises(error) as caught:
        load(Car, toml(tmp_path, text))
    assert sentence in caught.value.message


def test_bad_environment_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UnknownConfigKey, match="CODRIVER_ENGINE_THREAD' \\(environment\\)"):
        load(Car, env={"CODRIVER_ENGINE_THREAD": "1"})
    with pytest.raises(BadConfigValue, match=r"'link\.patience_s' is 'soon'; allowed: float"):
        load(Car, env={"CODRIVER_LINK_PATIENCE_S": "soon"})
    with pytest.raises(MissingFile, match="does not exist"):
        load(Car, tmp_path / "none.toml")


@dataclass(frozen=True)
class Cloud:
    link: Link = field(default_factory=Link)


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("CODRIVER_ENGIN_THREADS", "Did you mean 'CODRIVER_ENGINE_THREADS'?"),
        ("CODRIVER_HOMES", "Did you mean 'CODRIVER_HOME'?"),
        ("CODRIVER_XYZ", "Settings begin with CODRIVER_ENGINE_…, CODRIVER_LINK_…"),
    ],
)
def test_a_variable_that_sets_nothing_is_told(key: str, sentence: str) -> None:
    with pytest.raises(UnknownConfigKey) as caught:
        load(Car, env={key: "1"})
    assert f"Unknown configuration key '{key}' (environment)" in caught.value.message
    assert sentence in caught.value.message


def test_variables_that_others_read_are_left_alone() -> None:
    env = {
        "CODRIVER_HOME": "/x", "CODRIVER_API_KEY": "k", "CODRIVER_MY_API_KEY": "k", "CODRIVER_TEST_DATA": "/d",
        "CODRIVER_SERVICE_HOST": "10.0.0.1", "CODRIVER_PORT_8000_TCP_ADDR": "10.0.0.1", "CODRIVER_PORT": "tcp://x:1",
        "CODRIVER_LINK_SERVICE_HOST": "10.0.0.1", "CODRIVER_LINK_PORT": "tcp://10.0.0.1:80", "CODRIVERS": "1",
    }  # fmt: skip

    assert load(Car, env=env) == Car()


def test_two_roles_may_share_an_environment() -> None:
    env = {"CODRIVER_ENGINE_THREADS": "4", "CODRIVER_LINK_WATCH": "off"}
    assert load(Cloud, env=env, others=[Car]).link == Link(watch=False)
    with pytest.raises(UnknownConfigKey, match="CODRIVER_ENGINE_THREADS"):
        load(Cloud, env=env)


def test_a_folder_or_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadConfigValue, match=r"is a folder: name a TOML file\.$"):
        load(Car, tmp_path)
    with pytest.raises(BadConfigValue, match=r"cannot be read: Not a directory\.$"):
        load(Car, toml(tmp_path, "") / "inside")


def test_every_setting_describes_itself() -> None:
    told = {each.key: each for each in describe(Car)}
    assert told["engine.mode"].type == "fast | exact"
    assert told["engine.file"].type == "Path | none"
    assert told["engine.threads"].env == "CODRIVER_ENGINE_THREADS"
    assert told["link.patience_s"].default == 0.5
    assert all(each.sentence.endswith(".") for each in told.values())


def test_every_variable_that_the_code_asks_for_may_be_set() -> None:
    """One that is not known ends every command with an error."""
    source = Path(config.__file__).parents[1]
    asked = {
        name
        for file in source.rglob("*.py")
        for name in re.findall(r'environ(?:\.get\(|\[)"(CODRIVER_\w+)"', file.read_text(encoding="utf-8"))
    }
    assert "CODRIVER_RIVALS" in asked
    assert asked <= config._OTHER_VARIABLES
