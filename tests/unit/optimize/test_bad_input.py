"""Files that no model can be read from, each told in a sentence: most of them would end the process in llama.cpp."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from codriver.apps.cli.main import app
from codriver.core.errors import BadModelFile, CodriverError, MissingFile
from codriver.optimize.evaluate import Run, evaluate
from codriver.optimize.gguf_file import Changes, GgufFile, rewrite
from codriver.optimize.inspect import inspect
from codriver.optimize.llama_check import check
from codriver.optimize.rounding import write_reference
from tests.fuzz.gguf import text
from tests.unit.apps.test_optimize_cli import RUN
from tests.unit.engines.gguf_files import write_gguf


def with_number(source: Path, target: Path, key: str, value: int) -> Path:
    file = GgufFile(source)
    rewrite(file, target, Changes({}, {key: value}), file.raw)
    return target


def with_bytes(source: Path, target: Path, old: bytes, new: bytes) -> Path:
    whole = source.read_bytes()
    assert old in whole and len(old) == len(new)
    target.write_bytes(whole.replace(old, new, 1))
    return target


def with_weights(source: Path, target: Path, name: str, value: float) -> Path:
    """One weight of an F32 tensor is ``value``."""
    file = GgufFile(source)

    def data(tensor: object) -> np.ndarray:
        raw = file.raw(file[name]).copy()
        raw[4:8] = np.frombuffer(struct.pack("<f", value), np.uint8)
        return raw

    rewrite(file, target, Changes({name: "F32"}), data)
    return target


def test_what_llama_cpp_aborts_on_is_told(short_model: Path, tmp_path: Path) -> None:
    file = with_number(short_model, tmp_path / "layers.gguf", "llama.block_count", 4_294_967_295)
    told = r"llama\.cpp does not load .*layers\.gguf: llama-model\.cpp:\d+: GGML_ASSERT\(.*\) failed, .* SIGABRT\."
    with pytest.raises(BadModelFile, match=told):
        check(file)


def test_what_llama_cpp_refuses_is_told_in_its_words(short_model: Path, tmp_path: Path) -> None:
    cases = {
        "arch": (text("llama"), text("lloma"), r"unknown model architecture: 'lloma'\.$"),
        "tokenizer": (
            b"tokenizer.ggml.model",
            b"tokenizer.ggml.xodel",
            r"key not found in model: tokenizer\.ggml\.model",
        ),
        "missing": (b"blk.1.attn_q.weight", b"blk.1.attn_x.weight", r"tensor 'blk\.1\.attn_q\.weight' not found"),
        "shape": (
            text("blk.0.attn_q.weight") + struct.pack("<IQQ", 2, 576, 576),
            text("blk.0.attn_q.weight") + struct.pack("<IQQ", 2, 192, 1728),
            r"tensor 'blk\.0\.attn_q\.weight' has wrong shape; expected 576, 576, got 192, 1728",
        ),
    }
    for name, (old, new, told) in cases.items():
        file = with_bytes(short_model, tmp_path / f"{name}.gguf", old, new)
        with pytest.raises(BadModelFile, match=rf"llama\.cpp does not load \S*{name}\.gguf: .*{told}"):
            check(file)
        file.unlink()


def test_a_whole_file_is_checked_once(short_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(short_model)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("it was loaded again"))
    check(short_model)


def test_what_is_no_model_is_told_without_loading_it(tmp_path: Path) -> None:
    weights = [("blk.0.attn_q.weight.in_sum2", (4,), 0, bytes(16))]
    matrix = write_gguf(tmp_path / "imatrix.gguf", {"general.type": "imatrix"}, list(weights))
    with pytest.raises(
        BadModelFile, match=r"imatrix\.gguf holds an importance matrix, no model \(its general\.type is"
    ):
        check(matrix)
    assert inspect(matrix).weights == 4
    with pytest.raises(BadModelFile, match=r"nameless\.gguf does not say its architecture"):
        check(write_gguf(tmp_path / "nameless.gguf", {}, list(weights)))
    with pytest.raises(BadModelFile, match=r"words\.gguf holds no weights, only a vocabulary"):
        check(write_gguf(tmp_path / "words.gguf", {"general.architecture": "llama"}, []))


def foreign(folder: Path, short_model: Path) -> dict[str, str]:
    """Files by name, and what is said of each."""
    (folder / "empty.gguf").touch()
    (folder / "pickle.gguf").write_bytes(pickle.dumps({"weights": [1.0] * 100}))
    with zipfile.ZipFile(folder / "zip.gguf", "w") as archive:
        archive.writestr("a", "b" * 100)
    (folder / "folder.gguf").mkdir()
    os.mkfifo(folder / "pipe.gguf")
    (folder / "device.gguf").symlink_to("/dev/zero")
    (folder / "cut.gguf").write_bytes(short_model.read_bytes()[:-1000])
    (folder / "header.gguf").write_bytes(short_model.read_bytes()[:1_000_000])
    return {
        "empty.gguf": "it is empty",
        "pickle.gguf": "it does not begin with the letters GGUF",
        "zip.gguf": "it does not begin with the letters GGUF",
        "folder.gguf": r"is no artifact: it has no artifact\.json",
        "pipe.gguf": "is no file that a model can be read from",
        "device.gguf": "is no file that a model can be read from",
        "cut.gguf": r"weights need 36286912 bytes, for the tensor 'output_norm\.weight', and the file ends",
        "header.gguf": r"reading stopped in its metadata, at byte \d+ of 1000000",
    }


def test_foreign_and_cut_files_are_told_by_every_command(short_model: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("A few words. " * 1000)
    other = tmp_path / "other.txt"
    other.write_text("Some more of them. " * 1000)
    for name, told in foreign(tmp_path, short_model).items():
        file = str(tmp_path / name)
        for arguments in (
            ["inspect", file],
            ["evaluate", file, "--text", str(words)],
            [file, "--require", "kl<=1", "--calibration", str(words), "--scored", str(other), "--out", f"{file}.out"],
        ):
            ended = RUN.invoke(app, ["optimize", *arguments])
            assert isinstance(ended.exception, (BadModelFile, MissingFile)), (name, ended.exception)
            assert ended.exception.exit_code == 2 and name in ended.exception.message
            with pytest.raises(type(ended.exception), match=told):
                raise ended.exception
    assert not list(tmp_path.glob("*.out"))


def test_texts_that_are_none_are_told(short_model: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("The same words again. " * 100)
    (tmp_path / "link.txt").symlink_to(good)
    os.link(good, tmp_path / "hard.txt")
    (tmp_path / "copy.txt").write_text(good.read_text() + "\n")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.txt").write_bytes(b"abc\0def")
    os.mkfifo(tmp_path / "pipe.txt")
    bad.write_text("Short.")
    (tmp_path / "long.txt").write_text("Words that say nothing at all. " * 2000)
    for calibration, scored, told in (
        ("good", "link", "are the same file"),
        ("good", "hard", "are the same file"),
        ("good", "copy", r"copy\.txt is a part of the text for calibration .*good\.txt, or the same"),
        ("binary", "good", r"binary\.txt is not a text: it has a zero byte at character 3"),
        ("good", "pipe", r"pipe\.txt is no file that a text can be read from"),
        ("good", "nowhere", r"text .*nowhere\.txt does not exist"),
        ("empty", "good", r"calibration text is too short: its last fifth has 0 tokens, and 2048 are needed"),
        ("long", "bad", r"^The text has \d tokens; scoring needs 512 at least"),
    ):
        texts = ["--calibration", str(tmp_path / f"{calibration}.txt"), "--scored", str(tmp_path / f"{scored}.txt")]
        arguments = ["optimize", str(short_model), "--require", "kl<=1", *texts, "--out", str(tmp_path / "out")]
        ended = RUN.invoke(app, arguments)
        assert isinstance(ended.exception, CodriverError), ended.exception
        with pytest.raises(CodriverError, match=told):
            raise ended.exception
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_named(short_model: Path, tmp_path: Path, value: float) -> None:
    file = with_weights(short_model, tmp_path / "odd.gguf", "blk.1.ffn_norm.weight", value)
    told = r"tensor 'blk\.1\.ffn_norm\.weight' of .*odd\.gguf is damaged: 1 of its 576 weights are NaN or infinite"
    with pytest.raises(BadModelFile, match=told):
        write_reference(GgufFile(file), tmp_path / "reference.gguf", "F32")
    assert not list(tmp_path.glob("reference*"))
    with pytest.raises(BadModelFile, match=told):
        evaluate(file, None, "The words do not matter here. " * 100, 1, Run(2))


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    file = GgufFile(write_gguf(tmp_path / "m.gguf", {}, [("ids", (4, 2), 26, bytes(32))]))
    with pytest.raises(BadModelFile, match=r"tensor 'ids' of .*m\.gguf holds whole numbers \(I32\), no weights"):
        file.weights(file["ids"])
