from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

import codriver
from codriver.catalogue import CatalogueEntry, Part, PullSettings, Store, pull
from codriver.catalogue.download import Retry
from codriver.core.errors import ChecksumMismatch, DiskFull, SourceUnavailable

from .conftest import MakeEntry, Origin


class EagerClock:
    """Never waits; remembers what it was asked to wait."""

    def __init__(self) -> None:
        self.slept_s: list[float] = []

    def monotonic_s(self) -> float:
        return 0.0

    def wall_s(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        await asyncio.sleep(0)


class Heard:
    def __init__(self) -> None:
        self.rows: list[tuple[int, int, str]] = []
        self._news = asyncio.Event()

    def update(self, done_bytes: int, total_bytes: int, what: str) -> None:
        self.rows.append((done_bytes, total_bytes, what))
        self._news.set()

    async def until(self, seen: Callable[[int, str], bool]) -> None:
        while not any(seen(done, what) for done, _, what in self.rows):
            self._news.clear()
            await self._news.wait()


@pytest.fixture
def clock() -> EagerClock:
    return EagerClock()


@pytest.fixture
def settings(clock: EagerClock) -> PullSettings:
    return PullSettings(retry=Retry(clock=clock))


@pytest.fixture
def entry(origin: Origin, make_entry: MakeEntry, body: bytes) -> CatalogueEntry:
    origin.files["/tiny.bin"] = body
    return make_entry(Part("url", f"{origin.url}/tiny.bin"))


def left(store: Store, entry: CatalogueEntry) -> list[str]:
    return sorted(path.name for path in store.target(entry).parent.rglob("*") if path.is_file())


async def test_a_pull_and_a_second_one(
    origin: Origin, entry: CatalogueEntry, store: Store, settings: PullSettings, body: bytes
) -> None:
    heard = Heard()
    path = await pull(entry, store, heard, settings)
    assert path.read_bytes() == body
    assert left(store, entry) == ["tiny.bin", "tiny.bin.verified"]
    assert heard.rows[-1] == (len(body), len(body), "done")
    await pull(entry, store, heard, settings)
    assert origin.asked == ["whole"]


async def test_a_dropped_connection_goes_on_where_it_broke(
    origin: Origin, entry: CatalogueEntry, store: Store, settings: PullSettings, body: bytes
) -> None:
    origin.drop_after = [2_000_000, 1_000_000]
    assert (await pull(entry, store, None, settings)).read_bytes() == body
    assert origin.asked[0] == "whole"
    assert len(origin.asked) == 3
    assert all(item.startswith("bytes=") and item != "bytes=0-" for item in origin.asked[1:])


async def test_a_server_without_ranges_is_asked_again_from_zero(
    origin: Origin, entry: CatalogueEntry, store: Store, settings: PullSettings, body: bytes
) -> None:
    origin.ranges = False
    origin.drop_after = [2_000_000]
    assert (await pull(entry, store, None, settings)).read_bytes() == body


async def test_a_file_that_changed_on_the_server_is_not_mixed(
    origin: Origin, entry: CatalogueEntry, store: Store, settings: PullSettings, body: bytes
) -> None:
    origin.files["/tiny.bin"] = bytes(len(body))
    origin.drop_after = [2_000_000]
    with pytest.raises(SourceUnavailable):
        await pull(entry, store, None, replace(settings, retry=replace(settings.retry, tries=1)))
    assert store.state(entry) == "partial"
    origin.files["/tiny.bin"], origin.etag = body, '"two"'
    assert (await pull(entry, store, None, settings)).read_bytes() == body
    assert len(origin.asked) == 2


async def test_bytes_of_an_earlier_pull_that_spoil_the_file_cost_one_clean_try(
    origin: Origin, entry: CatalogueEntry, store: Store, settings: PullSettings, body: bytes
) -> None:
    origin.files["/tiny.bin"] = bytes(len(body))
    origin.drop_after = [2_000_000]
    with pytest.raises(SourceUnavailable):
        await pull(entry, store, None, replace(settings, retry=replace(settings.retry, tries=1)))
    origin.files["/tiny.bin"] = body  # same ETag: the server lies
    assert (await pull(entry, store, None, settings)).read_bytes() == body
    assert origin.asked[1].startswith("bytes=")
    assert origin.asked[2] == "whole"


async def test_wrong_bytes_are_removed(
    origin: Origin, entry: CatalogueEntry, store: Store, settings: PullSettings, body: bytes
) -> None:
    origin.files["/tiny.bin"] = bytes(len(body))
    with pytest.raises(ChecksumMismatch, match=rf"tiny\.bin .* removed: sha256 {entry.sha256} expected, got [0-9a-f]+"):
        await pull(entry, store, None, settings)
    assert store.state(entry) == "missing"
    assert left(store, entry) == []


@pytest.mark.parametrize("extra", [-1, 1])
async def test_a_file_of_another_size_is_refused_at_once(
    extra: int, origin: Origin, entry: CatalogueEntry, store: Store, settings: PullSettings, body: bytes
) -> None:
    origin.files["/tiny.bin"] = body + b"x" if extra > 0 else body[:-1]
    with pytest.raises(
        ChecksumMismatch, match=rf"{len(body)} bytes with sha256 .* expected, got {len(body) + extra} b"
    ):
        await pull(entry, store, None, settings)
    assert left(store, entry) == []


async def test_transient_errors_are_tried_again_with_growing_pauses(
    origin: Origin, entry: CatalogueEntry, store: Store, settings: PullSettings, clock: EagerClock
) -> None:
    origin.statuses = [503, 429, 500]
    await pull(entry, store, None, settings)
    assert clock.slept_s == [0.5, 1.0, 2.0]


async def test_it_gives_up_and_says_what_was_tried(
    origin: Origin, make_entry: MakeEntry, store: Store, settings: PullSettings, clock: EagerClock
) -> None:
    origin.statuses = [503] * 5
    entry = make_entry(Part("url", f"{origin.url}/a"), Part("url", f"{origin.url}/b"), Part("file", "/no/such/file"))
    with pytest.raises(SourceUnavailable) as caught:
        await pull(entry, store, None, settings)
    message = caught.value.message
    assert message.startswith("tiny could not be fetched. Tried ")
    assert f"{origin.url}/a: HTTP 503 (5 tries)" in message
    assert f"{origin.url}/b: HTTP 404" in message
    assert "there is no file /no/such/file" in message
    assert clock.slept_s == [0.5, 1.0, 2.0, 4.0]
    assert store.state(entry) == "missing"


async def test_offline(make_entry: MakeEntry, store: Store, settings: PullSettings, unused_port: int) -> None:
    entry = make_entry(Part("url", f"http://127.0.0.1:{unused_port}/x"))
    with pytest.raises(SourceUnavailable, match=r"Cannot connect to host .* \(5 tries\).*Check the network"):
        await pull(entry, store, None, settings)


async def test_secrets_in_an_address_are_not_shown(
    origin: Origin, make_entry: MakeEntry, store: Store, settings: PullSettings
) -> None:
    entry = make_entry(Part("url", origin.url.replace("//", "//me:secret@") + "/x?signature=secret"))
    with pytest.raises(SourceUnavailable, match="/x: HTTP 404") as caught:
        await pull(entry, store, None, settings)
    assert "secret" not in caught.value.message


async def test_the_next_source_is_used(
    origin: Origin, make_entry: MakeEntry, store: Store, settings: PullSettings, body: bytes, tmp_path: Path
) -> None:
    (tmp_path / "local.bin").write_bytes(body)
    origin.files["/bad"] = bytes(len(body))
    entry = make_entry(
        Part("url", f"{origin.url}/none"), Part("url", f"{origin.url}/bad"), Part("file", str(tmp_path / "local.bin"))
    )
    assert (await pull(entry, store, None, settings)).read_bytes() == body
    assert (tmp_path / "local.bin").exists()


async def test_parts_are_joined_in_order_and_finished_ones_are_kept(
    origin: Origin, make_entry: MakeEntry, store: Store, settings: PullSettings, body: bytes
) -> None:
    cuts = [0, 1_000_000, 1_000_001, 3_000_000, len(body)]
    pieces = [body[start:end] for start, end in pairwise(cuts)]
    origin.files |= {f"/part{index}": piece for index, piece in enumerate(pieces)}
    entry = make_entry(tuple(Part("url", f"{origin.url}/part{index}") for index in range(4)))
    missing = origin.files.pop("/part3")
    with pytest.raises(SourceUnavailable, match="part3: HTTP 404"):
        await pull(entry, store, None, settings)
    assert store.state(entry) == "partial"
    assert len(origin.asked) == 4
    origin.files["/part3"] = missing
    assert (await pull(entry, store, None, settings)).read_bytes() == body
    assert len(origin.asked) == 5
    assert left(store, entry) == ["tiny.bin", "tiny.bin.verified"]


async def test_the_hub_gets_its_token_and_nobody_else(
    origin: Origin,
    make_entry: MakeEntry,
    store: Store,
    settings: PullSettings,
    body: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    origin.redirects["/owner/repo/resolve/v1/sub/a.bin"] = origin.url.replace("127.0.0.1", "localhost") + "/blob"
    origin.files["/blob"] = body
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    entry = make_entry(Part("hf", "owner/repo", "sub/a.bin", "v1"))
    await pull(entry, store, None, replace(settings, hub_url=origin.url, hub_token="secret"))
    assert origin.logins == ["Bearer secret", ""]
    assert "secret" not in repr(replace(settings, hub_token="secret"))


async def test_two_pulls_at_once_fetch_once(
    origin: Origin, entry: CatalogueEntry, store: Store, settings: PullSettings
) -> None:
    origin.hold_after = 1000
    first = asyncio.create_task(pull(entry, store, None, settings))
    await origin.held.wait()
    heard = Heard()
    second = asyncio.create_task(pull(entry, store, heard, settings))
    await heard.until(lambda done, what: what == "waiting for another pull")
    origin.release.set()
    assert await first == await second
    assert origin.asked == ["whole"]


async def test_a_cancelled_pull_keeps_what_it_has(
    origin: Origin, entry: CatalogueEntry, store: Store, settings: PullSettings, body: bytes
) -> None:
    origin.hold_after = 2_500_000
    heard = Heard()
    task = asyncio.create_task(pull(entry, store, heard, settings))
    await heard.until(lambda done, what: done >= 1_000_000)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.state(entry) == "partial"
    origin.hold_after = None
    assert (await pull(entry, store, None, settings)).read_bytes() == body
    assert origin.asked[1].startswith("bytes=")


KILLED = """
import asyncio, sys
from pathlib import Path
from codriver.catalogue import CatalogueEntry, Part, Source, Store, pull

class Tell:
    def update(self, done_bytes, total_bytes, what):
        print(done_bytes, flush=True)

url, root, size, sha256 = sys.argv[1:]
entry = CatalogueEntry("tiny", "data", "tiny.bin", int(size), sha256, "CC0", "x", (Source((Part("url", url),)),))
asyncio.run(pull(entry, Store(Path(root)), Tell()))
"""


async def test_kill_9_then_resume(
    origin: Origin, entry: CatalogueEntry, store: Store, settings: PullSettings, body: bytes
) -> None:
    origin.hold_after = 2_500_000
    arguments = (f"{origin.url}/tiny.bin", str(store.root), str(entry.bytes), entry.sha256)
    environment = os.environ | {"PYTHONPATH": str(Path(codriver.__file__).parents[1])}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, *arguments, stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    async for line in process.stdout:
        if int(line) >= 1_000_000:
            break
    process.send_signal(signal.SIGKILL)
    await process.wait()
    assert store.state(entry) == "partial"
    assert not store.target(entry).exists()
    origin.hold_after = None
    assert (await pull(entry, store, None, settings)).read_bytes() == body
    assert int(origin.asked[1].removeprefix("bytes=").rstrip("-")) >= 1_000_000


async def test_no_room_is_said_before_the_first_byte(
    origin: Origin, make_entry: MakeEntry, store: Store, settings: PullSettings
) -> None:
    entry = make_entry(Part("url", f"{origin.url}/tiny.bin"), bytes=10**17)
    with pytest.raises(DiskFull, match=r"Not enough room in .*: 1000000000\d+ bytes needed, \d+ bytes free"):
        await pull(entry, store, None, settings)
    assert origin.asked == []
    assert store.state(entry) == "missing"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small disk needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_disk_that_fills_up_in_mid_pull(
    origin: Origin, entry: CatalogueEntry, settings: PullSettings, body: bytes, small_disk: Path
) -> None:
    store = Store(small_disk)
    origin.hold_after = 1_500_000
    task = asyncio.create_task(pull(entry, store, None, settings))
    await origin.held.wait()
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(7_000_000))
    origin.release.set()
    with pytest.raises(DiskFull, match=r"\d+ bytes needed, \d+ bytes free.*set CODRIVER_HOME to another disk"):
        await task
    assert store.state(entry) == "partial"
    ballast.unlink()
    origin.hold_after = None
    assert (await pull(entry, store, None, settings)).read_bytes() == body
