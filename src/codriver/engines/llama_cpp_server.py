"""llama.cpp's server inside this process, reached over a Unix socket in a private folder; slots are saved in another.

Three things about the wheel that this file hides: its constructor blocks until the model is loaded (a thread waits), it
installs SIGINT and SIGTERM handlers of its own (the process's are put back), and its OpenMP threads spin at barriers.
A car's cores are shared, and two threads that spin on two cores fell from 120 tokens/s to 42 with one stream, and from
171 to 12 with four, when one other process was busy. One decoding thread and passive waits give 94 and 100 either way:
the default on two cores or fewer. On more, one core is left to others and OpenMP keeps its default. ``OMP_WAIT_POLICY``
in the environment overrides the waits, the setting ``threads`` the count.
The rule kept here: what slots hold is written to no other place, and after ``aclose`` no thread, socket or folder is
left; what a killed process left, the next start sweeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import http.client
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from codriver.core.errors import EngineUnavailable

from .llama_cpp_config import LlamaCppConfig
from .llama_cpp_folder import SOCKET, PrivateFolder
from .openai_link import Expiry

_DRAIN_S = 10.0
_FEW_CORES = 2
_SIGACTION_BYTES = 512  # more than any platform's struct sigaction
_loading = threading.Lock()


@contextmanager
def kept_signals() -> Iterator[None]:
    """Put SIGINT's and SIGTERM's actions back as they were, Python's and asyncio's alike; works from any thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    saved = {number: ctypes.create_string_buffer(_SIGACTION_BYTES) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, action in saved.items():
        libc.sigaction(int(number), None, action)
    try:
        yield
    finally:
        for number, action in saved.items():
            libc.sigaction(int(number), action, None)


def wheel() -> Any:
    """The ``xllamacpp`` module; how its threads wait is settled when it is first imported."""
    if len(os.sched_getaffinity(0)) <= _FEW_CORES:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import xllamacpp

    return xllamacpp


def wheel_version() -> str:
    return str(wheel().__version__)


class LlamaServer:
    """One server. ``session`` speaks HTTP to it; :attr:`url` is the prefix of its paths."""

    url = "http://llama"

    def __init__(self, config: LlamaCppConfig) -> None:
        self._config = config
        self._private, self._states = PrivateFolder(), PrivateFolder(in_memory=True)
        self.folder, self.slot_folder = self._private.path, self._states.path
        self._server: Any = None
        self.session: aiohttp.ClientSession | None = None
        self._closed = False
        self._sending: set[asyncio.Future[aiohttp.ClientResponse]] = set()
        self._open: set[aiohttp.ClientResponse] = set()

    async def start(self) -> None:
        """Load the model. Errors: :class:`EngineUnavailable`."""
        loading = asyncio.ensure_future(asyncio.to_thread(self._load))
        try:
            await asyncio.shield(loading)
        except asyncio.CancelledError:
            # The load cannot be interrupted; what it made is freed as soon as it ends.
            loading.add_done_callback(self._abandon)
            raise
        except RuntimeError as error:
            raise EngineUnavailable(
                f"The model {self._config.model.name} could not be loaded: llama.cpp does not know its architecture or "
                f"tensors, or memory for {self._config.slots} × {self._config.context_tokens} tokens is short.",
                engine=self._config.id,
            ) from error
        # A connection per request: llama.cpp closes kept ones when it likes, and a connect costs 0.1 ms.
        connector = aiohttp.UnixConnector(str(self.folder / SOCKET), limit=0, force_close=True)
        self.session = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
        )

    def _load(self) -> None:
        module = wheel()
        params = parameters(module, self._config)
        params.hostnames = [str(self.folder / SOCKET)]
        params.slot_save_path = f"{self.slot_folder}/"
        with _loading, kept_signals():
            self._server = module.Server(params)

    def _abandon(self, loaded: asyncio.Future[None]) -> None:
        if not loaded.cancelled():
            loaded.exception()  # seen here; nobody waits for it any more
        self._free()

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """One JSON exchange; the decoded answer. Errors: :class:`EngineUnavailable`."""
        if self.session is None:
            raise EngineUnavailable(f"The engine '{self._config.id}' is closed.", engine=self._config.id)
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with self.session.request(method, self.url + path, data=data) as response:
                content = await response.read()
                if response.status != 200:
                    raise EngineUnavailable(
                        f"The engine '{self._config.id}' refused {path}: status {response.status}.",
                        engine=self._config.id,
                    )
                return msgspec.json.decode(content) if content[:1] in b"[{" else content.decode()
        except (aiohttp.ClientError, OSError) as error:
            raise EngineUnavailable(f"The engine '{self._config.id}' has stopped.", engine=self._config.id) from error

    async def post(self, path: str, body: bytes, expiry: Expiry) -> aiohttp.ClientResponse:
        """An answer whose head has come; give it to :meth:`leave`. ``aclose`` ends it with an aiohttp error."""
        if self.session is None:
            raise aiohttp.ClientConnectionError("closed")
        sending = asyncio.ensure_future(self.session.post(self.url + path, data=body))
        self._sending.add(sending)
        try:
            response = await expiry.wait(lambda: sending)
        except asyncio.CancelledError:
            sending.add_done_callback(_close_unread)
            task = asyncio.current_task()
            if self._closed and not (task and task.cancelling()):
                raise aiohttp.ClientConnectionError("closed") from None
            raise
        finally:
            self._sending.discard(sending)
        self._open.add(response)
        return response

    def leave(self, response: aiohttp.ClientResponse) -> None:
        """Close the connection: llama.cpp stops at its next write."""
        self._open.discard(response)
        response.close()

    async def aclose(self) -> None:
        self._closed = True
        session, self.session = self.session, None
        # Closing the session alone would leave readers waiting.
        for sending in list(self._sending):
            sending.cancel()
        for response in list(self._open):
            response.close()
        if session is not None:
            await session.close()
        await asyncio.to_thread(self._free)

    def _wait_idle(self) -> None:
        """Until no slot works: the destructor below waits for them, and holds Python's lock while it does."""
        give_up_s = time.monotonic() + _DRAIN_S
        while time.monotonic() < give_up_s:
            try:
                slots = _ask(self.folder / SOCKET, "/slots")
            except (OSError, ValueError, http.client.HTTPException):
                return
            if not any(slot.get("is_processing") for slot in slots):
                return
            time.sleep(0.01)

    def _free(self) -> None:
        if self._server is not None:
            self._wait_idle()
        self._server = None  # the wheel's destructor ends the loop and joins its threads
        self._private.remove()
        self._states.remove()


def _close_unread(sending: asyncio.Future[aiohttp.ClientResponse]) -> None:
    """An answer that began in the moment its reader left: nobody else would close it, and llama.cpp would go on."""
    if not sending.cancelled() and sending.exception() is None:
        sending.result().close()


def _ask(socket_path: Path, path: str) -> Any:
    """A GET without an event loop."""
    connection = http.client.HTTPConnection("llama", timeout=_DRAIN_S)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(_DRAIN_S)
    with contextlib.closing(connection):
        connection.sock.connect(str(socket_path))
        connection.request("GET", path)
        return msgspec.json.decode(connection.getresponse().read())


def thread_counts(threads: int = 0) -> tuple[int, int]:
    """Threads for one token at a time and for batches, by the setting ``threads`` (0: chosen here)."""
    if threads:
        return threads, threads
    cores = len(os.sched_getaffinity(0))
    spare_one = max(1, cores - 1)
    return spare_one, cores if cores <= _FEW_CORES else spare_one


def parameters(module: Any, config: LlamaCppConfig) -> Any:
    """llama.cpp's parameters for ``config``, transport left out."""
    params = module.CommonParams()
    params.model.path = str(config.model)
    params.model_alias = {config.id}
    params.n_parallel = config.slots
    params.n_ctx = config.slots * config.context_tokens
    params.cpuparams.n_threads, params.cpuparams_batch.n_threads = thread_counts(config.threads)
    params.n_batch = params.n_ubatch = config.batch_tokens
    kind = getattr(module.ggml_type, f"GGML_TYPE_{config.kv_type.upper()}")
    params.cache_type_k = params.cache_type_v = kind
    params.cache_ram_mib = 0  # we choose the slots, and that cache would never be asked
    params.n_threads_http = config.slots + 4
    params.use_jinja = params.endpoint_slots = params.endpoint_metrics = params.warmup = True
    params.ui = params.fit_params = False
    params.verbosity = 0
    if config.mmproj is not None:
        params.mmproj.path = str(config.mmproj)
    # Loaded at scale 0: an adapter acts only where a request names it.
    params.lora_adapters = [module.CommonAdapterLoraInfo(str(path), 0.0) for _, path in config.adapters()]
    return params
