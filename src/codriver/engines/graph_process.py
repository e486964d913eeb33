"""A graph runtime in a process of its own, for runtimes that cannot be trusted with this one.

ExecuTorch's binding holds Python's lock while a graph runs, which would stop the whole vehicle; neither it nor LiteRT
can be stopped in the middle; and a hostile file may end the process that loads it. The child is a script that imports
nothing of Codriver, so that it may run in another environment. Messages, both ways: a line of JSON, then the bytes of
its tensors. The rules kept: one thread speaks to the child; what ends or stalls the child is an error of that request
alone, and the next request starts another child; a child outlives neither the engine nor this process.
"""

from __future__ import annotations

import contextlib
import fcntl
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from .tensor_fit import Spec, count_bytes

T = TypeVar("T")
_PIPE_BYTES = 1 << 20
_MOST_HEAD_BYTES = 1 << 20  # of a reply, before its tensors
_F_SETPIPE_SZ = 1031  # Linux; absent from ``fcntl`` on other systems
Given = tuple[str, tuple[int, ...], bytes]  # an input: its name, shape and data


class Reply(msgspec.Struct, frozen=True):
    """What a child says: of its graph once loaded, or of the outputs that follow; ``error`` where it could not."""

    error: str = ""
    inputs: tuple[Spec, ...] = ()
    outputs: tuple[Spec, ...] = ()
    sizes: tuple[int, ...] = ()


class ChildEnded(Exception):
    """The child ended, or was ended; the message says how, for the end of a sentence."""


class Refused(Exception):
    """The child lives on, and says in the message why it could not."""


@dataclass(frozen=True)
class Child:
    """How a child is started: ``python script arguments``."""

    python: Path
    script: Path
    arguments: tuple[str, ...]


class GraphProcess:
    """Its methods block; the engine's one thread calls them, but for :meth:`kill`, which any thread may."""

    def __init__(self, child: Child, load_s: float, run_s: float) -> None:
        self._child = child
        self._load_s, self._run_s = load_s, run_s
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._closed = False
        self._stalled = False

    def load(self) -> Reply:
        """Start the child; what it says of the graph. Errors: :class:`ChildEnded`, :class:`Refused`, ``OSError``."""
        self.forget()
        if self._closed:
            raise ChildEnded("it is closed")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it is read when the child has ended
        command = [str(self._child.python), "-I", str(self._child.script), *self._child.arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0
        )
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # a smaller pipe is slower, nothing else
                fcntl.fcntl(pipe, _F_SETPIPE_SZ, _PIPE_BYTES)  # type: ignore[arg-type]
        self._kill_if_closed()  # closed while it started
        try:
            return self._within(self._load_s, self._read_reply)
        except Refused:
            self.kill()
            raise

    def run(self, feed: Sequence[Given]) -> tuple[Reply, list[bytes]]:
        """The outputs for these inputs. A child that is gone is started again first. Errors: as :meth:`load`."""
        if self._process is None or self._process.poll() is not None:
            self.load()
        return self._within(self._run_s, lambda: self._exchange(feed))

    def kill(self, final: bool = False) -> None:
        """End the child, and with it what waits for it. ``final``: none is started again."""
        self._closed |= final
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()

    def peak_bytes(self) -> int:
        """The most memory that the child ever had; 0 where there is no /proc."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii").splitlines():
                    if line.startswith("VmHWM:"):
                        return int(line.split()[1]) * 1024
        return 0

    def _kill_if_closed(self) -> None:
        if self._closed:
            self.kill()

    def forget(self) -> None:
        """End the child, and close what led to it. For the thread that speaks to it."""
        self.kill()
        process, self._process = self._process, None
        errors, self._errors = self._errors, None
        for file in (errors, *((process.stdin, process.stdout) if process is not None else ())):
            if file is not None:
                file.close()

    def _exchange(self, feed: Sequence[Given]) -> tuple[Reply, list[bytes]]:
        head = {"inputs": [(name, shape, len(data)) for name, shape, data in feed]}
        self._write(msgspec.json.encode(head) + b"\n")
        for *_, data in feed:
            self._write(data)
        reply = self._read_reply()
        for spec, size in zip(reply.outputs, reply.sizes, strict=True):
            if size != count_bytes(spec.dtype, spec.shape):
                raise ValueError(f"{size} bytes for {spec}")
        return reply, [self._read(size) for size in reply.sizes]

    def _within(self, seconds: float, work: Callable[[], T]) -> T:
        """A child that says nothing for so long is ended, which ends the wait for it."""
        self._stalled = False
        timer = threading.Timer(seconds, self._stall)
        timer.daemon = True
        timer.start()
        try:
            return work()
        except (BrokenPipeError, EOFError):
            raise ChildEnded(self._how_it_ended(seconds)) from None
        except (ValueError, KeyError, MemoryError, msgspec.MsgspecError) as error:  # a hostile file may speak for it
            self.kill()
            raise ChildEnded("it was ended, as its answer could not be understood") from error
        finally:
            timer.cancel()

    def _stall(self) -> None:
        self._stalled = True
        self.kill()

    def _how_it_ended(self, seconds: float) -> str:
        assert self._process is not None and self._errors is not None
        code = self._process.wait()
        if self._stalled:
            return f"it was ended after {seconds:g} s without an answer"
        if code < 0:
            return f"signal {-code} ended it ({signal.strsignal(-code)})"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"it ended with {code}: {lines[-1][:300] if lines else 'without a word'}"

    def _write(self, data: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        view = memoryview(data)
        while view:
            view = view[self._process.stdin.write(view) :]

    def _read(self, size: int) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        whole = bytearray(size)
        view = memoryview(whole)
        while view:
            count = self._process.stdout.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise EOFError
            view = view[count:]
        return bytes(whole)

    def _read_reply(self) -> Reply:
        # Its length first: reading a line byte by byte from an unbuffered pipe is slow.
        length = int(self._read(8), 16)
        if not 0 < length <= _MOST_HEAD_BYTES:
            raise ValueError(f"a head of {length} bytes")
        reply = msgspec.json.decode(self._read(length), type=Reply)
        if reply.error:
            raise Refused(reply.error)
        return reply
