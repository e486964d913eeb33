from __future__ import annotations

from pathlib import Path

import pytest

from codriver.catalogue import CatalogueEntry, Part, Store, default_root, remove, verify
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


async def test_a_root_that_cannot_be_written(entry: CatalogueEntry, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(SetupError, match=r"Cannot write in .*file.*Set CODRIVER_HOME"):
        async with Store(blocked).writing(entry, lambda: None):
            pass
