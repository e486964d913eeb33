from __future__ import annotations

import struct
from pathlib import Path

import pytest

from codriver.core.errors import BadModelFile, MissingFile
from codriver.core.gguf import read_header
from codriver.engines.openvino import why_not
from tests.unit.engines.gguf_files import write_gguf

LLAMA: dict[str, str | int | float] = {"general.architecture": "llama", "llama.context_length": 2048}


def small(path: Path, kind: int = 0) -> Path:
    size = {0: 1024, 1: 512, 3: 160, 10: 84}[kind]
    return write_gguf(path, LLAMA, [("a", (256,), kind, bytes(size)), ("b", (256,), 0, bytes(1024))])


def test_a_header_is_read(tmp_path: Path) -> None:
    header = read_header(small(tmp_path / "m.gguf", 3))
    assert header.architecture == "llama"
    assert header.context_tokens == 2048
    assert header.tensor_bytes == {"Q4_1": 160, "F32": 1024}


def test_a_real_header_is_read(model_file) -> None:  # type: ignore[no-untyped-def]
    header = read_header(model_file("smollm2.gguf"))
    assert set(header.tensor_bytes) == {"F32", "Q4_1", "Q8_0"}
    assert "<|im_start|>" in header.chat_template
    assert header.context_tokens == 8192


def test_every_cut_of_a_file_is_noticed(tmp_path: Path) -> None:
    whole = small(tmp_path / "m.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in range(0, len(whole), 7):
        cut.write_bytes(whole[:length])
        with pytest.raises(BadModelFile, match=rf"{cut} is not a usable GGUF file: ") as raised:
            read_header(cut)
        why = raised.value.message.split(": ", 1)[1]
        assert why.startswith("it is empty") == (length == 0)
        assert length == 0 or f"at byte {length}" in why or f" of {length}." in why or f"ends after {length}." in why
        assert raised.value.exit_code == 2 and "pull it again" not in why


def test_every_damaged_byte_ends_in_a_header_or_a_sentence(tmp_path: Path) -> None:
    whole = small(tmp_path / "m.gguf").read_bytes()
    for at in range(200):
        broken = bytearray(whole)
        broken[at] ^= 0xFF
        (tmp_path / "b.gguf").write_bytes(broken)
        try:
            read_header(tmp_path / "b.gguf")
        except BadModelFile as error:
            assert error.message.endswith(".")


def test_foreign_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(
        BadModelFile, match=rf"{tmp_path}/x\.gguf is not a usable .*: it does not begin with the letters"
    ):
        read_header(tmp_path / "x.gguf")
    (tmp_path / "v.gguf").write_bytes(struct.pack("<IIQQ", 0x46554747, 9, 0, 0))
    with pytest.raises(BadModelFile, match="GGUF version 9"):
        read_header(tmp_path / "v.gguf")
    with pytest.raises(MissingFile, match=r"nowhere\.gguf does not exist"):
        read_header(tmp_path / "nowhere.gguf")


def test_why_openvino_cannot(tmp_path: Path) -> None:
    assert why_not(small(tmp_path / "ok.gguf", 3)) is None
    reason = why_not(small(tmp_path / "k.gguf", 10))
    assert reason is not None and "holds Q2_K tensors" in reason and "Use the llama_cpp engine" in reason
    other = write_gguf(tmp_path / "o.gguf", {"general.architecture": "mamba"}, [])
    assert "architecture 'mamba'" in (why_not(other) or "")
