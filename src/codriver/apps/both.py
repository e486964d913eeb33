"""A vehicle and a cloud on one machine, each in its own process, as they are in the field."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from codriver.core.errors import ChildDied

_START_S = 180.0
_STOP_S = 30.0


class Child:
    """``codriver NAME …`` as a process of its own; what it logs goes where this process logs."""

    def __init__(self, name: str, arguments: Sequence[str], folder: Path) -> None:
        self.name = name
        self.url = ""
        self._arguments = arguments
        self._ready_file = folder / f"{name}.json"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Return once it serves. Errors: :class:`ChildDied`."""
        told = ["--ready-file", str(self._ready_file), "--parent-pid", str(os.getpid())]
        command = [sys.executable, "-m", "codriver", self.name, *self._arguments, *told]
        # A group of its own: Ctrl-C reaches only this process, which then ends its children in order.
        self._process = await asyncio.create_subprocess_exec(*command, start_new_session=True)
        ended = asyncio.create_task(self._process.wait())
        try:
            async with asyncio.timeout(_START_S):
                while not self._ready_file.exists():
                    await asyncio.wait({ended}, timeout=0.05)
                    if ended.done():
                        raise ChildDied(f"The {self.name} ended with exit code {ended.result()} before it served.")
        except TimeoutError:
            raise ChildDied(f"The {self.name} did not serve within {_START_S:g} seconds.") from None
        finally:
            ended.cancel()
        self.url = str(json.loads(self._ready_file.read_text(encoding="utf-8"))["url"])

    async def wait(self) -> int:
        assert self._process is not None
        return await self._process.wait()

    def ask_to_end(self) -> None:
        """SIGTERM: the first lets open answers end, a second cuts them."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    async def stop(self) -> None:
        """Ask it to end, and kill it when it takes too long."""
        if self._process is None or self._process.returncode is not None:
            return
        self.ask_to_end()
        try:
            async with asyncio.timeout(_STOP_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


def up_both(port: int, cloud_url: str | None, cloud_model: str | None, model: str | None) -> None:
    """Run both until Ctrl-C or SIGTERM. A cloud that dies is told of and the vehicle goes on; the other way round all
    ends.
    """
    asyncio.run(_up(port, cloud_url, cloud_model, model))


async def _up(port: int, cloud_url: str | None, cloud_model: str | None, model: str | None) -> None:
    console = Console(stderr=True, highlight=False)
    stop = asyncio.Event()
    children: list[Child] = []

    def asked() -> None:
        if stop.is_set():
            for child in children:
                child.ask_to_end()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked)
    with tempfile.TemporaryDirectory(prefix="codriver-up-") as folder:
        try:
            if cloud_url is None:
                cloud = Child("cloud", ["--port", str(port + 1 if port else 0)], Path(folder))
                children.append(cloud)
                await _unless(stop, cloud.start())
                cloud_url = cloud.url
            arguments = ["--port", str(port), "--cloud-url", cloud_url or ""]
            arguments += ["--cloud-model", cloud_model] if cloud_model else []
            arguments += ["--model", model] if model else []
            car = Child("vehicle", arguments, Path(folder))
            children.append(car)
            await _unless(stop, car.start())
            if not stop.is_set():
                console.print(_welcome(car.url, cloud_url or ""))
                await _watch(children, stop, console)
        finally:
            await asyncio.gather(*(child.stop() for child in reversed(children)))


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do ``work``, or give it up when a stop is asked for."""
    doing = asyncio.create_task(work)
    asked = asyncio.create_task(stop.wait())
    pending: list[asyncio.Task[Any]] = [doing, asked]
    await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if doing.done():
        doing.result()
    else:
        doing.cancel()


async def _watch(children: list[Child], stop: asyncio.Event, console: Console) -> None:
    asked = asyncio.create_task(stop.wait())
    ends: dict[asyncio.Task[Any], Child] = {asyncio.create_task(child.wait()): child for child in children}
    while ends and not stop.is_set():
        done, _ = await asyncio.wait([asked, *ends], return_when=asyncio.FIRST_COMPLETED)
        for task in done & set(ends):
            child = ends.pop(task)
            console.print(f"[red]the {child.name} ended with exit code {task.result()}[/]")
            if child.name == "vehicle":
                raise ChildDied("The vehicle ended by itself; its log above says why.")
    asked.cancel()
    for task in ends:
        task.cancel()


def _welcome(vehicle: str, cloud: str) -> str:
    return (
        f"\n[bold]vehicle[/]  {vehicle}   [dim]model 'codriver' routes between the two[/]"
        f"\n[bold]cloud[/]    {cloud}"
        f"\n[dim]try: codriver chat --url {vehicle} — stop with Ctrl-C[/]\n"
    )
