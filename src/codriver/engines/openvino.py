"""OpenVINO GenAI as an engine: the same GGUF file, read much faster on x86 processors than llama.cpp reads it.

Extra ``openvino``. Answers are batched continuously; one thread steps them all, so leaving an answer stops it at the
next step. Limits: the architectures and GGUF formats that OpenVINO converts (:func:`why_not` names the rest); no
tools, no images, no adapters; log-probabilities of the chosen tokens only; loading takes seconds, half a minute for
K-quants. The rule kept here: what would break a step for all is refused before it is submitted.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.core.config import setting
from codriver.core.deadline import Deadline
from codriver.core.engine import EngineCard, Health, Price, TextOnly
from codriver.core.errors import (
    BadConfigValue,
    EngineDied,
    EngineUnavailable,
    PromptTooLong,
    RequestError,
    UnsupportedParameter,
)
from codriver.core.gguf import read_header
from codriver.core.messages import (
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Delta,
    Logprobs,
    TokenLogprob,
    TopLogprob,
    Usage,
)

from .json_subset import WORDS, closed, fits
from .openai_link import Expiry
from .openvino_loop import Job, Step, StepLoop
from .openvino_text import TextStream

# Tried with OpenVINO GenAI 2026.4 (Q4_K and Q6_K on a Q4_K_M file); its converter names no other.
_READABLE = ("F32", "F16", "Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q8_0")
_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_BLOCK_TOKENS = 32  # of a KV block on a CPU


@dataclass(frozen=True)
class OpenVinoConfig:
    """One model in this process."""

    id: str = setting("vehicle", "The engine's name.")
    model: Path = setting(Path("model.gguf"), "The GGUF file.")
    locality: Literal["vehicle", "cloud"] = setting("vehicle", "Where the engine runs.")
    context_tokens: int = setting(2048, "Context of one conversation, in tokens.", least=64)
    slots: int = setting(4, "Conversations that are answered at once.", least=1, most=64)
    threads: int = setting(0, "Threads that compute; 0 means every core this process may use.", least=0)
    batch_tokens: int = setting(
        256, "Prompt tokens per step; a prompt that is being read can be cancelled between steps.", least=32, most=4096
    )
    input_usd: float = setting(0.0, "US dollars per million input tokens, for the budget.", least=0)
    output_usd: float = setting(0.0, "US dollars per million output tokens, for the budget.", least=0)


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


class OpenVino(TextOnly):
    """Made cold: :meth:`load` (or :meth:`start`) loads the model, and :meth:`health` says ``loading`` meanwhile."""

    def __init__(self, config: OpenVinoConfig, clock: Clock = SYSTEM_CLOCK) -> None:
        reason = why_not(config.model)
        if reason:
            raise EngineUnavailable(f"{reason}.", engine=config.id)
        if config.batch_tokens > config.context_tokens:
            raise BadConfigValue("'batch_tokens' is larger than 'context_tokens'.", param="batch_tokens")
        self.card = EngineCard(
            id=config.id,
            locality=config.locality,
            model=config.model.stem,
            capabilities=frozenset({"chat", "completions", "json_schema", "logprobs", "prefill"}),
            context_tokens=config.context_tokens,
            price=Price(config.input_usd, config.output_usd),
        )
        self._config = config
        self._clock = clock
        self._state: Literal["ready", "loading", "down"] = "loading"
        self._reason = ""
        self._genai: Any = None
        self._tokenizer: Any = None
        self._steps: StepLoop | None = None
        self._permits = asyncio.Semaphore(config.slots)
        self._queue = 0
        self._mean_s = 0.0

    @classmethod
    async def start(cls, config: OpenVinoConfig, clock: Clock = SYSTEM_CLOCK) -> OpenVino:
        """A ready engine. Errors: :class:`MissingFile`, :class:`BadModelFile`, :class:`EngineUnavailable`,
        :class:`BadConfigValue`.
        """
        engine = cls(config, clock)
        await engine.load()
        return engine

    async def load(self) -> None:
        """Errors: :class:`EngineUnavailable`."""
        try:
            pipeline = await asyncio.to_thread(self._load)
        except RuntimeError as error:
            self._state, self._reason = "down", "OpenVINO could not load the model"
            said = str(error).strip().splitlines()[-1][-200:]
            raise EngineUnavailable(
                f"OpenVINO could not load {self._config.model.name}: {said}", engine=self.card.id
            ) from error
        if self._state == "down":
            return
        reasons = self._genai.GenerationFinishReason
        self._steps = StepLoop(pipeline, {reasons.STOP: "stop", reasons.LENGTH: "length"})
        self._steps.on_failure = self._failed
        self._steps.start()
        self._state = "ready"

    def _load(self) -> Any:
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
        return pipeline

    def _failed(self, reason: str) -> None:
        """Called from the step thread. A pipeline that failed once fails at every step after it."""
        self._state, self._reason = "down", f"OpenVINO failed: {reason}"

    async def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]:
        self.card.refuse_unfit(request)
        refuse_unable(request, self.card.id)
        steps = self._ready_steps()
        self._queue += 1
        expiry = Expiry(deadline)
        job: Job | None = None
        try:
            await expiry.wait(self._permits.acquire)
            try:
                begun_s = self._clock.monotonic_s()
                self._ready_steps()
                ids, count = await asyncio.to_thread(self._tokens, request)
                limit = self._limit(request, count)
                job = Job(ids, self._settings(request, limit), asyncio.get_running_loop())
                steps.submit(job)
                writer = _Writer(self._decode, request, count)
                yield writer.begin(self.card.id)
                while not writer.finished:
                    event = await expiry.wait(job.events.get)
                    if isinstance(event, Exception):
                        raise self._error(event) from event
                    for chunk in writer.chunks(event):
                        yield chunk
                yield writer.usage()
                self._learn(self._clock.monotonic_s() - begun_s)
            finally:
                if job is not None:
                    job.left = True  # a job that finished is not in the loop any more, and this changes nothing
                self._permits.release()
        finally:
            expiry.end()
            self._queue -= 1

    def _tokens(self, request: ChatRequest) -> tuple[Any, int]:
        prompt = request.prompt
        if prompt is None:
            messages = [{"role": message.role, "content": message.text()} for message in request.messages]
            try:
                prompt = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True)
            except RuntimeError as error:
                raise RequestError(f"The chat template of '{self.card.id}' does not take these messages.") from error
        encoded = self._tokenizer.encode(prompt + (request.continue_from or ""), add_special_tokens=False).input_ids
        return encoded, int(encoded.shape[1])

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""

    def _limit(self, request: ChatRequest, prompt_tokens: int) -> int:
        room = self._config.context_tokens - prompt_tokens
        if room < 1:
            raise PromptTooLong(
                f"The prompt has {prompt_tokens} tokens; '{self.card.id}' has a context of "
                f"{self._config.context_tokens} tokens.",
                param="messages",
            )
        return room if request.limit_tokens is None else max(1, min(room, request.limit_tokens))

    def _settings(self, request: ChatRequest, limit: int) -> Any:
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

    def _ready_steps(self) -> StepLoop:
        if self._state == "loading":
            raise EngineUnavailable(
                f"The engine '{self.card.id}' is still loading.", engine=self.card.id, retry_after_s=1.0
            )
        if self._state == "down" or self._steps is None:
            raise EngineUnavailable(f"The engine '{self.card.id}' is down: {self._reason}.", engine=self.card.id)
        return self._steps

    def _error(self, event: Exception) -> Exception:
        if isinstance(event, (ValueError, TypeError)):
            return RequestError(f"The engine '{self.card.id}' refused the request's settings.")
        return EngineDied(f"The engine '{self.card.id}' stopped before its answer was complete.", engine=self.card.id)

    def _learn(self, took_s: float) -> None:
        self._mean_s = took_s if self._mean_s == 0.0 else 0.8 * self._mean_s + 0.2 * took_s

    def health(self) -> Health:
        """``queue`` counts requests in work and waiting; ``eta_s`` is from the mean time of recent answers."""
        if self._state == "down":
            return Health("down", self._queue, reason=self._reason)
        waiting = self._queue - self._config.slots + 1
        if self._state == "ready" and waiting > 0:
            return Health("busy", self._queue, self._mean_s * waiting / self._config.slots)
        return Health(self._state, self._queue)

    async def aclose(self) -> None:
        """End the step thread and free the model. Answers under way end with :class:`EngineDied`."""
        self._state, self._reason = "down", "it was closed"
        steps, self._steps = self._steps, None
        if steps is not None:
            await asyncio.to_thread(steps.close)
        self._tokenizer = None


def wanted_schema(request: ChatRequest) -> dict[str, Any] | None:
    form = request.response_format
    if form is None or form.type == "text":
        return None
    return form.json_schema.schema if form.json_schema and form.json_schema.schema else {"type": "object"}


def refuse_unable(request: ChatRequest, engine: str) -> None:
    """Refuse by name what OpenVINO would ignore, or fail on in the middle of a step."""
    schema = wanted_schema(request)
    refused = [
        ((request.n or 1) > 1, "n", "it gives one answer per request"),
        (bool(request.logit_bias), "logit_bias", "it cannot weigh single tokens"),
        ((request.top_logprobs or 0) > 1, "top_logprobs", "it knows the log-probability of the chosen token only"),
        (bool(request.codriver and request.codriver.lora), "codriver.lora", "it has no adapters"),
        (
            schema is not None and not fits(schema),
            "response_format",
            f"its schemas may use: {', '.join(sorted(WORDS))}",
        ),
        (
            schema is not None and bool(request.continue_from),
            "response_format",
            "it cannot go on inside a JSON answer",
        ),
    ]
    for is_asked, param, reason in refused:
        if is_asked:
            raise UnsupportedParameter(f"The model '{engine}' does not support this '{param}': {reason}.", param=param)


class _Writer:
    """One answer's chunks."""

    def __init__(self, decode: Any, request: ChatRequest, prompt_tokens: int) -> None:
        stop = request.stop
        self._text = TextStream(decode, [stop] if isinstance(stop, str) else stop or [])
        self._decode = decode
        self._wants_logprobs = bool(request.logprobs)
        self._shows_top = bool(request.top_logprobs)
        self._prompt_tokens = prompt_tokens
        self._tokens = 0
        self._waiting: list[TokenLogprob] = []
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = ""
        self.finished = False

    def begin(self, model: str) -> ChatChunk:
        self._model = model
        return self._chunk(ChunkChoice(delta=Delta(role="assistant", content="")))

    def chunks(self, step: Step) -> list[ChatChunk]:
        self._tokens += len(step.ids)
        if self._wants_logprobs:
            self._waiting.extend(map(self._logprob, step.ids, step.logprobs))
        text = self._text.push(step.ids)
        if step.finish and not self._text.stopped:
            text += self._text.flush()
        finish = "stop" if self._text.stopped else step.finish
        found = []
        if text:
            logprobs = Logprobs(content=self._waiting) if self._waiting else None
            self._waiting = []
            found.append(self._chunk(ChunkChoice(delta=Delta(content=text), logprobs=logprobs)))
        if finish:
            self.finished = True
            logprobs = Logprobs(content=self._waiting) if self._waiting else None
            found.append(self._chunk(ChunkChoice(logprobs=logprobs, finish_reason=finish)))
        return found

    def _logprob(self, token: int, logprob: float) -> TokenLogprob:
        text = self._decode([token])
        raw = list(text.encode())
        top = [TopLogprob(text, logprob, raw)] if self._shows_top else []
        return TokenLogprob(text, min(0.0, logprob), raw, top)

    def usage(self) -> ChatChunk:
        chunk = self._chunk(None)
        chunk.usage = Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._tokens,
            total_tokens=self._prompt_tokens + self._tokens,
        )
        return chunk

    def _chunk(self, choice: ChunkChoice | None) -> ChatChunk:
        choices = [choice] if choice is not None else []
        return ChatChunk(id=self._id, created=self._created, model=self._model, choices=choices)
