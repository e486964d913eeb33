"""Keys and values in fewer bits and fewer cells, on two layers of a real model in llama.cpp itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from codriver.core.errors import BadConfigValue
from codriver.optimize.evaluate import Run, evaluate
from codriver.optimize.ggml import Floats
from codriver.optimize.kv_cache import Reading, kivi, measure, most_looked_at, on_grids, read_losses
from codriver.optimize.llama_runtime import Cache, LlamaModel


def test_fewer_bits_are_further_from_the_reference(short_model: Path, sentences: str) -> None:
    with LlamaModel(short_model) as model:
        tokens = model.tokens(sentences)[:128]

        def off(cache: Cache) -> float:
            with model.context(128, 2, cache=cache) as context:
                return float(np.abs(context.logits(tokens, 120) - right).mean())

        with model.context(128, 2, cache=Cache("F32", "F32")) as context:
            right = context.logits(tokens, 120).copy()
        exact = off(Cache())
        assert exact < off(Cache("Q8_0", "Q8_0")) < off(Cache("Q4_0", "Q4_0"))
        # Keys alone and values alone, each by itself.
        assert off(Cache("Q4_0", "F16")) > 2 * exact < off(Cache("F16", "Q4_0")) / 2
        assert exact < off(Cache(keep=kivi(8))) < off(Cache(keep=kivi(4))) < off(Cache(keep=kivi(2)))


def test_files_are_scored_with_the_cache_that_is_asked_for(short_model: Path, sentences: str) -> None:
    fit = evaluate(short_model, short_model, sentences, 1, Run(2, cache=Cache("Q4_0", "Q4_0")))
    assert fit.kl > 1e-4 and fit.same_top < 1


def test_what_is_kept_of_rows_is_what_attention_sees(short_model: Path) -> None:
    """Rows kept as they are change nothing; values kept as nothing leave only what comes past attention."""
    seen: set[tuple[str, tuple[int, ...]]] = set()

    def same(side: str, rows: Floats) -> Floats:
        seen.add((side, rows.shape))
        return rows

    def nothing(side: str, rows: Floats) -> Floats:
        return np.zeros_like(rows)

    def failing(side: str, rows: Floats) -> Floats:
        raise MemoryError(side)

    with LlamaModel(short_model) as model:
        tokens = list(range(100, 116))

        def logits(cache: Cache) -> np.ndarray:
            with model.context(16, 2, cache=cache) as context:
                return context.logits(tokens).copy()

        plain = logits(Cache())
        assert np.array_equal(logits(Cache(keep=same)), plain)
        assert seen == {("k", (16, 192)), ("v", (16, 192))}
        assert np.abs(logits(Cache(keep=nothing)) - plain).max() > 0.1
        with pytest.raises(MemoryError, match=r"^[kv]$"):
            logits(Cache(keep=failing))


def test_grids_of_keys_are_per_channel_and_of_values_per_token() -> None:
    rows = np.random.default_rng(0).standard_normal((70, 64)).astype(np.float32)
    rows[:, 5] *= 1000  # a channel that stands out, as keys have them
    held = kivi(8)("k", rows)
    # An outlier's grid is its own: the others lose no more than a step of theirs.
    assert np.abs(held - rows)[:, :5].max() < 8 / 255
    assert np.array_equal(held[64:], rows[64:]), "a group that is not full is held as it is"
    values = kivi(8)("v", rows)
    assert np.abs(values - rows)[:, 32:].max() < 8 / 255 < np.abs(values - rows)[:, :32].max()
    assert len(np.unique(kivi(2)("v", rows)[0, 32:])) == 4
    assert np.array_equal(on_grids(np.full((2, 32), 0.5, np.float32), 4), np.full((2, 32), 0.5))


def test_a_window_of_cells_reads_a_text_of_any_length(short_model: Path, sentences: str) -> None:
    with LlamaModel(short_model) as model:
        tokens = model.tokens(sentences)[:448]
        with model.context(64, 2, cache=Cache(cells=448)) as context:
            whole = read_losses(context, tokens, Reading())
        with model.context(64, 2, cache=Cache(cells=256)) as context:
            window = read_losses(context, tokens, Reading(cells=256))
            assert context.read == 256
            assert np.allclose(read_losses(context, tokens, Reading(cells=256), 300), window[300:], atol=1e-2)
    assert whole.shape == window.shape == (447,)
    assert np.allclose(whole[:255], window[:255], atol=2e-3), "nothing was dropped yet"
    assert np.isfinite(window).all() and not np.allclose(whole[256:], window[256:], atol=1e-2)
    # Of a text that repeats after 1944 sentences only, a short memory knows nearly as much.
    assert abs(window[256:].mean() - whole[256:].mean()) < 0.5


def test_memory_falls_with_cells_and_bits(short_model: Path, sentences: str) -> None:
    told = []
    for reading in (Reading(cells=16384), Reading("Q4_0", "Q4_0", 16384), Reading(cells=256)):
        card = {one.metric: one for one in measure(short_model, sentences, 320, reading, 2)}
        assert card["ppl@320"].n == 159 and card["ppl@320"].low is not None
        told.append(card["rss@320"].value)
    # Two layers of 192 keys and values: 16384 cells of F16 take 25 MB.
    assert told[0] - told[1] > 15e6 and told[0] - told[2] > 20e6


def test_a_text_goes_on_behind_what_is_held_of_a_prompt(short_model: Path, sentences: str) -> None:
    whole, chosen, few = (
        {one.metric: one for one in measure(short_model, sentences, 640, reading, 2)}
        for reading in (Reading(), Reading(cells=300, attended=True), Reading(cells=132, attended=True))
    )
    told = chosen["ppl@640"]
    assert told.n == 319 and told.note.endswith(
        "620 cells, the second half scored, of the first half those that its end looks at"
    )
    # 300 of 320 are nearly all of it, 132 are not: what is held is what was chosen, at its own positions.
    far = [abs(np.log(one["ppl@640"].value / whole["ppl@640"].value)) for one in (chosen, few)]
    assert far[0] < 0.05 and far[0] < far[1]


def test_a_choice_by_attention_needs_values_in_16_bits() -> None:
    with pytest.raises(BadConfigValue, match="Values of Q8_0 need attention in one step"):
        Reading("Q8_0", "Q8_0", 512, attended=True).refuse()
    Reading("Q8_0", "F16", 512, attended=True).refuse()


def test_the_tokens_that_a_prompt_looks_at_most_are_held(short_model: Path, sentences: str) -> None:
    with LlamaModel(short_model) as model:
        prompt = model.tokens(sentences)[:320]
        held, memory = most_looked_at(model, prompt, 96, 2)
        assert len(held) == 96 and held == sorted(set(held)) and held[-32:] == list(range(288, 320))
        with model.context(32, 2, cache=Cache(cells=256, fused=False)) as context:
            context.resume(memory, len(prompt))
            assert context.read == 320
            told = context.more(prompt[:4])
            assert told.shape == (4, model.vocabulary) and np.isfinite(told).all()
            assert len(context.memory()) < 0.5 * len(memory) / 96 * 320
        with pytest.raises(BadConfigValue, match=r"400 cells choose from a prompt of more than 400 tokens, and hold"):
            most_looked_at(model, prompt, 400, 2)


@pytest.mark.parametrize(
    ("reading", "says"),
    [
        (Reading("Q9_0"), "The cache's keys cannot be 'q9_0'; allowed: f32, f16, q8_0"),
        (Reading(values="Q2_K"), "The cache's values cannot be 'q2_k'; allowed: "),
        (Reading(cells=100), "100 cells are too few: 4 hold the first tokens, and 128 more are needed"),
    ],
)
def test_what_cannot_be_is_told(short_model: Path, reading: Reading, says: str) -> None:
    with pytest.raises(BadConfigValue, match=says):
        measure(short_model, "text", 512, reading, 1)


def test_caches_that_cannot_be_made_are_told(short_model: Path) -> None:
    with pytest.raises(BadConfigValue, match=r"The text has \d+ tokens; 512 are to be read"):
        measure(short_model, "text", 512, Reading(), 1)
    with pytest.raises(BadConfigValue, match="Values of Q8_0 need attention in one step"):
        Cache(values="Q8_0", fused=False).refuse()
    with pytest.raises(BadConfigValue, match="can be changed in a cache of F16 only"):
        Cache("Q8_0", keep=kivi(4)).refuse()
