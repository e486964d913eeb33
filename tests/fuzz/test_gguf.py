"""The fuzz target on headers: by atheris for a few seconds where it is installed, and by hypothesis anywhere."""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codriver.core.errors import BadModelFile
from codriver.core.gguf import read_header
from tests.fuzz import gguf
from tests.fuzz.gguf import PAIRS, SEED, TENSORS, header, pair, tensor

HOSTILE = (0, 1, 7, 31, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1)
words = st.sampled_from(HOSTILE).flatmap(
    lambda value: st.sampled_from([struct.pack("<Q", value), struct.pack("<I", value & 0xFFFFFFFF), b"\x09\0\0\0" * 40])
)
places = st.integers(0, len(SEED) - 1)
changes = st.lists(st.tuples(places, words | st.binary(min_size=1, max_size=3), st.booleans()), max_size=4)


@settings(max_examples=300, deadline=None)
@given(changes, st.sampled_from([len(SEED), 4096, 65535]) | st.integers(0, len(SEED)))
def test_any_damage_ends_in_a_header_that_holds_or_in_a_sentence(
    changed: list[tuple[int, bytes, bool]], size: int
) -> None:
    data = bytearray(SEED)
    for at, new, grows in changed:
        data[at : at if grows else at + len(new)] = new
    gguf.one_input(struct.pack("<H", size) + bytes(data))


def test_the_seed_is_taken(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(SEED + bytes(4096))
    found = read_header(tmp_path / "m.gguf")
    assert [one.name for one in found.tensors] == [
        "token_embd.weight",
        "blk.0.attn_norm.weight",
        "blk.0.ffn_down.weight",
    ]
    gguf.check(tmp_path / "m.gguf")


def nested(depth: int) -> bytes:
    return struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQB", 0, 1, 7)


@pytest.mark.parametrize(
    ("pairs", "tensors", "told"),
    [
        (PAIRS, [tensor("w", (2**60,), 0, 0)], r"weights need \d+ bytes, for the tensor 'w', and the file ends after"),
        (PAIRS, [tensor("w", (2**62, 2**62, 16), 0, 0)], r"tensor 'w' is said to have \d+ × \d+ × 16 weights"),
        (PAIRS, [tensor("w", (32,), 0, 2**63)], "weights need 9223372036854"),
        (PAIRS, [tensor("w", (32,), 99, 2**63)], "weights need 9223372036854"),
        (PAIRS, [tensor("w", (32,), 0, 31)], r"tensor 'w' at byte \d+ is not on a multiple of 32"),
        (PAIRS, [tensor("w", (32,), 0, 0), tensor("w", (32,), 0, 128)], "two tensors with the name 'w'"),
        (PAIRS, [tensor("b", (32,), 0, 64), tensor("a", (32,), 0, 0)], "tensors 'a' and 'b' share bytes from"),
        (
            PAIRS,
            [tensor("w\x1b[31m\n", (32,), 0, 0)],
            r"name of its tensor at byte \d+ is 'w\\x1b\[31m\\n', which cannot",
        ),
        (PAIRS, [tensor("w\0x", (32,), 0, 0)], r"name of its tensor at byte \d+ is 'w\\x00x'"),
        (PAIRS, [tensor("", (32,), 0, 0)], r"name of its tensor at byte \d+ is ''"),
        (PAIRS, [tensor("w", (33,), 8, 0)], "rows of its tensor 'w' are no whole number of blocks of Q8_0"),
        (PAIRS, [tensor("w", (1,) * 9, 0, 0)], "reading stopped in its list of tensors, at byte"),
        ([pair("deep", 9, nested(1000))], [], "reading stopped in its metadata, at byte"),
        ([pair("long", 8, struct.pack("<Q", 2**63))], [], "reading stopped in its metadata, at byte"),
        ([pair("many", 9, struct.pack("<IQ", 8, 2**63))], [], "reading stopped in its metadata, at byte"),
        ([pair("wide", 9, struct.pack("<IQ", 12, 2**63))], [], "reading stopped in its metadata, at byte"),
        ([pair("general.alignment", 4, struct.pack("<I", 0))], [], "aligned to 0, which is no power of two"),
        ([pair("general.alignment", 4, struct.pack("<I", 2**31))], TENSORS, "weights begin at byte 2147483648"),
        ([pair("general.architecture", 8, gguf.text("\x1b[2J"))], [], r"names its architecture '\\x1b\[2J'"),
    ],
)
def test_hostile_headers_are_told(pairs: list[bytes], tensors: list[bytes], told: str, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(header(pairs, tensors) + bytes(4096))
    with pytest.raises(BadModelFile, match=told):
        read_header(file)
    gguf.check(file)


def test_a_few_seconds_of_atheris(tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("needs atheris, which has wheels for Linux on x86-64 and Python 3.11 to 3.13")
    (tmp_path / "seed").write_bytes(struct.pack("<H", 4096) + SEED)
    flags = ["-max_total_time=4", "-max_len=4096", "-rss_limit_mb=0", f"-artifact_prefix={tmp_path}/", "-seed=1"]
    ended = subprocess.run(
        [sys.executable, gguf.__file__, *flags, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert "Done " in ended.stderr
