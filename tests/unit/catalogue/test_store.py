from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from codriver.catalogue import CatalogueEntry, Part, Store, default_root, pull, remove, verify
from codriver.core.errors import ChecksumMismatch, MissingFile, SetupError


@pytest.fixture
def entry(make_entry) -> CatalogueEntry:
    return make_entry(Part("file", "/nowhere"))


def put(store: Store, entry: CatalogueEntry, content: bytes) -> Path:
    path = store.target(entry)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_root() == tmp_path / "home"
    monkeypatch.delenv("CODRIVER_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_root() == tmp_path / "cache" / "codriver"


def test_missing_names_the_command_that_mends_it(store: Store, entry: CatalogueEntry) -> None:
    assert store.state(entry) == "missing"
    with pytest.raises(MissingFile, match=r"tiny is not on this machine\. Run: codriver models pull tiny"):
        store.path(entry)


async def test_present_and_right(store: Store, entry: CatalogueEntry, body: bytes) -> None:
    path = put(store, entry, body)
    assert store.state(entry) == "present"
    assert store.path(entry) == path
    assert await verify(entry, store) == path


async def test_verify_removes_a_wrong_file(store: Store, entry: CatalogueEntry, body: bytes) -> None:
    path = put(store, entry, bytes(len(body)))
    with pytest.raises(ChecksumMismatch, match=rf"tiny\.bin is not .* removed: sha256 {entry.sha256} expected, got \w"):
        await verify(entry, store)
    assert not path.exists()


def test_a_cut_file_is_partial(store: Store, entry: CatalogueEntry, body: bytes) -> None:
    put(store, entry, body[:-1])
    assert store.state(entry) == "partial"
    with pytest.raises(MissingFile, match="only partly on this machine"):
        store.path(entry)


async def test_remove(store: Store, entry: CatalogueEntry, body: bytes) -> None:
    assert remove(entry, store) == 0
    put(store, entry, body)
    store.workspace(entry).mkdir()
    (store.workspace(entry) / "part").write_bytes(b"12345")
    async with store.writing(entry, lambda: None):
        with pytest.raises(SetupError, match="tiny is being pulled by another process"):
            remove(entry, store)
    assert remove(entry, store) == len(body) + 5
    assert store.state(entry) == "missing"


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1_000_000)
        byte = file.read(1)
        file.seek(1_000_000)
        file.write(bytes([byte[0] ^ 1]))


def test_a_flipped_byte_is_noticed_and_the_sentence_mends_it(store: Store, entry: CatalogueEntry, body: bytes) -> None:
    path = put(store, entry, body)
    assert store.checked(entry) == path
    flip(path)
    assert store.state(entry) == "present"  # nobody has read it since
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    sentence = rf"{path} was changed .*sha256 {entry.sha256} expected, got {got}\. .* Run: codriver models pull tiny"
    with pytest.raises(ChecksumMismatch, match=sentence):
        store.checked(entry)
    assert store.state(entry) == "corrupt"
    with pytest.raises(ChecksumMismatch, match=sentence):
        store.path(entry)
    assert path.exists()


async def test_a_pull_mends_a_corrupt_file(store: Store, make_entry, body: bytes, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(body)
    entry = make_entry(Part("file", str(tmp_path / "source")))
    path = await pull(entry, store)
    flip(path)
    with pytest.raises(ChecksumMismatch):
        store.checked(entry)
    assert await pull(entry, store) == path
    assert store.checked(entry) == path and path.read_bytes() == body


async def test_a_checked_file_is_not_read_again(store: Store, make_entry, body: bytes, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(body)
    entry = make_entry(Part("file", str(tmp_path / "source")))
    path = await pull(entry, store)
    # What no honest write can do: other bytes under the same inode, size and time of change. Only reading would tell.
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.checked(entry) == path
    with pytest.raises(ChecksumMismatch):
        await verify(entry, store)
    assert store.state(entry) == "missing" and not list(path.parent.iterdir())


def test_a_store_that_cannot_be_noted_in_still_checks(store: Store, entry: CatalogueEntry, body: bytes) -> None:
    path = put(store, entry, body)
    path.with_name("tiny.bin.verified").mkdir()  # stands in the way of the note
    assert store.checked(entry) == path
    flip(path)
    with pytest.raises(ChecksumMismatch, match="was changed since it was pulled"):
        store.checked(entry)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"sha256": 3}', "\xff"])
def test_a_damaged_note_counts_for_nothing(store: Store, entry: CatalogueEntry, body: bytes, text: str) -> None:
    path = put(store, entry, bytes(len(body)))
    path.with_name("tiny.bin.verified").write_text(text, encoding="latin-1")
    with pytest.raises(ChecksumMismatch):
        store.checked(entry)


async def test_a_root_where_no_folder_can_be(entry: CatalogueEntry) -> None:
    with pytest.raises(SetupError, match=r"Cannot write in /proc/x: .*Set CODRIVER_HOME") as raised:
        await pull(entry, Store(Path("/proc/x")))
    assert raised.value.exit_code == 2


async def test_a_root_that_cannot_be_written(entry: CatalogueEntry, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(SetupError, match=r"Cannot write in .*file.*Set CODRIVER_HOME"):
        async with Store(blocked).writing(entry, lambda: None):
            pass
