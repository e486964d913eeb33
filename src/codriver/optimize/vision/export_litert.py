"""From a TwinLiteNet checkpoint to LiteRT's ``.tflite``. Run as a script, in a toolkit's environment, where Codriver is
not installed:

    export_litert.py CHECKPOINT fp32|int8 OUT_FOLDER CALIBRATION_PHOTOS -- SCORED_PHOTOS

Writes ``model.tflite`` and, for the comparison, ``expected.npz``. The int8 one is the float32 one, rounded by
ai-edge-quantizer: what convolutions compute with, weights per channel, values by their range on the calibration photos;
inputs and outputs stay float32. The rest stays float32 too: integers for everything that it knows made the file
slower, as it has none for PReLU, and less like the net; and what it writes of a transposed convolution does not load.
PT2E, which the ``.pte`` file is rounded by, gives a net that litert-torch 0.10.0 does not convert.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import litert_torch

sys.path.append(str(Path(__file__).parent))
from twinlitenet import load, photo, write_expected  # type: ignore[import-not-found]

sys.path.pop()  # the other files there may have names of libraries


def main(checkpoint: Path, precision: str, out: Path, photos: list[str]) -> None:
    cut = photos.index("--")
    calibration, scored = ([photo(Path(name)) for name in names] for names in (photos[:cut], photos[cut + 1 :]))
    net = load(checkpoint)
    write_expected(net, scored, out / "expected.npz")
    sample = (scored[0],)
    print("converts the net", flush=True)
    made = litert_torch.convert(net, sample)
    part = out / "part.tflite"
    made.export(str(part))
    if precision == "int8":
        print(f"calibrates on {len(calibration)} photos", flush=True)
        rounded(part, [one.numpy() for one in calibration], out / "rounded.tflite")
        part.unlink()
        part = out / "rounded.tflite"
    part.replace(out / "model.tflite")


def rounded(source: Path, photos: list[Any], target: Path) -> None:
    """``photos``: float32 (1, 3, height, width). Errors: ``ValueError`` without any."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import qtyping, quantizer

    if not photos:
        raise ValueError("int8 needs photos that show what goes into the net")
    ((signature, names),) = Interpreter(str(source)).get_signature_list().items()
    (name,) = names["inputs"]
    way = quantizer.Quantizer(str(source))
    way.add_static_config(".*", qtyping.TFLOperationName.CONV_2D, activation_num_bits=8, weight_num_bits=8)
    seen = way.calibrate({signature: [{name: one} for one in photos]})
    way.quantize(seen).export_model(str(target))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    except ValueError as error:
        sys.exit(str(error))
