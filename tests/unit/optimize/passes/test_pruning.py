"""What is cut out of a model makes its file smaller, and llama.cpp runs what is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from codriver.core.artifact import load_artifact
from codriver.core.errors import BadConfigValue, BadModelFile
from codriver.optimize.decoder import read_decoder
from codriver.optimize.evaluate import Run, evaluate
from codriver.optimize.gguf_file import Changes, GgufFile, rewrite
from codriver.optimize.gptq import output_loss
from codriver.optimize.llama_runtime import LlamaModel
from codriver.optimize.optimise import Optimisation
from codriver.optimize.passes.cutting import losses, mended
from codriver.optimize.passes.prune_blocks import PruneBlocks, influence
from codriver.optimize.passes.prune_channels import PruneChannels
from codriver.optimize.passes.prune_heads import PruneHeads
from codriver.optimize.recipe import Workshop, recipe_of
from codriver.optimize.requirement import parse_requirements
from codriver.optimize.task import Settings
from tests.unit.engines.gguf_files import write_gguf


@pytest.fixture(scope="module")
def words(sentences: str) -> str:
    """Enough for four windows of 512 tokens."""
    return sentences[:15000]


def shop(tmp_path: Path, text: str) -> Workshop:
    return Workshop(tmp_path, lambda step: Run(1), text)


def logits(file: Path, text: str) -> np.ndarray:
    with LlamaModel(file) as model, model.context(64, 1) as context:
        return context.logits(model.tokens(text)[:60]).copy()


def test_the_block_that_does_nothing_goes_and_nobody_misses_it(tiny_model: Path, words: str, tmp_path: Path) -> None:
    source, idle = GgufFile(tiny_model), tmp_path / "idle.gguf"
    silent = {f"blk.0.{part}.weight": "F32" for part in ("attn_output", "ffn_down")}
    rewrite(source, idle, Changes(silent), lambda tensor: np.zeros_like(source.raw(tensor)))
    found = influence(idle, 2, words, 4, Run(1))
    assert found[0] == pytest.approx(0, abs=1e-6) and found[1] > 0.01
    made = tmp_path / "made.gguf"
    told = PruneBlocks(blocks=1, windows=4).apply(idle, made, shop(tmp_path, words))
    assert told.startswith("1 of 2 blocks went, by influence: 0 (")
    file = GgufFile(made)
    assert read_decoder(file).layers == 1
    kept = "blk.0.ffn_up.weight"
    assert file.raw(file[kept]).tobytes() == source.raw(source["blk.1.ffn_up.weight"]).tobytes()
    assert made.stat().st_size < 0.995 * idle.stat().st_size
    assert np.allclose(logits(made, words), logits(idle, words), atol=1e-3)


def test_the_group_that_nobody_listens_to_goes(tiny_model: Path, tiny_qwen2: Path, words: str, tmp_path: Path) -> None:
    """With its query heads, of which there are four for two groups."""
    source, deaf, made = GgufFile(tiny_model), tmp_path / "deaf.gguf", tmp_path / "made.gguf"
    outputs = {f"blk.{block}.attn_output.weight": "F32" for block in range(2)}

    def quiet(name: str) -> np.ndarray:
        weights = source.weights(source[name])
        gone = slice(0, 32) if name.startswith("blk.0") else slice(32, 64)  # another group in each block
        weights[:, gone] = 0
        return weights.view(np.uint8)

    rewrite(source, deaf, Changes(outputs), lambda tensor: quiet(tensor.name))
    told = PruneHeads(groups=1, windows=4).apply(deaf, made, shop(tmp_path, words))
    assert told == "1 of 2 key-value groups went in every block, with 2 query heads each"
    found = read_decoder(GgufFile(made))
    assert (found.heads, found.kv_heads, found.head_width) == (2, 1, 16)
    assert {t.name: t.shape for t in GgufFile(made)}["blk.1.attn_output.weight"] == (32, 64)
    assert np.allclose(logits(made, words), logits(deaf, words), atol=1e-3)
    with pytest.raises(BadModelFile, match=r"qwen2\.gguf is a qwen2: llama\.cpp reads none with fewer heads"):
        PruneHeads(groups=1).apply(tiny_qwen2, made, shop(tmp_path, words))


def test_channels_go_and_what_is_left_makes_good_for_them(tiny_model: Path, words: str, tmp_path: Path) -> None:
    made = tmp_path / "made.gguf"
    told = PruneChannels(share=0.5, multiple=32, windows=4).apply(tiny_model, made, shop(tmp_path, words))
    assert told == "64 of 128 channels went in every block"
    assert read_decoder(GgufFile(made)).channels == 64
    assert {t.name: t.shape for t in GgufFile(made)}["blk.1.ffn_down.weight"] == (64, 64)
    assert evaluate(made, tiny_model, words, 1, Run(1)).kl < 5


def test_least_squares_over_the_inputs_beat_leaving_out() -> None:
    drawn = np.random.default_rng(1)
    weights = drawn.standard_normal((20, 64)).astype(np.float32)
    given = (drawn.standard_normal((2000, 12)) @ drawn.standard_normal((12, 64))).astype(np.float32)
    given += 0.2 * drawn.standard_normal(given.shape).astype(np.float32)
    moment = given.T @ given / np.float32(2000)
    lost = losses(weights, moment, 8)
    assert lost[3] == pytest.approx(
        output_loss(weights[:, 24:32], 0 * weights[:, 24:32], moment[24:32, 24:32]), rel=1e-3
    )
    assert np.allclose(
        losses(weights, moment, 64), [losses(weights[:, [at]], moment[[at]][:, [at]], 1)[0] for at in range(64)]
    )
    kept = np.arange(0, 64, 2)
    without, made = np.zeros_like(weights), np.zeros_like(weights)
    without[:, kept], made[:, kept] = weights[:, kept], mended(weights, moment, kept)
    assert output_loss(weights, made, moment) < 0.3 * output_loss(weights, without, moment)


@pytest.mark.slow
def test_a_recipe_of_all_three_ends_in_a_rounded_artifact(short_model: Path, sentences: str, tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    recipe = recipe_of({"pass": [
        {"use": "prune-blocks", "blocks": 1, "windows": 4},
        {"use": "prune-heads", "groups": 1, "windows": 4},
        {"use": "prune-channels", "share": 1 / 3, "windows": 4},
    ]}, "test")  # fmt: skip
    sizes = {"windows": 4, "judged": 1, "sensed": 1, "bands": 1, "runs": 1, "threads": 1}
    settings = Settings(sentences, sentences[:20000], kinds=("Q4_0", "Q8_0"), recipe=recipe, **sizes)
    Optimisation(short_model, out, settings, lambda step: lambda done, of: None).run(parse_requirements("size<=30MB"))
    artifact, file = load_artifact(out), GgufFile(out / "model.gguf")
    assert [line.split(":")[0] for line in artifact.lineage[1:4]] == ["prune-blocks", "prune-heads", "prune-channels"]
    metadata = file.header.metadata
    assert metadata["llama.block_count"] == 1 and metadata["llama.feed_forward_length"] == 1024
    assert metadata["llama.attention.head_count"] == 6
    assert "blk.1.attn_q.weight" not in file and file["blk.0.attn_q.weight"].shape == (576, 384)
    assert {t.type for t in file if len(t.shape) == 2} <= {"Q4_0", "Q8_0"}
    assert artifact.files[0].size_bytes < 30e6


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (PruneBlocks(blocks=2), r"Of the 2 blocks of .*tiny\.gguf, 2 cannot go: one at least goes, and one stays"),
        (PruneBlocks(share=1.0), r"Of the 2 blocks of .*, 2 cannot go"),
        (PruneBlocks(share=0.1), r"Of the 2 blocks of .*, 0 cannot go"),
        (PruneHeads(groups=2), r"Of the 2 key-value groups of .*tiny\.gguf, 2 cannot go"),
        (PruneChannels(share=0.9), r"Of the 128 channels of .*, 0 cannot stay: some go, and some stay, a multiple of"),
        (PruneChannels(share=0.01, multiple=32), r"Of the 128 channels of .*, 128 cannot stay"),
        (PruneBlocks(blocks=1), r"The calibration text has 3 tokens; \d+ are needed"),
    ],
)  # fmt: skip
def test_a_share_that_leaves_nothing_or_takes_nothing_is_told(
    tiny_model: Path, tmp_path: Path, one: PruneBlocks | PruneHeads | PruneChannels, says: str
) -> None:
    with pytest.raises(BadConfigValue, match=says):
        one.apply(tiny_model, tmp_path / "out.gguf", shop(tmp_path, "A few words"))
    assert not list(tmp_path.iterdir())


def test_a_model_whose_inside_is_not_known_is_told(tiny_model: Path, tmp_path: Path) -> None:
    def refused(metadata: dict[str, str | int | float], says: str, kind: int = 0) -> None:
        file = write_gguf(tmp_path / "odd.gguf", metadata, [("blk.0.attn_q.weight", (32, 1), kind, bytes(128))])
        with pytest.raises(BadModelFile, match=says):
            PruneBlocks(blocks=1).apply(file, tmp_path / "out.gguf", shop(tmp_path, ""))

    refused({"general.architecture": "mamba"}, r"odd\.gguf is 'mamba'; what is inside is known here of llama, qwen2")
    llama: dict[str, str | int | float] = {"general.architecture": "llama"}
    refused(llama, r"The metadata of .*odd\.gguf has no single number 'llama\.embedding_length'")
    refused({**llama, "llama.expert_count": 8}, r"odd\.gguf is a mixture of experts")
    counts = ("embedding_length", "feed_forward_length", "context_length", "attention.head_count", "block_count")
    llama |= {f"llama.{name}": count for name, count in zip(counts, (32, 64, 128, 2, 5), strict=True)}
    refused(llama, r"odd\.gguf has no single number 'llama\.attention\.layer_norm_rms_epsilon'")
    llama["llama.attention.layer_norm_rms_epsilon"] = 1e-5
    refused({**llama, "llama.rope.freq_base": -1.0}, r"'llama\.rope\.freq_base' of .* is -1\.0, and must be above zero")
    refused(llama, r"The tensor 'blk\.0\.attn_q\.weight' of .*odd\.gguf is Q4_0; F32 or F16 is needed", 2)
    refused(llama, r"odd\.gguf says that it has 5 blocks, and there are tensors of 1")
