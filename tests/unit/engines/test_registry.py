"""The registry names every engine, and says why one cannot be used."""

from __future__ import annotations

import pytest

from codriver.core.errors import MissingExtra, UnknownEntry
from codriver.engines.registry import ENGINES


def test_the_names_and_a_near_miss() -> None:
    shipped = {
        "executorch",
        "litert",
        "llama_cpp",
        "null",
        "onnx_genai",
        "onnx_runtime",
        "openai",
        "openvino",
        "replay",
    }
    assert shipped <= set(ENGINES.names())
    with pytest.raises(UnknownEntry, match=r"There is no engine 'open_ai'\. Did you mean 'openai'\?"):
        ENGINES.load("open_ai")


@pytest.mark.parametrize(
    ("name", "attribute"),
    [("null", "Null"), ("openai", "OpenAIServer"), ("replay", "Replay"), ("onnx_runtime", "OnnxRuntime")],
)
def test_an_engine_is_loaded_or_its_absence_explained(name: str, attribute: str) -> None:
    reason = ENGINES.why_not(name)
    if reason is None:
        assert ENGINES.load(name).__name__ == attribute
    else:
        with pytest.raises(MissingExtra, match="pip install 'codriver"):
            ENGINES.load(name)
