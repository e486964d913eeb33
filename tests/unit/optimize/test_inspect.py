from __future__ import annotations

from pathlib import Path

import pytest

from codriver.core.errors import BadModelFile
from codriver.optimize.inspect import inspect
from tests.unit.engines.gguf_files import Tensor, write_gguf

Q5_0, Q4_K, Q6_K, Q8_0 = 6, 12, 14, 8


def named(tmp_path: Path, file_type: int, tensors: list[Tensor]) -> Path:
    return write_gguf(tmp_path / "m.gguf", {"general.architecture": "llama", "general.file_type": file_type}, tensors)


def test_what_was_put_in_silently_is_told(tmp_path: Path) -> None:
    file = named(
        tmp_path,
        15,
        [
            ("blk.0.attn_q.weight", (576, 2), Q5_0, bytes(2 * 396)),
            ("blk.0.attn_v.weight", (576, 2), Q8_0, bytes(2 * 612)),
            ("blk.0.ffn_down.weight", (1536, 2), Q4_K, bytes(2 * 864)),
            ("blk.0.norm.weight", (576,), 0, bytes(2304)),
        ],
    )
    found = inspect(file)
    assert (found.named, found.nominal_bits, found.architecture) == ("Q4_K_M", 4.5, "llama")
    assert found.weights == 576 * 2 * 2 + 1536 * 2 + 576
    assert [(one.tensor.name, one.wanted, one.stored) for one in found.substitutions] == [
        ("blk.0.attn_q.weight", "Q4_K", "Q5_0"),
        ("blk.0.attn_v.weight", "Q6_K", "Q8_0"),
    ]
    assert found.substitutions[0].extra_bytes == round(576 * 2 / 8)
    told = found.sentences()
    assert told[0].startswith("It is called Q4_K_M (4.50 bits) and takes ")
    assert told[1].startswith("1 tensors hold Q5_0 in place of Q4_K: their rows of 576 are no whole blocks of 256.")
    shares = {one.type: one for one in found.shares()}
    assert shares["Q4_K"].bits == 4.5 and shares["F32"].tensors == 1
    assert sum(one.weights for one in shares.values()) == found.weights


def test_a_mix_that_was_meant_is_no_substitution(tmp_path: Path) -> None:
    tensors = [("a.weight", (512, 2), Q4_K, bytes(576)), ("b.weight", (512, 2), Q6_K, bytes(840))]
    assert inspect(named(tmp_path, 15, tensors)).substitutions == ()
    plain = [("a.weight", (576, 2), Q8_0, bytes(2 * 612))]
    assert inspect(named(tmp_path, 7, plain)).substitutions == ()


def test_a_file_that_says_no_type_is_told_by_its_tensors(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", {"general.architecture": "llama"}, [("a", (32, 1), Q8_0, bytes(34))])
    found = inspect(file)
    assert (found.named, found.nominal_bits, found.sentences()) == ("", 0.0, [])
    assert found.bits == 8.5


def test_rows_of_part_blocks_are_damage(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", {}, [("odd.weight", (40, 1), Q8_0, bytes(64))])
    with pytest.raises(BadModelFile, match=r"m\.gguf .*rows of its tensor 'odd\.weight' are no whole number of blocks"):
        inspect(file)
