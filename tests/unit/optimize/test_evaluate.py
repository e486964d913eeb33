"""Scoring files in the runtime that loads them, on a real model and on two layers of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from codriver.core.errors import BadConfigValue, BadModelFile
from codriver.optimize.calibrate import read_inputs
from codriver.optimize.evaluate import WINDOW, Run, compare, evaluate, pieces_of, predictions
from codriver.optimize.ggml import quantise
from codriver.optimize.gguf_file import Changes, GgufFile, rewrite
from codriver.optimize.llama_runtime import LlamaModel

RUN = Run(2)


def coarse(source: Path, target: Path, kind: str) -> Path:
    file = GgufFile(source)
    kinds = {t.name: kind for t in file if t.name.startswith("blk.") and len(t.shape) == 2}
    rewrite(file, target, Changes(kinds), lambda tensor: quantise(kind, file.weights(tensor)))
    return target


def test_logits_are_those_of_the_text_alone(model_file: Callable[[str], Path], sentences: str) -> None:
    with LlamaModel(model_file("smollm2.gguf")) as model:
        ids = model.tokens(sentences)[:64]
        with model.context(64, 2) as context:
            whole = context.logits(ids).copy()
            assert whole.shape == (64, model.vocabulary)
            assert np.isfinite(whole).all()
            # An empty memory each time, and the same when read in two parts.
            assert np.allclose(context.logits(ids, 32), whole[32:], atol=1e-4)
            context.logits(ids[:40])
            gone_on = np.abs(context.more(ids[40:])[-1] - whole[-1]).max()
            alone = np.abs(context.logits(ids[40:])[-1] - whole[-1]).max()
            # Not to the last bit: how many tokens are read at once decides which of ggml's kernels does it.
            assert gone_on < 0.1 * alone


def test_a_file_is_as_good_as_itself(short_model: Path, sentences: str) -> None:
    fit = evaluate(short_model, short_model, sentences, 1, RUN)
    assert fit.n == WINDOW // 2 - 1
    assert abs(fit.kl) < 1e-5 and fit.same_top == 1.0
    assert fit.perplexity > 1
    assert math.isnan(evaluate(short_model, None, sentences, 1, RUN).kl)


def test_coarser_types_are_further_from_the_reference(plain_model: Path, sentences: str, tmp_path: Path) -> None:
    with LlamaModel(plain_model) as model:
        pieces = pieces_of(model, sentences, 1)
    right = predictions(plain_model, pieces, 2)
    told = [
        compare(coarse(plain_model, tmp_path / f"{kind}.gguf", kind), right, pieces, RUN).kl
        for kind in ("Q8_0", "Q5_0", "Q4_0")
    ]
    assert 0 < told[0] < told[1] < told[2]
    # Read beside the candidate, the reference says the same as kept before.
    again = evaluate(tmp_path / "Q4_0.gguf", plain_model, sentences, 1, RUN)
    assert again.kl == pytest.approx(told[2], rel=1e-4)


def test_a_real_model_reads_english_better_than_chance(model_file: Callable[[str], Path], sentences: str) -> None:
    # The published model, on simple sentences that repeat: a broken reading of them would show in the thousands.
    assert evaluate(model_file("smollm2.gguf"), None, sentences, 1, RUN).perplexity < 40


def test_what_goes_into_a_matrix_is_what_the_layer_makes_of_the_text(short_model: Path, sentences: str) -> None:
    told: list[tuple[int, int]] = []
    # Of the three that share an input, not the one that comes first, and both others.
    whole = {"blk.0.attn_k.weight", "blk.0.attn_v.weight", "blk.1.ffn_down.weight"}
    found = read_inputs(short_model, sentences, 4, Run(2, lambda done, of: told.append((done, of))), whole.__contains__)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert found.n == 4 * WINDOW
    matrices = [t.name for t in GgufFile(short_model) if len(t.shape) == 2]
    assert all(name in found for name in matrices)
    assert np.array_equal(found.importance("blk.0.attn_q.weight"), found.importance("blk.0.attn_v.weight"))
    moment = found.moment("blk.1.ffn_down.weight")
    assert moment.shape == (1536, 1536)
    assert np.allclose(np.diagonal(moment), found.importance("blk.1.ffn_down.weight"), rtol=1e-3)
    shared = np.diagonal(found.moment("blk.0.attn_k.weight"))
    assert np.allclose(shared, found.importance("blk.0.attn_q.weight"), rtol=1e-3)
    with pytest.raises(KeyError):
        found.moment("blk.0.ffn_down.weight")


def test_an_error_while_inputs_are_taken_comes_through(short_model: Path, sentences: str) -> None:
    def take(weight: str, given: str, values: np.ndarray) -> None:
        raise MemoryError(weight)

    with LlamaModel(short_model) as model:
        ids = model.tokens(sentences)[:64]
        with model.context(64, 2, (take, None)) as context, pytest.raises(MemoryError, match=r"blk\.0\.attn_q\.weight"):
            context.logits(ids)


def test_texts_that_are_too_short_are_told(short_model: Path) -> None:
    with pytest.raises(BadConfigValue, match=r"The text has 2 tokens; scoring needs 512 at least"):
        evaluate(short_model, None, "Hello there", 1, RUN)
    with pytest.raises(BadConfigValue, match=r"calibration text has \d+ tokens; 2048 are needed, and more are better"):
        read_inputs(short_model, "Too short. " * 50, 4, RUN, lambda name: False)


def test_files_that_cannot_be_compared_are_told(short_model: Path, sentences: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(BadModelFile, match=r"llama\.cpp does not load .*broken\.gguf"):
        evaluate(broken, None, sentences, 1, RUN)
