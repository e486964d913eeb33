"""llama.cpp in this process as an engine: text, tools, JSON, images and adapters from one GGUF file.

Transport: llama.cpp's own HTTP server on a Unix socket, not the wheel's callback in a thread. Measured on SmolLM2-135M,
both cost the same per token (21.5 ms against 21.5 ms on busy cores) and both stop within one token; the callback needs
a thread per stream and cannot be left before its next event. llama.cpp notices a closed connection only when it writes,
so every request asks for progress events: a prompt that is being read stops within one batch (``batch_tokens``).

Limits: one answer per request; an engine is used from the event loop that started it. The rule kept here: a stream ends
with a finish reason and llama.cpp's own end mark, or with an error.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import aiohttp
import msgspec

from codriver.core import wire
from codriver.core.cadence import Cadence
from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.core.deadline import Deadline
from codriver.core.engine import Capability, EngineCard, Health, Price, TextOnly
from codriver.core.errors import BadConfigValue, EngineDied, EngineUnavailable, MissingFile
from codriver.core.gguf import read_header
from codriver.core.messages import ChatChunk, ChatRequest, Delta, Message, Tool

from .llama_cpp_calls import BareCallReader
from .llama_cpp_config import LlamaCppConfig
from .llama_cpp_keep import Keeper
from .llama_cpp_openings import Opening, Openings
from .llama_cpp_prefix import PrefixFolder, PrefixState, prefix_key, warm
from .llama_cpp_request import Dialect, Prepared, prepare, refusal
from .llama_cpp_server import LlamaServer, wheel_version
from .llama_cpp_slots import Slots, adapters_of, history_of
from .llama_cpp_state import shared_tokens
from .llama_cpp_tools import CallReader, wire_free
from .openai_formats import decode_text
from .openai_link import Expiry

_CAPABILITIES: frozenset[Capability] = frozenset(
    {"chat", "completions", "tools", "json_schema", "json_resume", "logprobs", "prefill"}
)
_LONG_STEPS = 2
_PROGRESS = b'"prompt_progress":'


class LlamaCpp(TextOnly):
    """Made cold: :meth:`load` (or :meth:`start`) loads the model, and :meth:`health` says ``loading`` meanwhile."""

    def __init__(self, config: LlamaCppConfig, clock: Clock = SYSTEM_CLOCK) -> None:
        header = read_header(config.model)
        for path in [path for _, path in config.adapters()] + ([config.mmproj] if config.mmproj else []):
            read_header(path)
        if config.batch_tokens > config.context_tokens:
            raise BadConfigValue("'batch_tokens' is larger than 'context_tokens'.", param="batch_tokens")
        adapters = tuple(name for name, _ in config.adapters())
        self.card = EngineCard(
            id=config.id,
            locality=config.locality,
            model=config.model.stem,
            modalities=frozenset({"text", "image"} if config.mmproj else {"text"}),
            capabilities=_CAPABILITIES | (frozenset({"lora"}) if adapters else frozenset()),
            context_tokens=config.context_tokens,
            price=Price(config.input_usd, config.output_usd),
        )
        template = header.chat_template
        self._dialect = Dialect(config.id, "tools" in template, "think" in template, adapters)
        self._config = config
        self._clock = clock
        self._server: LlamaServer | None = None
        self._state: Literal["ready", "loading", "down"] = "loading"
        self._reason = ""
        self._slots = Slots(config.slots)
        self._openings = Openings(config.openings, config.slots * config.context_tokens)
        self._keeper = Keeper(
            self._openings,
            self._slots,
            encode=lambda request: prepare(request, self._dialect).body,
            waits=lambda: self._queue >= config.slots,  # the one more slot is the keeper's
            learns=config.openings > 0,
        )
        self._prefix = _declared(config)
        self._queue = 0
        self._mean_s = 0.0
        self.prefix = PrefixState()
        self.cadence = Cadence()  # of learning openings: each takes a slot's time

    @classmethod
    async def start(cls, config: LlamaCppConfig, clock: Clock = SYSTEM_CLOCK) -> LlamaCpp:
        """A ready engine. Errors: :class:`MissingFile`, :class:`BadModelFile`, :class:`EngineUnavailable`,
        :class:`BadConfigValue`.
        """
        engine = cls(config, clock)
        await engine.load()
        return engine

    async def load(self) -> None:
        """Load the model and put the declared prefix into every slot. Errors: :class:`EngineUnavailable`."""
        config = self._config
        folder = self._prefix_folder()
        server = self._server = LlamaServer(config)
        try:
            await server.start()
            props = await server.call("GET", "/props")
            native = bool(props.get("chat_template_caps", {}).get("supports_tools"))
            self._dialect = replace(self._dialect, native_tools=native)
            if config.prefix:
                self.prefix = await self._warm(server, folder)
                self._pin(server)
        except BaseException as error:
            # Cancelled or failed: nothing may stay behind either way.
            self._state, self._reason = "down", str(error) or "loading was cancelled"
            await server.aclose()
            raise
        if self._state == "loading":
            self._state = "ready"

    def _prefix_folder(self) -> PrefixFolder | None:
        if self._config.prefix_dir is None:
            return None
        try:
            return PrefixFolder(self._config.prefix_dir.expanduser().resolve(), self._config.prefix_files)
        except OSError as error:
            raise MissingFile(f"The folder {self._config.prefix_dir} cannot be made: {error.strerror}.") from error

    async def _warm(self, server: LlamaServer, folder: PrefixFolder | None) -> PrefixState:
        config = self._config
        tokens = await shared_tokens(server, (self._prefix_body("a"), self._prefix_body("b")))
        if len(tokens) >= config.context_tokens:
            raise BadConfigValue(
                f"The declared prefix has {len(tokens)} tokens, the context {config.context_tokens}.",
                param="prefix",
            )
        settings = [wheel_version(), config.context_tokens, config.slots, config.kv_type, str(config.mmproj or "")]
        kept = (folder, prefix_key(config.model, settings, tokens)) if folder else None
        return await warm(server, tokens, config.slots, kept)

    def _pin(self, server: LlamaServer) -> None:
        """The declared prefix is an opening that stays."""
        messages, tools = self._prefix
        history = history_of(ChatRequest(messages=messages, tools=tools))
        self._slots.mark(self.prefix.slots, history)
        if self.prefix.state is not None:
            opening = Opening(history[-1], len(history), self.prefix.state, pinned=True)
            self._openings.add(opening, server.slot_folder)

    def _prefix_body(self, word: str) -> dict[str, Any]:
        messages, tools = self._prefix
        request = ChatRequest(messages=[*messages, Message(role="user", content=word)], tools=tools or None)
        body: dict[str, Any] = msgspec.json.decode(prepare(request, self._dialect).body)
        return body

    async def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]:
        self.card.refuse_unfit(request)
        prepared = prepare(request, self._dialect)
        self._refuse_unready()
        self._queue += 1
        expiry = Expiry(deadline)
        try:
            await expiry.wait(self._slots.permits.acquire)
            try:
                begun_s = self._clock.monotonic_s()
                chunks = self._on_slot(request, prepared, expiry)
                try:
                    async for chunk in chunks:
                        yield chunk
                finally:
                    await chunks.aclose()
                self._learn(self._clock.monotonic_s() - begun_s)
            finally:
                self._slots.permits.release()
        finally:
            expiry.end()
            self._queue -= 1

    async def _on_slot(
        self, request: ChatRequest, prepared: Prepared, expiry: Expiry
    ) -> AsyncGenerator[ChatChunk, None]:
        server, plan = self._ready_server(), self._keeper.plan(request, history_of(request))
        adapters = adapters_of(request)
        slot = self._slots.take(plan.history, adapters, plan.saved, self._is_long(request, plan.saved))
        readers = _readers(prepared)
        try:
            reuse = slot.adapters == adapters
            if plan.opening and reuse and slot.in_place < plan.saved:
                await expiry.wait(partial(self._keeper.put, server, slot, plan.opening))
            # No more is sure to be there until the prompt has been read; nor, before, by which adapters it is.
            slot.history = plan.history[: slot.in_place]
            slot.adapters = adapters if reuse else None
            chunks = self._stream(
                prepared.path, prepared.on_slot(slot.id, reuse), expiry, "image" in request.modalities()
            )
            try:
                async for chunk in chunks:
                    slot.history, slot.adapters = plan.history, adapters
                    for part in readers(chunk):
                        yield part
            finally:
                await chunks.aclose()
        finally:
            self._slots.give(slot)
        if plan.learn and self.cadence.due():
            self._keeper.offer(server, slot, request, plan)

    def _is_long(self, request: ChatRequest, saved: int) -> bool:
        """Whether what is not saved of a prompt takes several steps to read, at about four characters a token."""
        texts = [request.prompt] if request.prompt is not None else [m.text() for m in request.messages[saved:]]
        return sum(map(len, texts)) > _LONG_STEPS * 4 * self._config.batch_tokens

    async def _stream(self, path: str, body: bytes, expiry: Expiry, has_image: bool) -> AsyncGenerator[ChatChunk, None]:
        server = self._ready_server()
        response: aiohttp.ClientResponse | None = None
        parser, ends = wire.SseParser(), _Ends(path == "/v1/completions")
        try:
            response = await server.post(path, body, expiry)
            if response.status != 200:
                raise refusal(self.card.id, await response.read(), has_image=has_image)
            while data := await expiry.wait(response.content.readany):
                for payload in parser.feed(data):
                    if payload.startswith(b'{"error"'):
                        raise refusal(self.card.id, payload, has_image=has_image)
                    for chunk in ends.chunks(payload):
                        yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise self._died() from error
        finally:
            if response is not None:
                server.leave(response)
        if not ends.reached:
            raise self._died()

    def _ready_server(self) -> LlamaServer:
        self._refuse_unready()
        assert self._server is not None
        return self._server

    def _refuse_unready(self) -> None:
        if self._state == "loading":
            raise EngineUnavailable(
                f"The engine '{self.card.id}' is still loading.", engine=self.card.id, retry_after_s=1
            )
        if self._state == "down":
            raise EngineUnavailable(f"The engine '{self.card.id}' is down: {self._reason}.", engine=self.card.id)

    def _died(self) -> EngineDied:
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
        """Stop, and free threads, socket and folder. Streams under way end with :class:`EngineDied`."""
        self._state, self._reason = "down", "it was closed"
        await self._keeper.aclose()
        server, self._server = self._server, None
        if server is not None:
            await server.aclose()


def _readers(prepared: Prepared) -> Callable[[ChatChunk], Iterable[ChatChunk]]:
    """What takes an answer's tool calls out of its text; the marked ones first."""
    marked = CallReader().feed if prepared.reads_calls else None
    bare = BareCallReader(prepared.bare_calls).feed if prepared.bare_calls else None
    if marked and bare:
        return lambda chunk: itertools.chain.from_iterable(map(bare, marked(chunk)))
    return marked or bare or (lambda chunk: (chunk,))


def _declared(config: LlamaCppConfig) -> tuple[list[Message], list[Tool]]:
    try:
        return msgspec.convert(list(config.prefix), list[Message]), msgspec.convert(
            list(config.prefix_tools), list[Tool]
        )
    except msgspec.ValidationError as error:
        raise BadConfigValue(f"The declared prefix is not valid: {error}.", param="prefix") from error


class _Ends:
    """Decodes a stream's events and sees whether it ended by finish reason and end mark."""

    def __init__(self, is_text: bool) -> None:
        self._is_text = is_text
        self._begun = self._finished = self._done = False

    @property
    def reached(self) -> bool:
        return self._finished and self._done

    def chunks(self, payload: bytes) -> tuple[ChatChunk, ...]:
        if payload == b"[DONE]":
            self._done = True
            return ()
        if _PROGRESS in payload:
            return ()
        chunk = decode_text(payload) if self._is_text else wire.decode_chunk(payload)
        self._finished = self._finished or chunk.finish_reason is not None
        if self._begun or self._is_text:
            return (chunk,)
        self._begun = True
        # llama.cpp gave the role with the first progress event.
        return (wire_free(chunk, Delta(role="assistant", content=""), None), chunk)
