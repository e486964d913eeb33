"""The engines that the MLPerf bench can start, each with what the vehicle gives it and the catalogue's own models."""

from __future__ import annotations

from codriver.catalogue import Catalogue, Store
from codriver.core.engine import Engine
from codriver.core.errors import BadConfigValue
from codriver.engines.registry import ENGINES

STARTED = ("llama_cpp", "null", "onnx_runtime", "openvino")
_MODEL = "smollm2-135m-instruct-q4_1"
_EMBEDDER, _TOKENIZER = "all-minilm-l6-v2-int8", "all-minilm-l6-v2-tokenizer"


def refuse(name: str) -> None:
    """Errors: :class:`UnknownEntry`, :class:`MissingExtra`, :class:`MissingFile`, :class:`BadConfigValue`."""
    ENGINES.load(name)
    if name not in STARTED:
        raise BadConfigValue(
            f"The bench 'mlperf' cannot start the engine '{name}' by itself; it starts {', '.join(STARTED)}.",
            param="engine",
        )
    for model in models(name):
        Store().path(Catalogue.load().entry(model))


def models(name: str) -> tuple[str, ...]:
    """The catalogue's names of what the engine loads."""
    return {"null": (), "onnx_runtime": (_EMBEDDER, _TOKENIZER)}.get(name, (_MODEL,))


async def start(name: str) -> Engine:
    """Loaded and ready. Errors: as :func:`refuse`, and those of the engine."""
    refuse(name)
    kind = ENGINES.load(name)
    files = [Store().path(Catalogue.load().entry(model)) for model in models(name)]
    found: Engine
    if name == "llama_cpp":
        from codriver.engines.llama_cpp_config import LlamaCppConfig

        found = await kind.start(LlamaCppConfig(model=files[0]))
    elif name == "openvino":
        from codriver.engines.openvino import OpenVinoConfig

        found = await kind.start(OpenVinoConfig(id=name, model=files[0]))
    elif name == "onnx_runtime":
        from codriver.engines.onnx_runtime import OnnxConfig

        found = kind(OnnxConfig(model=files[0], tokenizer=files[1]))
    else:
        found = kind()
    return found
