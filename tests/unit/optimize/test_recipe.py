"""Passes in order, each done once, and each error a reader can act on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from codriver.core.config import setting
from codriver.core.errors import BadConfigValue, MissingFile, UnknownConfigKey, UnknownEntry
from codriver.optimize import recipe
from codriver.optimize.evaluate import Run
from codriver.optimize.recipe import Recipe, Workshop, load_recipe

DONE: list[str] = []


@dataclass(frozen=True)
class Append:
    letter: str = setting("a", "What is added.")
    times: int = setting(1, "How often.", least=1)

    def apply(self, source: Path, target: Path, shop: Workshop) -> str:
        if (shop.scratch / "stop").exists():
            raise KeyboardInterrupt
        DONE.append(self.letter)
        target.write_text(source.read_text() + self.letter * self.times + str(shop.seed))
        return f"added {self.times} {self.letter}"


@pytest.fixture(autouse=True)
def passes(monkeypatch: pytest.MonkeyPatch) -> None:
    DONE.clear()
    entries = dict(recipe.PASSES._entries) | {"append": f"{__name__}:Append"}
    monkeypatch.setattr(recipe, "PASSES", recipe.Registry("pass", "codriver.none", entries))


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "recipe.toml"
    file.write_text(text)
    return file


def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path, lambda step: Run())


TWO = 'seed = 7\n[[pass]]\nuse = "append"\n[[pass]]\nuse = "append"\nletter = "b"\ntimes = 2\n'


def test_passes_run_in_order_and_each_once(tmp_path: Path) -> None:
    source, work = tmp_path / "model.txt", tmp_path / "work"
    source.write_text("x")
    found = load_recipe(written(tmp_path, TWO))
    made, told = found.run(source, work, shop(tmp_path))
    assert made.read_text() == "xa7bb7" and told == ("append: added 1 a", "append: added 2 b")
    assert found.run(source, work, shop(tmp_path)) == (made, told)
    assert DONE == ["a", "b"]
    # Another seed, source or text is another work.
    Recipe(found.passes, 8).run(source, work, shop(tmp_path))
    found.run(source, work, Workshop(tmp_path, lambda step: Run(), "another text"))
    source.write_text("y")
    assert found.run(source, work, shop(tmp_path))[0].read_text() == "ya7bb7"
    assert DONE == ["a", "b"] * 4
    assert Recipe().run(source, work, shop(tmp_path)) == (source, ())


def test_an_interrupt_keeps_what_was_finished_and_the_scratch_of_what_was_not(tmp_path: Path) -> None:
    source, work = tmp_path / "model.txt", tmp_path / "work"
    source.write_text("x")
    found = load_recipe(written(tmp_path, TWO))
    made, _ = found.run(source, work, shop(tmp_path))
    made.unlink()
    scratch = made.with_suffix(".scratch")
    scratch.mkdir()
    (scratch / "stop").touch()
    with pytest.raises(KeyboardInterrupt):
        found.run(source, work, shop(tmp_path))
    assert not made.exists() and (scratch / "stop").exists()
    (scratch / "stop").unlink()
    DONE.clear()
    assert found.run(source, work, shop(tmp_path))[0].read_text() == "xa7bb7"
    assert DONE == ["b"] and not scratch.exists()


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("seed = 'x'", BadConfigValue, r"recipe\.toml is not valid: 'seed' is a whole number"),
        ("speed = 1", BadConfigValue, "it does not know 'speed'"),
        ("pass = 3", BadConfigValue, "'pass' a list of tables"),
        ("[[pass]]\nletter = 'a'", BadConfigValue, r'does not say which: use = "NAME"'),
        ("[[pass]]\nuse = 'appand'", UnknownEntry, "There is no pass 'appand'. Did you mean 'append'"),
        ("[[pass]]\nuse = 'append'\nleter = 'a'", UnknownConfigKey, r"'leter' \(append\)\. Did you mean 'letter'"),
        ("[[pass]]\nuse = 'append'\ntimes = 0", BadConfigValue, r"'append\.times' is 0; allowed: at least 1"),
        ("[[pass]", BadConfigValue, r"recipe\.toml is not valid TOML"),
    ],
)  # fmt: skip
def test_a_bad_recipe_is_told(tmp_path: Path, text: str, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        load_recipe(written(tmp_path, text))


def test_a_missing_recipe_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"The recipe .*none\.toml does not exist"):
        load_recipe(tmp_path / "none.toml")
