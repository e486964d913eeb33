"""OpenVINO GenAI as an engine: the same GGUF file, read much faster on x86 processors than llama.cpp reads it.

Extra ``openvino``. Answers are batched continuously; one thread steps them all, so leaving an answer stops it at the
next step. Limits: the architectures and GGUF formats that OpenVINO converts (:func:`why_not` names the rest); no
tools, no images, no adapters; log-probabilities of the chosen tokens only; loading takes seconds, half a minute for
K-quants. The rule kept here: what would break a step for all is refused before it is submitted.
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
from codriver.core.errors import BadConfigValue, EngineUnavailable, RequestError
from codriver.core.gguf import read_header
from codriver.core.messages import ChatRequest

from .json_subset import closed
from .step_loop import StepLoop
from .stepped import Stepped, SteppedConfig, refuse_each, refused_by_all, wanted_schema

# Tried with OpenVINO GenAI 2026.4 (Q4_K and Q6_K on a Q4_K_M file); its converter names no other.
_READABLE = ("F32", "F16", "Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q8_0")
_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_BLOCK_TOKENS = 32  # of a KV block on a CPU


@dataclass(frozen=True)
class OpenVinoConfig(SteppedConfig):
    """One model in this process."""

    model: Path = setting(Path("model.gguf"), "The GGUF file.")


def why_not(model: Path) -> str | None:
    """Why OpenVINO cannot load this GGUF file, as a sentence; ``None`` when it can. Nothing heavy is imported.

    Errors: :class:`MissingFile`, :class:`BadModelFile` for a file that is no whole GGUF.
    """
    header = read_header(model)
    if header.architecture not in _ARCHITECTURES:
        return (
            f"{model.name} is of the architecture '{header.architecture}'; OpenVINO builds graphs from GGUF for "
            f"{', '.join(_ARCHITECTURES)} only. Use the llama_cpp engine"
        )
    foreign = sorted(set(header.tensor_bytes) - set(_READABLE))
    if not foreign:
        return None
    return (
        f"{model.name} holds {', '.join(foreign)} tensors, which OpenVINO does not convert; it takes "
        f"{', '.join(_READABLE)}. Use the llama_cpp engine, or a Q4_0, Q4_1 or Q8_0 file"
    )


class OpenVino(Stepped):
    """Made cold: :meth:`load` (or :meth:`start`) loads the model, and :meth:`health` says ``loading`` meanwhile."""

    runtime = "OpenVINO"

    def __init__(self, config: OpenVinoConfig, clock: Clock = SYSTEM_CLOCK) -> None:
        reason = why_not(config.model)
        if reason:
            raise EngineUnavailable(f"{reason}.", engine=config.id)
        if config.batch_tokens > config.context_tokens:
            raise BadConfigValue("'batch_tokens' is larger than 'context_tokens'.", param="batch_tokens")
        card = EngineCard(
            id=config.id,
            locality=config.locality,
            model=config.model.stem,
            capabilities=frozenset({"chat", "completions", "json_schema", "logprobs", "prefill"}),
            context_tokens=config.context_tokens,
            price=Price(config.input_usd, config.output_usd),
        )
        super().__init__(card, config.slots, clock)
        self._config = config
        self._genai: Any = None
        self._tokenizer: Any = None

    @classmethod
    async def start(cls, config: OpenVinoConfig, clock: Clock = SYSTEM_CLOCK) -> OpenVino:
        """A ready engine. Errors: :class:`MissingFile`, :class:`BadModelFile`, :class:`EngineUnavailable`,
        :class:`BadConfigValue`.
        """
        engine = cls(config, clock)
        await engine.load()
        return engine

    def open(self) -> StepLoop:
        import openvino_genai

        self._genai = openvino_genai
        config = self._config
        scheduler = openvino_genai.SchedulerConfig()
        blocks_each = -(-config.context_tokens // _BLOCK_TOKENS) + 1
        scheduler.num_kv_blocks = config.slots * blocks_each
        scheduler.max_num_seqs = config.slots
        scheduler.max_num_batched_tokens = config.batch_tokens
        scheduler.enable_prefix_caching = True
        threads = config.threads or len(os.sched_getaffinity(0))
        pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(config.model), scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
        )
        self._tokenizer = pipeline.get_tokenizer()
        reasons = openvino_genai.GenerationFinishReason
        return StepLoop(pipeline, {reasons.STOP: "stop", reasons.LENGTH: "length"})

    def refuse(self, request: ChatRequest) -> None:
        told = (request.top_logprobs or 0) > 1, "top_logprobs", "it knows the log-probability of the chosen token only"
        refuse_each(self.card.id, [told, *refused_by_all(request)])

    def tokens(self, request: ChatRequest) -> tuple[Any, int]:
        prompt = request.prompt
        if prompt is None:
            messages = [{"role": message.role, "content": message.text()} for message in request.messages]
            try:
                prompt = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True)
            except RuntimeError as error:
                raise RequestError(f"The chat template of '{self.card.id}' does not take these messages.") from error
        encoded = self._tokenizer.encode(prompt + (request.continue_from or ""), add_special_tokens=False).input_ids
        return encoded, int(encoded.shape[1])

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""

    def settings(self, request: ChatRequest, limit: int) -> Any:
        found = self._genai.GenerationConfig()
        found.max_new_tokens = limit
        temperature = 1.0 if request.temperature is None else request.temperature
        found.do_sample = temperature > 0
        if found.do_sample:
            found.temperature = temperature
            found.top_p = 1.0 if request.top_p is None else request.top_p
        found.rng_seed = (request.seed or 0) & 0x7FFFFFFF if request.seed is not None else time.time_ns() & 0x7FFFFFFF
        found.presence_penalty = request.presence_penalty or 0.0
        found.frequency_penalty = request.frequency_penalty or 0.0
        if request.logprobs:
            found.logprobs = 1
        schema = wanted_schema(request)
        if schema is not None:
            text = json.dumps(closed(schema))
            found.structured_output_config = self._genai.StructuredOutputConfig(json_schema=text)
        return found

    async def aclose(self) -> None:
        """End the step thread and free the model. Answers under way end with :class:`EngineDied`."""
        await super().aclose()
        self._tokenizer = None
