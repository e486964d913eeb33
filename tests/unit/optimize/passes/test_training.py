"""Models that are trained: the arithmetic is llama.cpp's, an interrupt changes nothing, what was trained is kept."""

from __future__ import annotations

import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codriver.core.errors import BadConfigValue, BadModelFile, DiskFull, MissingExtra, MissingFile
from codriver.optimize import llama_runtime
from codriver.optimize.evaluate import Run, evaluate
from codriver.optimize.ggml import dequantise, quantise
from codriver.optimize.gguf_file import Changes, GgufFile, rewrite
from codriver.optimize.gptq import round_second_order
from codriver.optimize.llama_runtime import LlamaModel
from codriver.optimize.passes.prune_blocks import PruneBlocks
from codriver.optimize.recipe import Workshop, recipe_of

SMALL: dict[str, Any] = {"steps": 6, "tokens": 32, "sequences": 2, "every": 2}
PASSES = {"distil": {"rate": 1e-3}, "lora-recover": {"rank": 4}, "qat": {"rate": 1e-3, "table": "Q4_0"}}


@pytest.fixture(scope="module")
def words(sentences: str) -> str:
    """Enough for four windows of 512 tokens."""
    return sentences[:15000]


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="torch trains: pip install 'codriver[optimize-torch]'")


def shop(folder: Path, text: str, run: Run | None = None) -> Workshop:
    folder.mkdir(exist_ok=True)
    return Workshop(folder, lambda step: run or Run(1), text, seed=5)


def made_by(name: str, settings: dict[str, Any], source: Path, at: Workshop) -> tuple[bytes, str]:
    """What a pass writes, and what it says."""
    target = at.scratch / "made.gguf"
    (_, one), *_ = recipe_of({"pass": [{"use": name, **SMALL, **PASSES[name], **settings}]}, "test").passes
    told = one.apply(source, target, at)
    return target.read_bytes(), told


@pytest.fixture
def exact_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp with a cache of F32 and without flash attention, which rounds to F16 inside."""
    usual = llama_runtime._context_params

    def params(*how: Any) -> Any:
        raw = bytearray(usual(*how).raw)
        types_at, flash_at = raw.find(struct.pack("<ii", 1, 1), 64, 160), 52
        assert raw[flash_at : flash_at + 4] == struct.pack("<i", -1)
        struct.pack_into("<ii", raw, types_at, 0, 0)
        struct.pack_into("<i", raw, flash_at, 0)
        return llama_runtime._Params((llama_runtime.ctypes.c_ubyte * llama_runtime._BYTES)(*raw))

    monkeypatch.setattr(llama_runtime, "_context_params", params)


@pytest.mark.parametrize("which", ["plain_model", "tiny_qwen2"])
def test_logits_are_those_of_the_runtime(
    torch: Any, exact_runtime: None, request: pytest.FixtureRequest, words: str, which: str
) -> None:
    from codriver.optimize.passes.torch_llama import TorchDecoder, Weights

    file: Path = request.getfixturevalue(which)
    with LlamaModel(file) as model, model.context(200, 1) as context:
        ids = [*model.begin, *model.tokens(words)][:200]
        right = context.logits(ids).copy()
    found = TorchDecoder(file)
    with torch.no_grad():
        told, through = found.read(torch.tensor(ids), Weights(found.tensors))
    assert len(through) == 2 and np.abs(right).max() > 3
    assert np.abs(told.numpy() - right).max() < 1e-2


@pytest.mark.parametrize("name", PASSES)
def test_an_interrupted_run_ends_bit_for_bit_where_the_other_does(
    torch: Any, tiny_model: Path, words: str, tmp_path: Path, name: str
) -> None:
    whole, told = made_by(name, {}, tiny_model, shop(tmp_path / "whole", words))
    assert "6 steps over 384 tokens, loss " in told
    assert whole != tiny_model.read_bytes() and len(whole) == tiny_model.stat().st_size

    def stop(done: int, of: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made_by(name, {}, tiny_model, shop(tmp_path / "cut", words, Run(1, stop)))
    assert [file.name for file in (tmp_path / "cut").iterdir()] == ["checkpoint.pt"]
    steps: list[int] = []
    going_on = shop(tmp_path / "cut", words, Run(1, lambda done, of: steps.append(done)))
    assert made_by(name, {}, tiny_model, going_on) == (whole, told)
    assert steps == [5, 6], "it goes on from the last checkpoint, not from the start"
    other = replace(shop(tmp_path / "other", words), seed=6)
    assert made_by(name, {}, tiny_model, other)[0] != whole


@pytest.mark.parametrize("name", ["distil", "lora-recover"])
def test_what_pruning_lost_is_partly_won_back(
    torch: Any, tiny_model: Path, words: str, tmp_path: Path, name: str
) -> None:
    pruned = tmp_path / "pruned.gguf"
    PruneBlocks(blocks=1, windows=4).apply(tiny_model, pruned, shop(tmp_path, words))
    at = replace(shop(tmp_path / "own", words), reference=tiny_model)
    made_by(name, {"steps": 40, "tokens": 64, "rate": 3e-3}, pruned, at)
    before, after = (evaluate(f, tiny_model, words, 1, Run(1)).kl for f in (pruned, at.scratch / "made.gguf"))
    assert after < 0.8 * before


def test_a_student_ends_its_blocks_where_the_teacher_begins_the_next_that_it_has(
    torch: Any, plain_model: Path, tmp_path: Path
) -> None:
    from codriver.optimize.passes.distil import layer_map
    from codriver.optimize.passes.torch_llama import TorchDecoder

    teacher, source = TorchDecoder(plain_model), GgufFile(plain_model)
    last, first = tmp_path / "last.gguf", tmp_path / "first.gguf"
    one = {"llama.block_count": 1}
    names = {t.name: t.name.replace("blk.1.", "blk.0.") for t in source if t.name.startswith("blk.1.")}
    for file, gone, moved in ((last, "blk.0.", names), (first, "blk.1.", {})):
        dropped = frozenset(t.name for t in source if t.name.startswith(gone))
        rewrite(source, file, Changes({}, one, dropped, names=moved), source.raw)
    assert layer_map(teacher, teacher) == [0, 1]
    assert layer_map(TorchDecoder(last), teacher) == layer_map(TorchDecoder(first), teacher) == [1]


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_weights_are_rounded_as_ggml_rounds_them(torch: Any, plain_model: Path, kind: str) -> None:
    from codriver.optimize.passes.qat import fake

    drawn = np.random.default_rng(0)
    ties = np.round(drawn.standard_normal((500, 64)) * 4).astype(np.float32) / 8
    real = GgufFile(plain_model).weights(GgufFile(plain_model)["blk.0.attn_q.weight"])
    for weights in (
        real,
        ties,
        1e-4 * drawn.standard_normal((500, 64)).astype(np.float32),
        np.zeros((2, 64), np.float32),
    ):
        right = dequantise(kind, quantise(kind, weights), weights.shape)
        assert np.array_equal(fake(kind, torch.from_numpy(weights)).numpy(), right)


def test_rounding_gives_what_was_trained(torch: Any, tiny_model: Path, words: str, tmp_path: Path) -> None:
    at = shop(tmp_path / "own", words)
    _, told = made_by("qat", {"table": "Q8_0"}, tiny_model, at)
    assert told.startswith("15 matrices for Q4_0 (tables Q8_0), 6 steps")
    file, drawn = GgufFile(at.scratch / "made.gguf"), np.random.default_rng(1)
    for tensor in (t for t in file if len(t.shape) == 2):
        weights, kind = file.weights(tensor), "Q8_0" if tensor.name == "token_embd.weight" else "Q4_0"
        width = tensor.shape[0]
        given = drawn.standard_normal((4 * width, width)).astype(np.float32) * np.exp(drawn.standard_normal(width))
        moment = (given.T @ given / np.float32(len(given))).astype(np.float32)
        for data in (
            quantise(kind, weights), quantise(kind, weights, np.diagonal(moment).copy()),
            round_second_order(kind, weights, moment),
        ):  # fmt: skip
            assert np.array_equal(dequantise(kind, data, weights.shape), weights)


def test_what_cannot_be_trained_is_told(
    torch: Any, tiny_model: Path, plain_model: Path, words: str, tmp_path: Path
) -> None:
    def refused(error: type[Exception], says: str, settings: dict[str, Any], text: str = words) -> None:
        at = shop(tmp_path / "own", text)
        with pytest.raises(error, match=says):
            made_by("distil", settings, tiny_model, at)
        assert not list(at.scratch.iterdir())

    refused(BadConfigValue, r"The calibration text has 3 tokens; training needs \d+ at least", {}, "A few words")
    refused(MissingFile, r"The teacher .*none\.gguf does not exist", {"teacher": str(tmp_path / "none.gguf")})
    wider = {"teacher": str(plain_model)}
    refused(BadConfigValue, r"is 576 wide and .*tiny\.gguf 64: blocks cannot be followed; set hidden = 0", wider)
    refused(BadConfigValue, r"After \d steps the loss is \w+: a rate lower than 1e\+30 is needed", {"rate": 1e30})
    odd, source = tmp_path / "odd.gguf", GgufFile(tiny_model)
    rewrite(source, odd, Changes({}, names={"blk.1.ffn_up.weight": "blk.1.ffn_sideways.weight"}), source.raw)
    with pytest.raises(BadModelFile, match=r"odd\.gguf has a tensor 'blk\.1\.ffn_sideways\.weight', which is not kn"):
        made_by("qat", {}, odd, shop(tmp_path / "own", words))
    rewrite(source, odd, Changes({}, {"llama.rope.scaling.type": "yarn"}), source.raw)
    with pytest.raises(BadModelFile, match=r"odd\.gguf scales its positions by 'yarn', which cannot be trained here"):
        made_by("qat", {}, odd, shop(tmp_path / "own", words))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_keeps_the_checkpoint_before(torch: Any, tiny_model: Path, words: str, tmp_path: Path) -> None:
    at = shop(tmp_path / "own", words)
    (at.scratch / "checkpoint.part").symlink_to("/dev/full")
    with pytest.raises(DiskFull, match=r"no room for the checkpoint .*checkpoint\.pt; the one before it was kept"):
        made_by("distil", {}, tiny_model, at)
    assert not list(at.scratch.iterdir())


@pytest.mark.parametrize("name", PASSES)
def test_without_torch_the_pass_says_what_to_install(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    says = rf"The pass '{name}' cannot be used here: torch is not installed; add it with: pip install 'codriver\[opti"
    with pytest.raises(MissingExtra, match=says):
        recipe_of({"pass": [{"use": name}]}, "test")
