"""``codriver chat``: talk to a vehicle from the terminal, and see who answered."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from typing import Annotated, Any

import aiohttp
import typer
from rich.console import Console

from codriver.core.errors import BadConfigValue, EngineDied, EngineUnavailable, UpstreamError
from codriver.core.wire import SseParser

_OFFLINE = "Nothing answers at {url}: start one with `codriver up`, or give its address with --url."


def chat(
    message: Annotated[str | None, typer.Argument(help="One message; without it, a conversation begins.")] = None,
    url: Annotated[str, typer.Option(help="The vehicle's address.")] = "http://127.0.0.1:8000/v1",
    model: Annotated[str, typer.Option(help="codriver routes; vehicle and cloud ask one engine.")] = "codriver",
    policy: Annotated[str | None, typer.Option(help="auto, or who answers: vehicle-only, cloud-first, …")] = None,
    local_only: Annotated[bool, typer.Option("--local-only", help="Nothing may leave the vehicle.")] = False,
    redact: Annotated[bool, typer.Option("--redact", help="Personal data leaves it as placeholders only.")] = False,
    api_key_env: Annotated[str, typer.Option(help="Environment variable with the API key.")] = "CODRIVER_API_KEY",
) -> None:
    """Talk to a vehicle; each answer says who gave it, how fast, and over which link."""
    options: dict[str, Any] = {"session": uuid.uuid4().hex}
    if policy is not None:
        options["policy"] = policy
    if local_only or redact:
        options["privacy"] = "local_only" if local_only else "redact"
    talk = Talk(url, model, options, os.environ.get(api_key_env, ""))
    asyncio.run(talk.once(message) if message is not None else talk.converse())


class Talk:
    """One conversation with a server; its history is kept by the vehicle, under the session."""

    def __init__(self, url: str, model: str, options: dict[str, Any], api_key: str) -> None:
        self._url = url.rstrip("/")
        self._model = model
        self._options = options
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._console = Console(highlight=False)

    async def once(self, message: str) -> None:
        async with aiohttp.ClientSession(headers=self._headers) as http:
            await self._say(http, message)

    async def converse(self) -> None:
        self._console.print(f"[dim]{self._url} — an empty line ends[/]")
        async with aiohttp.ClientSession(headers=self._headers) as http:
            while True:
                try:
                    message = await asyncio.to_thread(self._console.input, "[bold]you:[/] ")
                except EOFError:
                    return
                if not message.strip():
                    return
                try:
                    await self._say(http, message)
                except (UpstreamError, EngineDied) as error:
                    self._console.print(f"[red]{error.message}[/]")

    async def _say(self, http: aiohttp.ClientSession, message: str) -> None:
        body = {
            "model": self._model,
            "stream": True,
            "messages": [{"role": "user", "content": message}],
            "codriver": self._options,
        }
        started_s = asyncio.get_running_loop().time()
        try:
            async with http.post(f"{self._url}/chat/completions", json=body) as response:
                if response.status != 200:
                    raise UpstreamError(await _told(response))
                await self._show(response, started_s)
        except aiohttp.InvalidURL as error:
            raise BadConfigValue(f"'{self._url}' is no address; one looks like http://127.0.0.1:8000/v1.") from error
        except aiohttp.ClientConnectorError as error:
            raise EngineUnavailable(_OFFLINE.format(url=self._url)) from error
        except aiohttp.ClientError as error:
            raise EngineDied(f"The connection to {self._url} was lost in the middle of the answer.") from error

    async def _show(self, response: aiohttp.ClientResponse, started_s: float) -> None:
        parser, first_s = SseParser(), 0.0
        said: dict[str, Any] = {}
        async for block in response.content.iter_any():
            for payload in parser.feed(block):
                if payload == b"[DONE]":
                    continue
                chunk = json.loads(payload)
                if "error" in chunk:
                    self._console.print()
                    raise EngineDied(f"The answer was cut: {chunk['error'].get('message', 'no reason given')}")
                text = "".join(choice["delta"].get("content") or "" for choice in chunk.get("choices", ()))
                if text and not first_s:
                    first_s = asyncio.get_running_loop().time()
                self._console.out(text, end="", highlight=False)
                said = chunk.get("codriver") or said
        self._console.print(f"\n[dim]— {_who(said, first_s - started_s)}[/]")


def _who(said: dict[str, Any], ttft_s: float) -> str:
    """The answer's origin in one line, from the ``codriver`` extension."""
    parts = [str(said.get("engine", "who answered is not known")), f"{1e3 * max(0.0, ttft_s):.0f} ms to first token"]
    if "confidence" in said:
        parts.append(f"confidence {said['confidence']:.2f}")
    if "link" in said:
        parts.append(f"link {said['link']}")
    if said.get("redacted"):
        parts.append("redacted " + ", ".join(f"{count} {kind}" for kind, count in said["redacted"].items()))
    for failover in said.get("failovers", ()):
        parts.append(f"{failover['from']} died after {failover['at_chars']} characters, {failover['to']} went on")
    return " · ".join(parts)


async def _told(response: aiohttp.ClientResponse) -> str:
    try:
        return str(json.loads(await response.read())["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"The server answered with status {response.status}; its address usually ends in /v1."
