"""NNCF's default post-training quantisation, in the rivals' own environment: it imports nothing of Codriver.

Run as ``PYTHON compress_vision_rival.py SOURCE TARGET INPUTS``: an ONNX file, what to write, and an ``.npz`` whose
arrays are the graph's inputs, one a picture.
"""

from __future__ import annotations

import sys

import numpy as np


def main(source: str, target: str, inputs: str) -> None:
    # Only where the rivals are installed: Codriver itself has neither.
    import nncf  # type: ignore[import-not-found,unused-ignore]
    import onnx

    model = onnx.load(source)
    name = model.graph.input[0].name
    arrays = np.load(inputs)
    made = nncf.quantize(model, nncf.Dataset([{name: arrays[key]} for key in arrays.files]))
    onnx.save(made, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
