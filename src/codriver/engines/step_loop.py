"""The thread that steps a runtime which batches continuously: jobs go in, events come out, one step per token.

Everything that touches the pipeline happens in this thread, between two steps. The rule kept here: a job that was left
does not take part in the next step, and a step that fails ends every job with an error, never in silence.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Step:
    """What one step gave a job: token ids with their log-probabilities, and ``stop`` or ``length`` at the end.
    ``tops``: the likeliest tokens at each place, where the runtime tells them.
    """

    ids: list[int]
    logprobs: list[float]
    finish: str | None = None
    tops: list[list[tuple[int, float]]] = field(default_factory=list)


@dataclass(eq=False)
class Job:
    """``events`` holds :class:`Step` objects, or an exception as the last."""

    ids: Any
    config: Any
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Step | Exception] = field(default_factory=asyncio.Queue)
    left: bool = False

    def tell(self, event: Step | Exception) -> None:
        self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class StepLoop:
    """Owns ``pipeline`` from :meth:`start` on: OpenVINO GenAI's, or what offers the same calls. ``finishes``: its ends
    by our names.
    """

    def __init__(self, pipeline: Any, finishes: dict[Any, str]) -> None:
        self._pipeline = pipeline
        self._finishes = finishes
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._work: dict[int, tuple[Job, Any]] = {}
        self._next_id = 0
        self._thread = threading.Thread(target=self._run, name="engine-steps", daemon=True)
        self.on_failure: Callable[[str], None] = lambda reason: None

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> None:
        self._inbox.put(job)

    def close(self) -> None:
        """End the thread after the step under way; blocks. Jobs under way are told."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            # Sleeps while there is nothing to do; between steps it only takes what is there.
            while not self._work or not self._inbox.empty():
                job = self._inbox.get()
                if job is None:
                    self._end_all(ConnectionAbortedError("closed"))
                    self._pipeline = None
                    return
                self._begin(job)
            self._drop_left()
            if self._work:
                self._step()

    def _begin(self, job: Job) -> None:
        if job.left:
            return
        try:
            handle = self._pipeline.add_request(self._next_id, job.ids, job.config)
        except (RuntimeError, ValueError, TypeError) as error:
            job.tell(error)
            return
        self._work[self._next_id] = (job, handle)
        self._next_id += 1

    def _drop_left(self) -> None:
        gone = [number for number, (job, _) in self._work.items() if job.left]
        for number in gone:
            self._work.pop(number)[1].cancel()
        if gone and not self._work and self._pipeline.has_non_finished_requests():
            self._step()  # frees the cancelled jobs' memory

    def _step(self) -> None:
        try:
            self._pipeline.step()
        except RuntimeError as error:
            for _, handle in self._work.values():
                handle.cancel()
            self._end_all(error)
            self.on_failure(str(error).splitlines()[0][-200:])
            return
        for number, (job, handle) in list(self._work.items()):
            while handle.can_read():
                for output in handle.read().values():
                    finish = self._finishes.get(output.finish_reason)
                    if finish:
                        self._work.pop(number, None)
                    tops = getattr(output, "tops", [])
                    job.tell(Step(list(output.generated_ids), list(output.generated_log_probs), finish, tops))

    def _end_all(self, error: Exception) -> None:
        for job, _ in self._work.values():
            job.tell(error)
        self._work.clear()
