"""NNCF's default post-training quantisation, in the rivals' own environment: it imports nothing of Codriver.

Run as ``PYTHON compress_vision_rival.py SOURCE TARGET INPUTS``: an ONNX file, what to write (``.onnx``, or ``.xml`` for
OpenVINO's IR, which NNCF works on as OpenVINO reads the file), and an ``.npz`` whose arrays are the graph's inputs, one
a picture.
"""

from __future__ import annotations

import sys

import numpy as np


def main(source: str, target: str, inputs: str) -> None:
    # Only where the rivals are installed: Codriver itself has neither.
    import nncf  # type: ignore[import-not-found,unused-ignore]

    arrays = np.load(inputs)
    if target.endswith(".xml"):
        import openvino  # as it is in the rivals' environment

        made = nncf.quantize(openvino.convert_model(source), nncf.Dataset([arrays[key] for key in arrays.files]))
        openvino.save_model(made, target, compress_to_fp16=False)
        return
    import onnx

    model = onnx.load(source)
    name = model.graph.input[0].name
    onnx.save(nncf.quantize(model, nncf.Dataset([{name: arrays[key]} for key in arrays.files])), target)


if __name__ == "__main__":
    main(*sys.argv[1:])
