"""What the router adds to a request and to a chunk: measured and printed, not asserted (machines differ)."""

from __future__ import annotations

import time

import pytest

from codriver.core.deadline import Deadline
from codriver.core.engine import Engine
from codriver.core.messages import ChatRequest
from codriver.engines.null import Null, NullConfig
from codriver.route.hybrid import HybridEngine
from codriver.route.lineup import Lineup
from tests.unit.route.drive import ask

_SHORT, _LONG = 3, 200


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
