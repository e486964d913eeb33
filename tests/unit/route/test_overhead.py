"""What router and redaction add to a request and to a chunk: measured and printed, not asserted (machines differ)."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.core.messages import ChatChunk, ChatRequest, ChunkChoice, Delta, Message
from codriver.engines.null import Null, NullConfig
from codriver.privacy import NameFinder, PrivacyConfig
from codriver.privacy.detect import make_detector
from codriver.route.conceal import Concealer
from codriver.route.hybrid import HybridEngine
from codriver.route.lineup import Lineup
from codriver.route.personalise import Personaliser
from codriver.route.vault import Vault
from tests.unit.route.drive import ask

_SHORT, _LONG = 3, 200
_SENTENCE = (
    "Hello, please tell Anna Schmidt by mail to anna@example.org or on +49 151 12345678 that I leave Hauptstraße 12 at "
    "quarter past seven, set 21.5 degrees and take the A4 motorway to the second charger, because the first is taken "
    "and the battery will be at about twelve percent when we get there tonight. "
)


async def _cost_us(engine: Engine, request: ChatRequest, rounds: int) -> float:
    """Least microseconds of processor time of one request over five goes."""
    goes = []
    for _ in range(5):
        began_s = time.process_time()
        for _ in range(rounds):
            async for _ in engine.generate(request, Deadline.after(30.0)):
                pass
        goes.append((time.process_time() - began_s) / rounds)
    return 1e6 * min(goes)


async def test_what_the_router_adds(capsys: pytest.CaptureFixture[str]) -> None:
    cases = {"pinned": {"engine": "v"}, "cloud first": {"policy": "cloud-first"}, "gated draft": None}
    found: dict[str, dict[int, float]] = {}
    for words, rounds in ((_SHORT, 100), (_LONG, 5)):
        text = " ".join(["word"] * words)
        v, c = Null(NullConfig(id="v", text=text)), Null(NullConfig(id="c", locality="cloud", text=text))
        hybrid = HybridEngine(Lineup({"v": v, "c": c}))
        bare_us = await _cost_us(v, ask(), rounds)
        for name, options in cases.items():
            added_us = await _cost_us(hybrid, ask(codriver=options), rounds) - bare_us
            found.setdefault(name, {})[words] = added_us
    with capsys.disabled():
        print()
        for name, added in found.items():
            chunk_us = (added[_LONG] - added[_SHORT]) / (_LONG - _SHORT)
            print(f"  router adds, {name}: {added[_SHORT]:.0f} us a short request, {chunk_us:.1f} us a chunk")


def _spread_ms(work: Callable[[], object], times: int) -> str:
    """Median and 99th percentile in milliseconds of processor time."""
    goes = []
    for _ in range(times):
        began_s = time.process_time()
        work()
        goes.append(1e3 * (time.process_time() - began_s))
    goes.sort()
    return f"p50 {goes[times // 2]:.2f} ms, p99 {goes[times * 99 // 100]:.2f} ms"


def test_what_redaction_adds(capsys: pytest.CaptureFixture[str]) -> None:
    detector = make_detector(PrivacyConfig(names=("Anna Schmidt", *(f"Name{n} Surname{n}" for n in range(500)))))
    lines = []
    for words in (50, 1000):
        text = " ".join((_SENTENCE * (words // 40)).split()[:words])
        request = ask(messages=[Message(role="user", content=text)])

        def prepare(request: ChatRequest = request) -> None:
            concealer = Concealer(detector, NameFinder(()), Vault())
            concealer.learn(request)
            concealer.request(request)

        prepare()
        lines.append(f"redaction adds to a request of {words} words: {_spread_ms(prepare, 100)}")
    values = {f"<EMAIL_{n}>": f"someone{n}@example.org" for n in range(1, 11)}
    chunks = [ChatChunk(choices=[ChunkChoice(delta=Delta(content=piece))]) for piece in ("word ", "<EMA", "IL_1", "> ")]
    personaliser = Personaliser(values, json=False)

    def stream() -> None:
        for chunk in chunks:
            personaliser.take(chunk)

    lines.append(f"redaction adds to four chunks of a stream: {_spread_ms(stream, 5000)}")
    with capsys.disabled():
        print("", *(f"  {line}" for line in lines), sep="\n")
