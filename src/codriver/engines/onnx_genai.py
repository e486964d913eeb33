"""ONNX Runtime GenAI as an engine: a folder of graph, weights, tokenizer and settings, as ``codriver optimize export``
or the runtime's own model builder writes it.

Extra ``onnx``. Answers take turns, token by token, in one thread, so leaving an answer stops it at the next token.
Limits: decoders with text in and out; no tools, no images, no adapters, no penalties; no memory is shared between
prompts that begin alike. Tokens are made by ``tokenizers``: the runtime's own tokenizer splits some characters that
Unicode calls compatible otherwise than the models were trained with. The rule kept here: what the runtime would ignore
is refused by name.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.core.config import setting
from codriver.core.engine import EngineCard, Price
from codriver.core.errors import BadConfigValue, BadModelFile, EngineUnavailable, MissingFile, RequestError
from codriver.core.messages import ChatRequest

from .json_subset import closed
from .onnx_genai_steps import LENGTH, STOP, Generators, Wish
from .step_loop import StepLoop
from .stepped import Stepped, SteppedConfig, refuse_each, refused_by_all, wanted_schema

SETTINGS, TOKENIZER = "genai_config.json", "tokenizer.json"
_SPIN_US = "500"


@dataclass(frozen=True)
class OnnxGenaiConfig(SteppedConfig):
    """One model in this process."""

    model: Path = setting(Path("model"), "The folder with genai_config.json.")


def why_not(model: Path) -> str | None:
    """Why ONNX Runtime GenAI cannot load this folder, as a sentence; ``None`` when it can. Nothing heavy is imported.

    Errors: :class:`MissingFile`, :class:`BadModelFile` for a folder that is not whole.
    """
    told = _read_settings(model)
    kind = told["model"].get("type")
    decoder = told["model"].get("decoder")
    if not isinstance(decoder, dict) or "encoder" in told["model"] or "vision" in told["model"]:
        return f"{model} is of the type '{kind}', which is no decoder of text alone"
    for name in (decoder.get("filename"), TOKENIZER):
        if not isinstance(name, str) or not (model / name).is_file():
            raise MissingFile(f"The model {model} has no file '{name}'.")
    return None


def _read_settings(model: Path) -> dict[str, Any]:
    file = model / SETTINGS
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFile(
            f"{file} does not exist. `codriver optimize export MODEL --to onnx-genai` writes such a folder."
        ) from None
    except OSError as error:
        raise MissingFile(f"{file} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise BadModelFile(f"{file} is no JSON: {error}.") from error
    if not isinstance(told, dict) or not isinstance(told.get("model"), dict):
        raise BadModelFile(f"{file} says nothing about a 'model'.")
    return told


class OnnxGenai(Stepped):
    """Made cold: :meth:`load` (or :meth:`start`) loads the model, and :meth:`health` says ``loading`` meanwhile."""

    runtime = "ONNX Runtime GenAI"

    def __init__(self, config: OnnxGenaiConfig, clock: Clock = SYSTEM_CLOCK) -> None:
        reason = why_not(config.model)
        if reason:
            raise EngineUnavailable(f"{reason}.", engine=config.id)
        if config.batch_tokens > config.context_tokens:
            raise BadConfigValue("'batch_tokens' is larger than 'context_tokens'.", param="batch_tokens")
        told = _read_settings(config.model)["model"]
        most = told.get("context_length", config.context_tokens)
        ends = told.get("eos_token_id", [])
        self._ends = frozenset(ends if isinstance(ends, list) else [ends])
        card = EngineCard(
            id=config.id,
            locality=config.locality,
            model=config.model.name,
            capabilities=frozenset({"chat", "completions", "json_schema", "logprobs", "prefill"}),
            context_tokens=min(config.context_tokens, most),
            price=Price(config.input_usd, config.output_usd),
        )
        super().__init__(card, config.slots, clock)
        self._config = config
        self._genai: Any = None
        self._model: Any = None
        self._templates: Any = None
        self._tokenizer: Any = None
        self._begin: list[int] = []

    @classmethod
    async def start(cls, config: OnnxGenaiConfig, clock: Clock = SYSTEM_CLOCK) -> OnnxGenai:
        """A ready engine. Errors: :class:`MissingFile`, :class:`BadModelFile`, :class:`EngineUnavailable`,
        :class:`BadConfigValue`.
        """
        engine = cls(config, clock)
        await engine.load()
        return engine

    def open(self) -> StepLoop:
        import onnxruntime_genai
        from tokenizers import Tokenizer

        folder = self._config.model
        self._genai = onnxruntime_genai
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        except Exception as error:  # tokenizers raises nothing more special
            raise RuntimeError(f"{TOKENIZER}: {error}") from error
        config = onnxruntime_genai.Config(str(folder))
        threads = self._config.threads or len(os.sched_getaffinity(0))
        # Threads that spin on and on take the cores from everything else in the car; such as sleep between any two of a
        # step's thousand operations take a third of the tokens a second, also beside a busy process.
        session = {"intra_op_num_threads": threads, "session.intra_op.spin_duration_us": _SPIN_US}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._model = onnxruntime_genai.Model(config)
        self._templates = onnxruntime_genai.Tokenizer(self._model)
        self._begin = self._first_tokens(folder / "tokenizer_config.json")
        generators = Generators(self._generator, self._ends, self._config.batch_tokens)
        return StepLoop(generators, {STOP: "stop", LENGTH: "length"})

    def _first_tokens(self, file: Path) -> list[int]:
        """What every prompt begins with, for models that were trained so."""
        told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        mark = told.get("bos_token")
        text = mark.get("content") if isinstance(mark, dict) else mark
        at = self._tokenizer.token_to_id(text) if told.get("add_bos_token") and isinstance(text, str) else None
        return [] if at is None else [at]

    def _generator(self, wish: Wish, prompt_tokens: int) -> Any:
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(max_length=prompt_tokens + wish.limit, **wish.search)
        if wish.schema is not None:
            params.set_guidance("json_schema", wish.schema)
        return self._genai.Generator(self._model, params)

    def refuse(self, request: ChatRequest) -> None:
        penalised = bool(request.presence_penalty or request.frequency_penalty)
        param = "presence_penalty" if request.presence_penalty else "frequency_penalty"
        refuse_each(self.card.id, [(penalised, param, "it has no penalties"), *refused_by_all(request)])

    def tokens(self, request: ChatRequest) -> tuple[Any, int]:
        prompt = request.prompt
        if prompt is None:
            messages = json.dumps([{"role": one.role, "content": one.text()} for one in request.messages])
            try:
                prompt = self._templates.apply_chat_template(messages, add_generation_prompt=True)
            except RuntimeError as error:
                raise RequestError(f"The chat template of '{self.card.id}' does not take these messages.") from error
        text = prompt + (request.continue_from or "")
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if self._begin and ids[:1] != self._begin:
            ids = [*self._begin, *ids]
        if not ids:
            raise RequestError(f"'{self.card.id}' was given an empty prompt.", param="prompt")
        return ids, len(ids)

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""

    def settings(self, request: ChatRequest, limit: int) -> Any:
        temperature = 1.0 if request.temperature is None else request.temperature
        seed = time.time_ns() if request.seed is None else request.seed
        search: dict[str, Any] = {"do_sample": temperature > 0, "num_beams": 1, "min_length": 0, "top_k": 0}
        if temperature > 0:
            top_p = 1.0 if request.top_p is None else request.top_p
            search |= {"temperature": temperature, "top_p": top_p, "random_seed": seed & 0x7FFFFFFF}
        schema = wanted_schema(request)
        tops = (request.top_logprobs or 0) if request.logprobs else None
        return Wish(search, limit, None if schema is None else json.dumps(closed(schema)), tops)

    async def aclose(self) -> None:
        """End the step thread and free the model. Answers under way end with :class:`EngineDied`."""
        await super().aclose()
        self._model = self._templates = self._tokenizer = None
