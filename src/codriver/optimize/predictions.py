"""What the reference predicts, kept in the work folder: trials are compared with it without reading it again.

As float32, so that figures are the same to the last bit. Measured on SmolLM2-135M in F32 beside much other work: 8.6 s
of processor time a window to work them out, 0.01 s to read them, at 50 MB a window; as float16 half of that, and a KL
of 0.0026778 for 0.0026772. The rule kept: where they would take more than ``LIMIT_BYTES``, or half of what the disk
has left, they are not kept.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codriver.core.writing import writing

from .evaluate import WINDOW, Pieces, pieces_of, predictions
from .ggml import Floats
from .llama_runtime import LlamaModel

LIMIT_BYTES = 4_000_000_000
_SCORED = WINDOW - WINDOW // 2 - 1


@dataclass(frozen=True)
class Kept:
    """``rows``: log-probabilities (positions, vocabulary) of each of ``pieces``, read as they are used."""

    pieces: Pieces
    rows: Sequence[Floats]


def kept_predictions(reference: Path, text: str, windows: int, threads: int, work: Path) -> Kept | None:
    """``None`` where they are too large to be kept. ``reference`` is known by its name, which says what it was made of.

    Errors: those of :func:`pieces_of`, ``LlamaModel`` and ``writing``.
    """
    with LlamaModel(reference) as model:
        pieces, vocabulary = pieces_of(model, text, windows), model.vocabulary
    shape = (len(pieces), _SCORED, vocabulary)
    size_bytes = 4 * shape[0] * shape[1] * shape[2]
    key = hashlib.sha256(repr((reference.name, reference.stat().st_size, pieces)).encode()).hexdigest()[:16]
    file = work / f"predictions-{key}.f32"
    if not file.exists():
        if size_bytes > min(LIMIT_BYTES, shutil.disk_usage(work).free // 2):
            return None
        part = file.with_name(file.name + ".part")
        with writing(file, part):
            with part.open("wb") as opened:
                for piece in pieces:
                    opened.write(np.ascontiguousarray(predictions(reference, [piece], threads)[0], np.float32).data)
            part.replace(file)
    return Kept(pieces, list(np.memmap(file, np.float32, "r", shape=shape)))
