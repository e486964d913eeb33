"""Any OpenAI-compatible server as an engine: vLLM, SGLang, TensorRT-LLM, llama.cpp, a hosted API, another Codriver.

Bytes pass through: a request goes out as it came in where nothing must differ, an answer's chunks keep the bytes they
arrived as. Codriver's own options never reach a foreign server. The rule kept here: a stream that was cut never ends as
if it were complete.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args
from urllib.parse import urlsplit

import msgspec

from codriver.core import wire
from codriver.core.clock import SYSTEM_CLOCK, Clock
from codriver.core.config import setting
from codriver.core.deadline import Deadline
from codriver.core.engine import Capability, EngineCard, Health, LinkObserver, NoLink, Price
from codriver.core.errors import (
    BadConfigValue,
    CodriverError,
    DeadlineExceeded,
    EngineBusy,
    EngineDied,
    EngineError,
    EngineUnavailable,
    MissingFile,
    UnsupportedModality,
    UnsupportedParameter,
    UpstreamError,
    UpstreamMalformed,
    UpstreamRejected,
)
from codriver.core.messages import ChatChunk, ChatRequest, Embeddings, EmbedRequest, TensorRequest, Tensors
from codriver.observe.spans import outgoing_headers

from . import openai_errors, openai_formats, openai_verify
from .http_pool import Place
from .openai_link import Exchange, Link
from .openai_verify import Verdict

log = logging.getLogger("codriver.engines")
BODY_LIMIT_BYTES = 64 << 20
DOWN_S = 5.0
# So many refusals in a row tell of a server, and not of a moment.
_SURE_AFTER = 3
# What hosted APIs add to each event against eavesdroppers that count bytes; short ones may be alike by chance.
_ONCE = re.compile(rb'"obfuscation"\s*:\s*"[^"\\]{6,}"')
# A compressed stream waits for the compressor: events must come as they are made.
_FOR_STREAM = b"Accept: text/event-stream\r\nAccept-Encoding: identity\r\n"
_FOR_WHOLE = b"Accept: application/json\r\nAccept-Encoding: gzip\r\n"


@dataclass(frozen=True)
class OpenAIConfig:
    """One remote server. The key itself is never part of the configuration."""

    id: str = setting("cloud", "The engine's name.")
    url: str = setting("", "The server's address, as an OpenAI client's base_url; without a path, '/v1'.")
    unix_socket: Path | None = setting(None, "A Unix socket to connect to instead of the address's host and port.")
    model: str = setting("", "What the server calls the model; empty sends the name the client asked for.")
    api_key_env: str = setting("", "Name of the environment variable that holds the API key.")
    api_key_file: Path | None = setting(None, "File that holds the API key.")
    locality: Literal["vehicle", "cloud"] = setting("cloud", "Where the server is.")
    capabilities: tuple[str, ...] = setting(
        ("chat", "completions", "tools", "json_schema", "logprobs"), "What the server's model can do."
    )
    modalities: tuple[str, ...] = setting(("text",), "What the server's model can read: text, image, audio.")
    prefill: Literal["none", "peer", "llama_cpp", "vllm"] = setting(
        "none",
        "How the server is asked to go on from a partial answer, or none where it cannot; peer: as a Codriver, while "
        "it seems to be one.",
    )
    verify: Literal["none", "vllm"] = setting(
        "none", "How the server is asked to score a draft (vllm: prompt_logprobs), or none; needs prefill."
    )
    verify_least: float = setting(
        0.3, "Probability at which a draft's token stands although the server has a likelier one.", least=0, most=1
    )
    context_tokens: int = setting(0, "The model's context length; 0 leaves the check to the server.", least=0)
    input_usd: float = setting(0.0, "US dollars per million input tokens.", least=0)
    output_usd: float = setting(0.0, "US dollars per million output tokens.", least=0)
    connect_timeout_s: float = setting(3.0, "Longest wait for a connection, TLS included, in seconds.", least=0.01)
    health_path: str = setting("/health", "Path that the link's probe asks for; any HTTP answer proves the link.")
    peer: bool = setting(False, "The server is another Codriver: it is told the deadline.")


class OpenAIServer:
    """``observer`` is told what the engine sees of the link; ``tls`` replaces the default verification (mutual TLS)."""

    def __init__(
        self,
        config: OpenAIConfig,
        observer: LinkObserver | None = None,
        tls: ssl.SSLContext | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.card = _card(config)
        if not _plain(config.health_path):
            raise BadConfigValue(
                f"'health_path' is {config.health_path!r}; allowed: a path such as /health.", param="health_path"
            )
        self._config = config
        self._clock = clock
        origin, self._base = _split_url(config.url)
        place = Place(origin, config.unix_socket, tls, config.connect_timeout_s)
        headers = {"Content-Type": "application/json"}
        key = _api_key(config)
        if not _plain(key):
            raise BadConfigValue(
                f"The API key of '{config.id}' holds a space or a sign that is not ASCII.", param="api_key"
            )
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._link = Link(config.id, place, headers, observer or NoLink())
        # A link of its own, so that a probe neither waits for nor disturbs the answers; nobody watches it.
        self._probe_link = Link(config.id, place, headers, NoLink())
        self._in_flight = 0
        self._refused_probes = self._unscored = 0
        self._closed = False
        self._trouble = ""
        self._down_until_s = self._busy_until_s = 0.0

    async def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]:
        self._refuse_closed()
        self.card.refuse_unfit(request)
        found: Verdict | None = None
        if request.draft and request.stream and self.card.can("verify"):
            found = await self._verify(request, deadline)
        if found is not None:
            for chunk in found.chunks():
                yield chunk
            if found.whole:
                return
            request = found.rest(request)
        path, body = self._chat_path_and_body(request)
        headers = self._headers(deadline, request.stream)
        self._in_flight += 1
        try:
            async with self._link.exchange("POST", path, body, deadline, headers) as got:
                if request.stream:
                    await self._check_type(got, "text/event-stream")
                    decode = wire.decode_chunk if request.prompt is None else openai_formats.decode_text
                    ends = _Ends(self.card.id, request.n or 1)
                    parser = wire.SseParser()
                    # One loop in this generator, not one in another: closing it must close the connection at once.
                    while not ends.done and (piece := await ends.read(got)):
                        for payload in parser.feed(piece):
                            if payload == b"[DONE]":
                                ends.done = True
                                break
                            if ends.repeats(payload):
                                continue
                            chunk = decode(payload)
                            ends.see(chunk, payload)
                            yield chunk if found is None else found.billed(chunk)
                    ends.check(parser.pending)
                else:
                    await self._check_type(got, "application/json")
                    yield self._decode_whole(await got.whole(BODY_LIMIT_BYTES), request)
            self._trouble = ""
        except EngineError as error:
            self._note(error)
            raise
        finally:
            self._in_flight -= 1

    async def embed(self, request: EmbedRequest, deadline: Deadline) -> Embeddings:
        self._refuse_closed()
        if not self.card.can("embeddings"):
            raise UnsupportedModality(f"The model '{self.card.id}' does not make embeddings.", param="model")
        model = self.card.model or request.model
        body = wire.encode(openai_formats.embed_body(request, model))
        answer = await self._ask("POST", "/embeddings", body, deadline)
        return openai_formats.decode_embeddings(answer, len(request.texts()), model)

    async def infer(self, request: TensorRequest, deadline: Deadline) -> Tensors:
        raise UnsupportedModality(f"The model '{self.card.id}' does not run tensor graphs.", param="model")

    def health(self) -> Health:
        """From what this engine saw last. ``down`` lasts until an answer or a probe succeeds, at most ``DOWN_S``.

        After that somebody has to try, or a server that nobody probes would stay down for good.
        """
        if self._closed:
            return Health("down", reason="closed")
        now_s = self._clock.monotonic_s()
        if self._trouble and now_s < self._down_until_s:
            return Health("down", queue=self._in_flight, reason=self._trouble)
        wait_s = self._busy_until_s - now_s
        if wait_s > 0:
            return Health("busy", queue=self._in_flight, eta_s=wait_s, reason="the server asked to wait")
        return Health("ready", queue=self._in_flight)

    async def probe(self, deadline: Deadline) -> float:
        """Seconds from sending a small request to its answer's head, on a connection of its own.

        Any HTTP answer counts: it proves the link. Errors: :class:`EngineUnavailable`, :class:`EngineDied`,
        :class:`DeadlineExceeded`.
        """
        self._refuse_closed()
        began_s = self._clock.monotonic_s()
        try:
            async with self._probe_link.exchange("GET", self._config.health_path, None, deadline):
                taken_s = self._clock.monotonic_s() - began_s
            self._seems_a_peer(True)
        except (UpstreamRejected, UpstreamError, EngineBusy) as error:
            taken_s = self._clock.monotonic_s() - began_s
            self._seems_a_peer(not isinstance(error, UpstreamRejected))
        self._trouble = ""
        return taken_s

    def _seems_a_peer(self, answers: bool) -> None:
        """A server that keeps refusing a Codriver's own page is asked in words to go on with an answer, until it gives
        the page: another server would begin the answer again, and the text would be spliced.
        """
        if self._config.prefill != "peer":
            return
        self._refused_probes = 0 if answers else self._refused_probes + 1
        can = self.card.can("prefill")
        if can and self._refused_probes >= _SURE_AFTER:
            self.card = replace(self.card, capabilities=self.card.capabilities - {"prefill"})
            log.warning(
                "the cloud refuses %s and seems to be no Codriver: it is asked in words to go on with a partial "
                "answer. Set cloud.prefill to what the server can, or to none.",
                self._config.health_path,
                extra={"engine": self.card.id},
            )
        elif answers and not can:
            self.card = replace(self.card, capabilities=self.card.capabilities | {"prefill"})

    async def discover(self, deadline: Deadline) -> EngineCard:
        """Complete the card from ``/v1/models``: the model's name where none is configured, and its context length.

        Errors: :class:`UpstreamRejected` when the server does not have the configured model, and those of any request.
        """
        listing = await self._ask("GET", "/models", None, deadline)
        try:
            models = msgspec.json.decode(listing, type=_Models).data
        except msgspec.DecodeError as error:
            raise UpstreamMalformed(f"The answer of '{self.card.id}' is not a list of models: {error}.") from error
        wanted = self.card.model
        found = next((model for model in models if not wanted or model.id == wanted), None)
        if found is None:
            names = ", ".join(model.id for model in models) or "none"
            raise UpstreamRejected(
                f"The server of '{self.card.id}' has no model '{wanted}'; it has: {names}.", engine=self.card.id
            )
        context = self._config.context_tokens or found.max_model_len or int(found.meta.get("n_ctx", 0))
        self.card = replace(self.card, model=found.id, context_tokens=context)
        return self.card

    async def aclose(self) -> None:
        self._closed = True
        await self._link.aclose()
        await self._probe_link.aclose()

    async def _ask(self, method: str, path: str, body: bytes | None, deadline: Deadline) -> bytes:
        """One request with a JSON answer of moderate size."""
        self._refuse_closed()
        headers = self._headers(deadline, stream=False)
        self._in_flight += 1
        try:
            async with self._link.exchange(method, self._base + path, body, deadline, headers) as got:
                await self._check_type(got, "application/json")
                answer = await got.whole(BODY_LIMIT_BYTES)
            self._trouble = ""
        except EngineError as error:
            self._note(error)
            raise
        finally:
            self._in_flight -= 1
        if b'"error"' in answer[:64]:
            raise openai_errors.error_event(openai_errors.error_in(answer) or {}, self.card.id)
        return answer

    async def _verify(self, request: ChatRequest, deadline: Deadline) -> Verdict | None:
        """What the server makes of the draft; None where it cannot score one, and then writes as without."""
        draft = (request.draft or "").strip()
        begun = msgspec.structs.replace(request, continue_from=(request.continue_from or "") + draft)
        changes = {"model": self.card.model or request.model, **openai_verify.SCORING, **self._prefill(begun)}
        body = wire.upstream_body(request, changes)
        try:
            answer = await self._ask("POST", "/chat/completions", body, deadline)
            found = openai_verify.verdict(answer, draft, self._config.verify_least)
        except (UpstreamMalformed, UpstreamRejected):
            self._unscored += 1
            if self._unscored == _SURE_AFTER:  # it would read every draft for nothing
                self.card = replace(self.card, capabilities=self.card.capabilities - {"verify"})
                log.warning("the server scores no drafts and is not asked to any more", extra={"engine": self.card.id})
            return None
        self._unscored = 0
        return found

    def _chat_path_and_body(self, request: ChatRequest) -> tuple[str, bytes]:
        changes: dict[str, Any] = {}
        if self.card.model and self.card.model != request.model:
            changes["model"] = self.card.model
        if request.prompt is not None:
            changes.update(openai_formats.text_changes(request))
            dropped = openai_formats.CHAT_ONLY if request.logprobs else (*openai_formats.CHAT_ONLY, "logprobs")
            return self._base + "/completions", wire.upstream_body(request, changes, dropped)
        if request.continue_from:
            changes.update(self._prefill(request))
        return self._base + "/chat/completions", wire.upstream_body(request, changes)

    def _prefill(self, request: ChatRequest) -> dict[str, Any]:
        """The members that make a server go on from the partial answer, in its own dialect."""
        style = self._config.prefill
        if style == "none":
            raise UnsupportedParameter(f"The model '{self.card.id}' cannot go on from a partial answer.")
        messages: list[Any] = list(request.messages)
        if request.raw is not None:
            # The messages' own bytes, so that members unknown here survive.
            messages = list(msgspec.json.decode(request.raw, type=_RawMessages).messages)
        messages.append({"role": "assistant", "content": request.continue_from})
        if style == "vllm":
            return {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
        return {"messages": messages}

    def _headers(self, deadline: Deadline, stream: bool) -> bytes:
        lines = _FOR_STREAM if stream else _FOR_WHOLE
        for name, value in outgoing_headers().items():  # one trace from the car to the model
            lines += f"{name}: {value}\r\n".encode("ascii")
        left_s = deadline.remaining_s() if self._config.peer else float("inf")
        if left_s == float("inf"):
            return lines
        return lines + b"x-codriver-deadline-ms: %d\r\n" % int(left_s * 1000)

    async def _check_type(self, got: Exchange, wanted: str) -> None:
        """Refuse an answer that is of another type. An error object in a 200 answer counts as the error it is."""
        found = got.content_type
        if found == wanted or (wanted == "application/json" and found.endswith("+json")):
            return
        if found == "application/json":
            error = openai_errors.error_in(await got.whole(BODY_LIMIT_BYTES))
            if error is not None:
                raise openai_errors.error_event(error, self.card.id)
        hint = " A proxy or a log-in page may stand in between." if found == "text/html" else ""
        raise UpstreamMalformed(
            f"The server of '{self.card.id}' answered with '{found}', not '{wanted}'.{hint}", engine=self.card.id
        )

    def _decode_whole(self, body: bytes, request: ChatRequest) -> ChatChunk:
        try:
            decode = openai_formats.decode_chat if request.prompt is None else openai_formats.decode_text
            chunk = decode(body)
        except UpstreamMalformed:
            error = openai_errors.error_in(body)
            if error is not None:
                raise openai_errors.error_event(error, self.card.id) from None
            raise
        ends = _Ends(self.card.id, request.n or 1)
        ends.see(chunk, body)
        if not ends.complete:
            raise UpstreamMalformed(f"The answer of '{self.card.id}' has no finish_reason.", engine=self.card.id)
        if request.continue_from and self._config.prefill in ("peer", "llama_cpp"):
            return openai_formats.without_echo(chunk, request.continue_from)
        return chunk

    def _refuse_closed(self) -> None:
        if self._closed:
            raise EngineUnavailable(f"The engine '{self.card.id}' is closed.", engine=self.card.id)

    def _note(self, error: EngineError) -> None:
        if isinstance(error, EngineUnavailable):
            self._trouble = error.message
            self._down_until_s = self._clock.monotonic_s() + DOWN_S
        elif isinstance(error, EngineBusy):
            self._busy_until_s = self._clock.monotonic_s() + (error.retry_after_s or 1.0)


class _Ends:
    """Whether a stream is complete: every choice that was asked for or began has its finish reason."""

    def __init__(self, engine: str, choices: int) -> None:
        self._engine = engine
        self._choices = choices
        self._open: set[int] = set()
        self._finished: set[int] = set()
        self._last = b""
        self.done = False

    def repeats(self, payload: bytes) -> bool:
        """True for an event that came twice, as after a reconnect: its random member cannot be the same by chance.

        Without such a member it may as well be a word said twice.
        """
        twice = payload == self._last and _ONCE.search(payload) is not None
        self._last = payload
        return twice

    def see(self, chunk: ChatChunk, payload: bytes) -> None:
        """Errors: :class:`UpstreamError` when the chunk is, or holds, an error."""
        for choice in chunk.choices:
            if choice.finish_reason:
                self._finished.add(choice.index)
                if choice.finish_reason == "error":
                    raise self._error(payload)
            elif choice.index not in self._open:
                self._open.add(choice.index)
        if not chunk.choices and b'"error"' in payload:
            error = openai_errors.error_in(payload)
            if error is not None:
                raise openai_errors.error_event(error, self._engine)

    async def read(self, got: Exchange) -> bytes:
        """The next bytes. What goes wrong after the answer is complete does it no harm: then there are none."""
        try:
            return await got.read()
        except (EngineDied, DeadlineExceeded):
            if self.complete:
                return b""
            raise

    @property
    def complete(self) -> bool:
        return len(self._finished) >= self._choices and self._open <= self._finished

    def check(self, inside_event: bool) -> None:
        """At the end of the stream. Errors: :class:`EngineDied` when it was cut.

        A finish reason without ``[DONE]`` is an end; ``[DONE]`` without a finish reason is not.
        """
        if self.complete:
            return
        if inside_event:
            raise openai_errors.cut_short(self._engine, "its stream ended inside an event")
        if not self._open and not self._finished:
            raise openai_errors.cut_short(self._engine, "its stream was empty")
        raise openai_errors.cut_short(self._engine, "its stream ended without a finish_reason")

    def _error(self, payload: bytes) -> CodriverError:
        return openai_errors.error_event(openai_errors.error_in(payload) or {}, self._engine)


class _RawMessages(msgspec.Struct):
    messages: list[msgspec.Raw]


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None  # vLLM, SGLang
    meta: dict[str, Any] = {}  # llama.cpp


class _Models(msgspec.Struct):
    data: list[_Model]


def _card(config: OpenAIConfig) -> EngineCard:
    unknown = [name for name in config.capabilities if name not in get_args(Capability)]
    if unknown:
        allowed = ", ".join(get_args(Capability))
        raise BadConfigValue(
            f"'capabilities' of '{config.id}' holds '{unknown[0]}'; allowed: {allowed}.", param="capabilities"
        )
    capabilities = set(cast(tuple[Capability, ...], config.capabilities)) - {"prefill", "verify"}
    if config.prefill != "none":
        capabilities.add("prefill")
        if config.verify != "none":
            capabilities.add("verify")
    return EngineCard(
        id=config.id,
        locality=config.locality,
        model=config.model,
        modalities=frozenset(config.modalities),
        capabilities=frozenset(capabilities),
        context_tokens=config.context_tokens,
        price=Price(config.input_usd, config.output_usd),
    )


def _split_url(url: str) -> tuple[str, str]:
    """``(origin, base path)``; the path is ``/v1`` where the address has none."""
    allowed = BadConfigValue(f"'url' is {url!r}; allowed: an address such as https://host:8000/v1.", param="url")
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - reading it is what checks it
        (parts.hostname or "").encode("idna")
    except ValueError:
        raise allowed from None
    path = parts.path.rstrip("/") or "/v1"
    if parts.scheme not in ("http", "https") or not parts.hostname or not _plain(path):
        raise allowed
    if parts.username is not None:
        raise BadConfigValue(
            "'url' holds a user or a password; the key goes to api_key_env or api_key_file.", param="url"
        )
    return f"{parts.scheme}://{parts.netloc}", path


def _plain(text: str) -> bool:
    """Whether it can stand in a request's head as it is."""
    return text.isascii() and text.isprintable() and " " not in text


def _api_key(config: OpenAIConfig) -> str:
    """The key from the place the configuration names. Errors: :class:`BadConfigValue`, :class:`MissingFile`."""
    if config.api_key_env:
        key = os.environ.get(config.api_key_env, "").strip()
        if not key:
            raise BadConfigValue(
                f"'{config.id}' takes its API key from the environment variable {config.api_key_env}: it is not set.",
                param="api_key_env",
            )
        return key
    if config.api_key_file is None:
        return ""
    try:
        return config.api_key_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise MissingFile(
            f"The API key file {config.api_key_file} of '{config.id}' cannot be read: {error.strerror}."
        ) from error
