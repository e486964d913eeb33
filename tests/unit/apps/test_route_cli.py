"""``codriver route`` as a user sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from codriver.apps.explaining import explained
from codriver.apps.quality import known_quality
from codriver.apps.settings import CloudAccess, OnBoard, VehicleConfig
from codriver.core.errors import BadConfigValue, MissingFile
from codriver.route.config import RouteConfig
from codriver.route.fit import fit_model
from codriver.route.learned import LearnedQuality
from codriver.route.outcome_model import save_model
from tests.unit.route.judging import FakeEmbedder, world

from .conftest import codriver

CLOUD = "http://127.0.0.1:9/v1"


def test_explain_says_who_and_why_in_one_sentence() -> None:
    told = codriver("route", "explain", "What is 17 times 23?", "--set", f"cloud.url={CLOUD}").stdout
    assert told.count("\n") == 1
    assert " goes first" in told and "link up (assumed), policy auto." in told
    assert "P(good) of vehicle" in told


def test_explain_with_the_link_down() -> None:
    told = codriver("route", "explain", "Hello?", "--link", "down", "--set", f"cloud.url={CLOUD}").stdout
    assert told.startswith("vehicle goes first (link down), and nobody after it")
    assert "link down (assumed)" in told


def test_explain_without_a_cloud() -> None:
    assert codriver("route", "explain", "Hello?").stdout.endswith("policy auto; no cloud is configured.\n")


def test_mistakes_are_told(tmp_path: Path) -> None:
    empty = codriver("route", "explain", "  ")
    assert empty.returncode == 2
    assert "There is nothing to explain: the prompt is empty." in empty.stderr
    missing = codriver("route", "train", "--outcomes", str(tmp_path / "none.jsonl"))
    assert missing.returncode == 2
    assert "none.jsonl does not exist" in missing.stderr
    nowhere = codriver("route", "eval", CODRIVER_DATA=str(tmp_path / "no"))
    assert nowhere.returncode == 2
    assert "CODRIVER_DATA is" in nowhere.stderr
    link = codriver("route", "explain", "x", "--link", "sideways")
    assert link.returncode == 2 and "sideways" in link.stderr


def config_with(file: Path, **route: object) -> VehicleConfig:
    return VehicleConfig(
        engine=OnBoard(embedder=""),
        cloud=CloudAccess(url=CLOUD),
        route=RouteConfig(quality_model=file, **route),  # type: ignore[arg-type]
    )


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    whole = world()
    named = {"vehicle": whole.good["small"], "cloud": whole.good["large"]}
    save_model(
        fit_model(type(whole)(whole.readings, whole.embeddings, whole.topics, whole.groups, named)), tmp_path / "m"
    )
    return tmp_path / "m"


def test_a_model_of_ones_own_speaks_for_the_cars_engines(model_file: Path) -> None:
    quality = known_quality(config_with(model_file), FakeEmbedder())  # type: ignore[arg-type]
    assert isinstance(quality, LearnedQuality)
    assert quality.heads == {"cloud": "cloud", "vehicle": "vehicle"}
    assert quality.calibrated("vehicle")


@pytest.mark.parametrize("route", [{"learned": False}, {"policy": "cloud-first"}])
def test_what_is_switched_off_or_settled_is_not_read(model_file: Path, route: dict[str, object]) -> None:
    assert not isinstance(known_quality(config_with(model_file, **route), FakeEmbedder()), LearnedQuality)  # type: ignore[arg-type]


def test_without_an_embedder_the_car_routes_as_before(model_file: Path) -> None:
    assert not isinstance(known_quality(config_with(model_file), None), LearnedQuality)


def test_a_named_model_that_is_not_usable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"The quality model .*none does not exist"):
        known_quality(config_with(tmp_path / "none"), FakeEmbedder())  # type: ignore[arg-type]
    (tmp_path / "bad").write_text("{}")
    with pytest.raises(BadConfigValue, match="is not valid"):
        known_quality(config_with(tmp_path / "bad"), FakeEmbedder())  # type: ignore[arg-type]


async def test_explained_tells_both_chances(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closing(FakeEmbedder):
        async def aclose(self) -> None:
            return None

    monkeypatch.setattr("codriver.apps.explaining.start_embedder", lambda engine, catalogue: Closing())
    told = await explained(config_with(model_file), "Question 1: warm heat cool window seat fan?", "up")
    assert "P(good) of vehicle 0." in told and "P(good) of cloud 0." in told and "utility" in told
