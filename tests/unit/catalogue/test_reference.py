from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from codriver.catalogue import Catalogue, Part, Store, resolve
from codriver.core.errors import ChecksumMismatch, MissingFile, UnknownEntry


def test_a_name(make_entry, store: Store, body: bytes) -> None:
    entry = make_entry(Part("file", "/nowhere"))
    catalogue = Catalogue({entry.name: entry})
    with pytest.raises(MissingFile, match="codriver models pull tiny"):
        resolve("tiny", catalogue, store)
    path = store.target(entry)
    path.parent.mkdir(parents=True)
    path.write_bytes(body)
    file = resolve("tiny", catalogue, store)
    assert (file.path, file.sha256) == (path, entry.sha256)


def test_a_damaged_file_is_never_handed_out(make_entry, store: Store, body: bytes) -> None:
    entry = make_entry(Part("file", "/nowhere"))
    path = store.target(entry)
    path.parent.mkdir(parents=True)
    path.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    with pytest.raises(ChecksumMismatch, match=rf"{path} was changed .* Run: codriver models pull tiny"):
        resolve("tiny", Catalogue({entry.name: entry}), store)


def test_own_files(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    for text in (str(own), f"file:{own}", f"file://{own}", "own.gguf", "./own.gguf"):
        file = resolve(text, Catalogue({}), store)
        assert file.path == own
        assert file.name == "own"
    assert file.sha256 == hashlib.sha256(b"GGUF").hexdigest()


def test_what_is_not_there_is_said(store: Store) -> None:
    with pytest.raises(MissingFile, match=r"There is no model file /no/such\.gguf"):
        resolve("/no/such.gguf", Catalogue({}), store)
    with pytest.raises(UnknownEntry, match="Did you mean"):
        resolve("smollm2", Catalogue.load(), store)
