"""AutoRound's GGUF export, in an environment of its own: it imports nothing of Codriver.

Run as ``PYTHON quantise_autoround.py MODEL TARGET SCHEME IDS ITERATIONS``: a Hugging Face folder, the file to write,
AutoRound's name of what it writes ("gguf:q4_k_m"), an ``.npy`` of token ids (windows, tokens) to calibrate on, and its
iterations.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np


def main(model: str, target: str, scheme: str, ids: str, iterations: str) -> None:
    # Only in that environment: Codriver itself has none of them.
    from auto_round import AutoRound  # type: ignore[import-not-found,unused-ignore]
    from transformers import (  # type: ignore[import-not-found,unused-ignore]
        AutoModelForCausalLM,
        AutoTokenizer,
        BatchEncoding,
    )

    windows = np.load(ids).astype(np.int64)
    given = [
        dict(BatchEncoding({"input_ids": row[None], "attention_mask": np.ones_like(row[None])}, tensor_type="pt"))
        for row in windows
    ]
    rounding = AutoRound(
        AutoModelForCausalLM.from_pretrained(model, dtype="float32"), AutoTokenizer.from_pretrained(model),
        scheme=scheme, iters=int(iterations), dataset=given, nsamples=len(windows), seqlen=windows.shape[1],
        batch_size=1, device_map="cpu", enable_torch_compile=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=Path(target).parent) as folder:
        rounding.quantize_and_save(folder, format=scheme)
        (written,) = Path(folder).rglob("*.gguf")
        written.replace(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
