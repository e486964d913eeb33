"""What can be learnt is learnt, and a calibration survives being written down."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codriver.core.errors import BadConfigValue, MissingFile
from codriver.core.messages import ChatRequest, JsonSchema, Message, ResponseFormat, TokenLogprob, TopLogprob
from codriver.route.quality import (
    Calibration,
    Draft,
    Outcome,
    Quality,
    _is_option,
    _words,
    calibrate,
    draft_features,
    load_calibration,
    request_features,
    save_calibration,
)

EASY = ["open the window please", "turn the radio on", "set the seat heating to two", "close the sun roof"]
HARD = ["prove the theorem for all n", "integrate the square of x", "how many apples are left", "which is heavier"]


def question(text: str) -> ChatRequest:
    return ChatRequest(messages=[Message(role="user", content=text)])


def draft(mean: float, tokens: int = 10) -> Draft:
    made = Draft()
    made.add([TokenLogprob("x", mean, None, [TopLogprob("x", mean), TopLogprob("y", mean - 2)])] * tokens)
    return made


def outcomes(n: int, seed: int = 1) -> list[Outcome]:
    """Easy questions are mostly answered well; among all, a confident draft is likelier to be good."""
    chance = random.Random(seed)
    made = []
    for _ in range(n):
        easy = chance.random() < 0.5
        request = question(chance.choice(EASY if easy else HARD) + f" {chance.randrange(10)}")
        confident = chance.random() < 0.5
        good = chance.random() < (0.75 if easy else 0.25) + (0.2 if confident else -0.2)
        features = draft_features(draft(-0.1 if confident else -1.5))
        made.append(Outcome(request_features(request), features, good))
    return made


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrate("toy", outcomes(300))


def test_learnable_outcomes_are_learnt(calibration: Calibration) -> None:
    assert calibration.fit.n == 300
    assert calibration.fit.brier < 0.8 * calibration.fit.brier_base
    quality = Quality({"v": calibration})
    easy = quality.prior("v", request_features(question(EASY[0])))
    hard = quality.prior("v", request_features(question(HARD[0])))
    assert easy > 0.6 > 0.4 > hard
    features = request_features(question(EASY[0]))
    assert quality.confidence("v", features, draft(-0.1)) > quality.confidence("v", features, draft(-1.5)) + 0.2


def test_noise_is_not_learnt() -> None:
    chance = random.Random(5)
    made = [Outcome(o.request, o.draft, chance.random() < 0.5) for o in outcomes(200, seed=2)]
    fit = calibrate("noise", made).fit
    assert fit.brier > 0.9 * fit.brier_base


def test_without_a_calibration_the_tokens_speak() -> None:
    quality = Quality()
    features = request_features(question("hello"))
    assert quality.prior("v", features) == 0.5
    assert quality.confidence("v", features, Draft()) == 0.5
    assert quality.confidence("v", features, draft(-0.1)) == pytest.approx(0.905, abs=0.001)


def test_a_calibration_needs_outcomes() -> None:
    with pytest.raises(BadConfigValue, match="at least 20 outcomes; there are 3"):
        calibrate("x", outcomes(3))


def test_it_survives_being_written_down(calibration: Calibration, tmp_path: Path) -> None:
    file = tmp_path / "car.json"
    save_calibration(calibration, file)
    again = load_calibration(file)
    assert again == calibration
    assert list(tmp_path.iterdir()) == [file]


def test_a_bad_file_is_named(calibration: Calibration, tmp_path: Path) -> None:
    file = tmp_path / "car.json"
    with pytest.raises(MissingFile, match=r"car\.json does not exist"):
        load_calibration(file)
    file.write_text('{"model": "x", "prior": ')
    with pytest.raises(BadConfigValue, match=r"car\.json is not valid"):
        load_calibration(file)
    with pytest.raises(BadConfigValue, match="is not valid"):
        load_calibration(tmp_path)
    save_calibration(calibration, file)
    body = json.loads(file.read_text())
    file.write_text(json.dumps({**body, "features": 99}))
    with pytest.raises(BadConfigValue, match="of another version of Codriver: calibrate again"):
        load_calibration(file)


def test_features_see_what_matters() -> None:
    plain = request_features(question("Was kostet Öl in München?"))
    assert request_features(question("was KOSTET öl in münchen")) != request_features(question("was kostet milch"))
    assert len(plain) > 8, "words outside ASCII count"
    schema = ResponseFormat(type="json_schema", json_schema=JsonSchema(schema={"properties": {"a": {}}}))
    formed = ChatRequest(messages=[Message(role="user", content="x")], response_format=schema)
    assert request_features(formed) != request_features(question("x"))
    assert request_features(ChatRequest(prompt="abc def"))
    assert draft_features(Draft()) == {}


def test_features_are_quick(capsys: pytest.CaptureFixture[str]) -> None:
    request = question(" ".join(f"word{i}" for i in range(50)))
    quality = Quality({"v": calibrate("toy", outcomes(40))})
    began_s = time.perf_counter()
    for _ in range(500):
        features = request_features(request)
    middle_s = time.perf_counter()
    for _ in range(500):
        quality.prior("v", features)
    ended_s = time.perf_counter()
    with capsys.disabled():
        features_us, prior_us = 2e3 * (middle_s - began_s), 2e3 * (ended_s - middle_s)
        print(f"\n  request_features: {features_us:.1f} us, prior: {prior_us:.1f} us (question of 50 words)")


@given(st.text(st.sampled_from("aBéß07_²٣ \n\t\x1f\N{NO-BREAK SPACE}-.'\N{EM DASH}"), max_size=1500))
def test_words_are_runs_of_letters_or_of_digits(text: str) -> None:
    assert _words(text) == re.findall(r"[^\W\d_]+|\d+", text)[:128]


@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        ("A) yes", True),
        ("  B. no", True),
        ("E)\tmaybe", True),
        ("F) no", False),
        ("A yes", False),
        ("A)", False),
        ("", False),
    ],
)
def test_a_line_of_a_list_of_choices(line: str, is_one: bool) -> None:
    assert _is_option(line) is is_one
