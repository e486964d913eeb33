"""AutoRound's GGUF export, in an environment of its own: it imports nothing of Codriver.

Run as ``PYTHON quantise_autoround.py MODEL TARGET SCHEME IDS ITERATIONS``: a Hugging Face folder, the file to write,
AutoRound's name of what it writes ("gguf:q4_k_m"), an ``.npy`` of token ids (windows, tokens) to calibrate on, and its
iterations. It prints the one setting that is not in these, the number of threads.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np


def main(model: str, target: str, scheme: str, ids: str, iterations: str) -> None:
    # Only in that environment: Codriver itself has none of them.
    import torch
    from auto_round import AutoRound  # type: ignore[import-not-found,unused-ignore]
    from transformers import AutoModelForCausalLM, AutoTokenizer  # type: ignore[import-not-found,unused-ignore]

    windows = torch.from_numpy(np.load(ids).astype(np.int64))
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    given = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in windows]
    rounding = AutoRound(
        loaded, AutoTokenizer.from_pretrained(model), scheme=scheme, iters=int(iterations), dataset=given,
        nsamples=len(windows), seqlen=windows.shape[1], batch_size=1, device_map="cpu", enable_torch_compile=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=Path(target).parent) as folder:
        rounding.quantize_and_save(folder, format=scheme)
        (written,) = Path(folder).rglob("*.gguf")
        written.replace(target)
    print(f"AutoRound on {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main(*sys.argv[1:])
