"""From a TwinLiteNet checkpoint to LiteRT's ``.tflite``. Run as a script, in a toolkit's environment, where Codriver is
not installed:

    export_litert.py CHECKPOINT fp32 OUT_FOLDER -- SCORED_PHOTOS

Writes ``model.tflite`` and, for the comparison, ``expected.npz``. Float32 alone: ``export.py`` says why.
"""

from __future__ import annotations

import sys
from pathlib import Path

import litert_torch

sys.path.append(str(Path(__file__).parent))
from twinlitenet import load, photo, write_expected  # type: ignore[import-not-found]

sys.path.pop()  # the other files there may have names of libraries


def main(checkpoint: Path, precision: str, out: Path, photos: list[str]) -> None:
    cut = photos.index("--")
    if precision != "fp32":
        raise ValueError(f"{precision} is not written here")
    scored = [photo(Path(name)) for name in photos[cut + 1 :]]
    net = load(checkpoint)
    write_expected(net, scored, out / "expected.npz")
    sample = (scored[0],)
    print("converts the net", flush=True)
    made = litert_torch.convert(net, sample)
    part = out / "part.tflite"
    made.export(str(part))
    part.replace(out / "model.tflite")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    except ValueError as error:
        sys.exit(str(error))
