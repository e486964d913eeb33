"""One engine per module and case, in one event loop: real models are loaded once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from codriver.core.engine import Engine
from tests.contract.cases import CASES, WEIGHTS, Find, Open


def _params() -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.model] if name in WEIGHTS else []) for name in CASES]


@pytest.fixture(scope="module", params=_params())
def case(request: pytest.FixtureRequest) -> Open:
    return CASES[request.param]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(case: Open, model_file: Find) -> AsyncIterator[Engine]:
    """An engine that every test of the module shares."""
    async with case(model_file) as opened:
        yield opened
