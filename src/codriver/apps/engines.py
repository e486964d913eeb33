"""Makes engines from settings: finds the model file, then starts the runtime that the settings name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec

from codriver.catalogue import CatalogueConfig, ModelFile, resolve
from codriver.core.engine import Engine, Locality
from codriver.core.errors import BadConfigValue, MissingExtra, MissingFile, SetupError
from codriver.engines.registry import ENGINES
from codriver.engines.tuning import GENAI_FORMS, load

from .settings import OnBoard

_log = logging.getLogger("codriver.apps")


async def start_on_board(settings: OnBoard, catalogue: CatalogueConfig, locality: Locality) -> Engine:
    """The embedded engine, loaded and ready. Errors: :class:`MissingFile`, :class:`MissingExtra`,
    :class:`EngineUnavailable`.
    """
    if settings.kind == "null":
        from codriver.engines.null import NullConfig

        null: Engine = ENGINES.load("null")(NullConfig(id=locality, locality=locality, text=settings.null_text))
        return null
    model = resolve(settings.model, catalogue.catalogue(), catalogue.store())
    runtime, form = str(settings.kind), GENAI_FORMS[0]
    if settings.kind == "auto":
        runtime, form = measured_runtime(settings, model, catalogue)
    kind = ENGINES.load(runtime)
    if runtime == "openvino":
        return await _openvino(kind, settings, model, locality)
    if runtime == "onnx_genai":
        return await _onnx_genai(kind, settings, _exported(settings, model, form, catalogue), locality)
    return await _llama_cpp(kind, settings, model, catalogue, locality)


def tuned_folder(catalogue: CatalogueConfig) -> Path:
    """Where the measurements of ``codriver engines tune`` are kept."""
    return catalogue.store().root / "tuned"


def genai_folder(catalogue: CatalogueConfig, sha256: str, form: str) -> Path:
    """Where a GGUF file stands once more, as ONNX Runtime GenAI loads it."""
    return tuned_folder(catalogue) / f"{sha256}.{form}"


def _exported(settings: OnBoard, model: ModelFile, form: str, catalogue: CatalogueConfig) -> Path:
    folder = genai_folder(catalogue, model.sha256, form)
    if not folder.exists():
        raise MissingFile(
            f"The model {model.name} is not here as ONNX Runtime GenAI loads it; write it with: "
            f"codriver engines tune {settings.model}",
            param="engine.kind",
        )
    return folder


def measured_runtime(settings: OnBoard, model: ModelFile, catalogue: CatalogueConfig) -> tuple[str, str]:
    """The best runtime of those that agree, and the form it takes the model in, by the measurement of this model; else
    llama.cpp, and the log says why.
    """
    if settings.mmproj or settings.prefix_file is not None:
        _log.info("the runtime is llama_cpp", extra={"reason": "only it has a kept prefix and images"})
        return "llama_cpp", ""
    tuning, reason = load(tuned_folder(catalogue), model.sha256)
    if tuning is None:
        _log.warning(
            "the runtime is llama_cpp", extra={"reason": reason, "mend": f"codriver engines tune {settings.model}"}
        )
        return "llama_cpp", ""
    best = tuning.pick(settings.best)
    _log.info("the runtime is " + best.name, extra={"best_by": settings.best, "agreement": best.agreement})
    return best.runtime, best.form


def start_embedder(settings: OnBoard, catalogue: CatalogueConfig) -> Engine | None:
    """The sentence embedder, or ``None`` where its extra or its files are missing: a vehicle answers without it."""
    if not settings.embedder or ENGINES.why_not("onnx_runtime") is not None:
        return None
    known, store = catalogue.catalogue(), catalogue.store()
    try:
        model = resolve(settings.embedder, known, store)
        tokenizer = resolve(settings.embedder_tokenizer, known, store)
    except MissingFile as error:
        _log.info("no sentence embedder", extra={"reason": error.message})
        return None
    kind = ENGINES.load("onnx_runtime")
    from codriver.engines.onnx_runtime import OnnxConfig

    engine: Engine = kind(OnnxConfig(model=model.path, tokenizer=tokenizer.path, integers=settings.embedder_integers))
    return engine


def no_embedder(settings: OnBoard) -> SetupError:
    """Why semantic routes cannot be had: there is no sentence embedder."""
    reason = ENGINES.why_not("onnx_runtime")
    if reason is not None:
        return MissingExtra(f"Semantic routes need the sentence embedder: {reason}.", param="route.semantic_file")
    if not settings.embedder:
        return MissingFile(
            "Semantic routes need the sentence embedder, and engine.embedder is empty.", param="engine.embedder"
        )
    return MissingFile(
        "Semantic routes need the sentence embedder, whose files are not here; fetch them with: "
        f"codriver models pull {settings.embedder} {settings.embedder_tokenizer}",
        param="engine.embedder",
    )


async def _llama_cpp(
    kind: Any, settings: OnBoard, model: ModelFile, catalogue: CatalogueConfig, locality: Locality
) -> Engine:
    from codriver.engines.llama_cpp_config import LlamaCppConfig

    prefix = read_prefix(settings.prefix_file) if settings.prefix_file is not None else Prefix()
    store = catalogue.store()
    mmproj = resolve(settings.mmproj, catalogue.catalogue(), store).path if settings.mmproj else None
    config = LlamaCppConfig(
        id=locality,
        model=model.path,
        locality=locality,
        context_tokens=settings.context_tokens,
        slots=settings.slots,
        threads=settings.threads,
        prefix=prefix.messages,
        prefix_tools=prefix.tools,
        prefix_dir=store.root / "prefixes" if prefix.messages else None,
        openings=settings.openings,
        mmproj=mmproj,
    )
    engine: Engine = await kind.start(config)
    return engine


async def _openvino(kind: Any, settings: OnBoard, model: ModelFile, locality: Locality) -> Engine:
    from codriver.engines.openvino import OpenVinoConfig

    config = OpenVinoConfig(
        id=locality,
        model=model.path,
        locality=locality,
        context_tokens=settings.context_tokens,
        threads=settings.threads,
    )
    engine: Engine = await kind.start(config)
    return engine


async def _onnx_genai(kind: Any, settings: OnBoard, folder: Path, locality: Locality) -> Engine:
    from codriver.engines.onnx_genai import OnnxGenaiConfig

    config = OnnxGenaiConfig(
        id=locality,
        model=folder,
        locality=locality,
        context_tokens=settings.context_tokens,
        threads=settings.threads,
        slots=settings.slots,
    )
    engine: Engine = await kind.start(config)
    return engine


class Prefix(msgspec.Struct, forbid_unknown_fields=True):
    """What every conversation starts with, in the shape of a chat request."""

    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()


def read_prefix(file: Path) -> Prefix:
    """Errors: :class:`MissingFile`, :class:`BadConfigValue` naming the file and the member at fault."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Prefix)
    except FileNotFoundError:
        raise MissingFile(f"The prefix file {file} does not exist.", param="engine.prefix_file") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadConfigValue(f"The prefix file {file} is not valid: {error}.", param="engine.prefix_file") from error
