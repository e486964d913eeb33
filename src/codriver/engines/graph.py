"""What ``litert`` and ``executorch`` have in common: an engine whose graph runs in a process of its own.

Limits: one graph per engine, CPU. A run that nobody waits for any more is let end, as these runtimes know no way to
stop one; one that takes longer than ``run_s`` is ended with its process. The rule kept: what does not fit the graph is
refused by name before anything runs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

from codriver.core.deadline import Deadline
from codriver.core.engine import EngineCard, Health
from codriver.core.errors import (
    BadModelFile,
    DeadlineExceeded,
    EngineDied,
    EngineUnavailable,
    MissingFile,
    RequestError,
    UnsupportedModality,
)
from codriver.core.messages import ChatChunk, ChatRequest, Embeddings, EmbedRequest, Tensor, TensorRequest, Tensors

from .graph_process import ChildEnded, GraphProcess, Refused
from .tensor_fit import outputs_wanted

T = TypeVar("T")
_NO_CHUNKS: tuple[ChatChunk, ...] = ()  # makes ``generate`` an iterator that refuses on its first step


class GraphEngine:
    """Made by :func:`started`, which loads the graph."""

    def __init__(self, id: str, locality: Literal["vehicle", "cloud"], model: Path, process: GraphProcess) -> None:
        self._model = model
        self._process = process
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"graph-{id}")
        self._waiting = 0
        self._closed = False
        self.card = EngineCard(
            id=id,
            locality=locality,
            model=model.stem,
            modalities=frozenset(),
            capabilities=frozenset({"tensors"}),
        )

    async def load(self, kind: str) -> None:
        """Errors: :class:`BadModelFile` saying what the runtime says of the file, or how the file ended it."""
        file = f"The model file {self._model.absolute()} of '{self.card.id}'"
        try:
            about = await asyncio.get_running_loop().run_in_executor(self._pool, self._process.load)
        except Refused as error:
            await self.aclose()
            raise BadModelFile(f"{file} is not a usable {kind} graph: {error}") from error
        except (ChildEnded, OSError) as error:
            await self.aclose()
            raise BadModelFile(
                f"{file} could not be loaded: the process that was to run it failed, {error}."
            ) from error
        except BaseException:
            await self.aclose()
            raise
        self.inputs = {spec.name: spec for spec in about.inputs}
        self.outputs = {spec.name: spec for spec in about.outputs}

    async def generate(self, request: ChatRequest, deadline: Deadline) -> AsyncIterator[ChatChunk]:
        for chunk in _NO_CHUNKS:
            yield chunk
        raise UnsupportedModality(f"The model '{self.card.id}' does not chat.", param="model")

    async def embed(self, request: EmbedRequest, deadline: Deadline) -> Embeddings:
        raise UnsupportedModality(f"The model '{self.card.id}' does not make embeddings.", param="model")

    async def infer(self, request: TensorRequest, deadline: Deadline) -> Tensors:
        """Run the graph. Errors: :class:`RequestError` naming the tensor, what was expected and what came;
        :class:`EngineDied` where the run ended the process, which the next request starts again.
        """
        wanted = outputs_wanted(self.card.id, self.inputs, list(self.outputs), request)
        found = await self._in_thread(lambda: self._run(request, deadline), deadline)
        return Tensors(tuple(found[name] for name in wanted))

    def peak_bytes(self) -> int:
        """The most memory that the graph's process had since it was last started; 0 where the system does not say."""
        return self._process.peak_bytes()

    def health(self) -> Health:
        if self._closed:
            return Health("down", reason="closed")
        return Health("busy" if self._waiting > 1 else "ready", queue=self._waiting)

    async def aclose(self) -> None:
        self._closed = True
        self._process.kill(final=True)  # what runs ends with it, and what waits is refused
        with contextlib.suppress(RuntimeError):  # closed before
            self._pool.submit(self._process.forget)
        self._pool.shutdown(wait=False)

    async def _in_thread(self, work: Callable[[], T], deadline: Deadline) -> T:
        if self._closed:
            raise EngineUnavailable(f"The engine '{self.card.id}' is closed.", engine=self.card.id)
        if deadline.expired():
            raise DeadlineExceeded("The deadline passed before the graph was run.")
        self._waiting += 1
        future = self._pool.submit(work)
        # A run goes on without the one who asked for it, and is counted until it ends.
        loop = asyncio.get_running_loop()

        def ended(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(self._one_less)

        future.add_done_callback(ended)
        return await deadline.wait(asyncio.wrap_future(future))

    def _one_less(self) -> None:
        self._waiting -= 1

    def _run(self, request: TensorRequest, deadline: Deadline) -> dict[str, Tensor]:
        if self._closed:
            raise EngineUnavailable(f"The engine '{self.card.id}' is closed.", engine=self.card.id)
        if deadline.expired():
            raise DeadlineExceeded("The deadline passed before the graph was run.")
        feed = [(self.inputs[tensor.name], tensor) for tensor in request.inputs]
        try:
            reply, data = self._process.run([(spec.name, tensor.shape, tensor.data) for spec, tensor in feed])
        except Refused as error:
            raise RequestError(f"The graph '{self.card.id}' cannot take these inputs: {error}") from error
        except (ChildEnded, OSError) as error:
            if self._closed:
                raise EngineUnavailable(f"The engine '{self.card.id}' is closed.", engine=self.card.id) from error
            raise EngineDied(f"The process of '{self.card.id}' failed: {error}.", engine=self.card.id) from error
        return {
            spec.name: Tensor(spec.name, spec.dtype, tuple(int(size) for size in spec.shape), found)
            for spec, found in zip(reply.outputs, data, strict=True)
        }


def need_file(id: str, model: Path) -> None:
    if not model.is_file():
        raise MissingFile(f"The model file {model} of '{id}' does not exist; pull it, or mend the path.")
