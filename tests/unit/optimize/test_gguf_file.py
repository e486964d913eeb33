from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from codriver.core.errors import BadModelFile, DiskFull
from codriver.optimize.ggml import quantise
from codriver.optimize.gguf_file import Changes, GgufFile, rewrite
from tests.unit.engines.gguf_files import write_gguf

WEIGHTS = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)


@pytest.fixture
def source(tmp_path: Path) -> GgufFile:
    metadata: dict[str, str | int | float] = {"general.architecture": "llama", "general.file_type": 0, "a.b": 0.5}
    tensors = [("w", (64, 3), 0, WEIGHTS.tobytes()), ("n", (5,), 0, bytes(20)), ("x", (64, 3), 0, WEIGHTS.tobytes())]
    return GgufFile(write_gguf(tmp_path / "m.gguf", metadata, tensors))


def test_one_tensor_changes_and_the_rest_stays(source: GgufFile, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    changes = Changes(
        {"w": "Q8_0"}, {"general.file_type": 7, "codriver.note": "made", "codriver.n": 3}, frozenset({"x"})
    )
    rewrite(source, target, changes, lambda tensor: quantise("Q8_0", source.weights(tensor)))
    found = GgufFile(target)
    assert found.header.metadata == {
        "general.architecture": "llama", "general.file_type": 7, "a.b": 0.5, "codriver.note": "made", "codriver.n": 3,
    }  # fmt: skip
    assert [(t.name, t.type, t.shape) for t in found] == [("w", "Q8_0", (64, 3)), ("n", "F32", (5,))]
    assert np.allclose(found.weights(found["w"]), WEIGHTS, atol=0.02)
    assert found.raw(found["n"]).tobytes() == bytes(20)
    assert all(tensor.offset % 32 == 0 for tensor in found)
    assert not list(tmp_path.glob("*.part"))


def test_nothing_half_written_stays(source: GgufFile, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    with pytest.raises(BadModelFile, match=r"tensor 'w' of .*m\.gguf takes 204 bytes as Q8_0, and 10 were made"):
        rewrite(source, target, Changes({"w": "Q8_0"}), lambda tensor: np.zeros(10, np.uint8))

    def full(tensor: object) -> np.ndarray:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFull, match=r"no room for .*out\.gguf; nothing of it was kept"):
        rewrite(source, target, Changes({"w": "Q8_0"}), full)
    with pytest.raises(KeyboardInterrupt):
        rewrite(source, target, Changes({"w": "Q8_0"}), lambda tensor: (_ for _ in ()).throw(KeyboardInterrupt))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf"]


def test_a_text_that_is_there_cannot_be_set(source: GgufFile, tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match=r"metadata 'a\.b' of .* is not a number that can be set"):
        rewrite(source, tmp_path / "out.gguf", Changes({}, {"a.b": 1}), source.raw)
    with pytest.raises(BadModelFile, match=r"metadata 'general\.architecture' of .* is not a number that can be set"):
        rewrite(source, tmp_path / "out.gguf", Changes({}, {"general.architecture": "x"}), source.raw)


def test_a_type_that_nobody_knows_is_named(tmp_path: Path) -> None:
    file = GgufFile(write_gguf(tmp_path / "m.gguf", {}, [("odd", (32, 1), 77, bytes(32))]))
    with pytest.raises(BadModelFile, match=r"tensor 'odd' of .*m\.gguf has a type that is not known: type 77"):
        file.raw(file["odd"])


def test_a_tensor_gets_another_shape_and_another_its_name(source: GgufFile, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    changes = Changes({}, dropped=frozenset({"x"}), shapes={"w": (32, 2), "n": (3,)}, names={"w": "x"})
    rewrite(
        source,
        target,
        changes,
        lambda tensor: quantise("F32", source.weights(tensor)[:2, : 32 if tensor.name == "w" else 3]),
    )
    found = GgufFile(target)
    assert [(t.name, t.type, t.shape) for t in found] == [("x", "F32", (32, 2)), ("n", "F32", (3,))]
    assert np.array_equal(found.weights(found["x"]), WEIGHTS[:2, :32])
    with pytest.raises(BadModelFile, match="Rows of 40 of the tensor 'w' are no whole number of blocks of Q8_0"):
        rewrite(source, target, Changes({"w": "Q8_0"}, shapes={"w": (40, 3)}), source.raw)
    with pytest.raises(BadModelFile, match=r"tensor 'w' of .* takes 256 bytes as F32, and 768 were made"):
        rewrite(source, target, Changes({}, shapes={"w": (32, 2)}), source.raw)
