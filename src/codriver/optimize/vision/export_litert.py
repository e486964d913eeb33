"""From a TwinLiteNet checkpoint to LiteRT's ``.tflite``. Run as a script, in a toolkit's environment, where Codriver is
not installed:

    export_litert.py CHECKPOINT fp32|int8 OUT_FOLDER CALIBRATION_PHOTOS -- SCORED_PHOTOS

Writes ``model.tflite`` and, for the comparison, ``expected.npz``. The int8 one is quantised by PT2E: weights per
channel, activations per tensor by their range on the calibration photos; inputs and outputs stay float32.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import litert_torch
import torch

sys.path.append(str(Path(__file__).parent))
from twinlitenet import load, photo, write_expected  # type: ignore[import-not-found]

sys.path.pop()  # the other files there may have names of libraries


def main(checkpoint: Path, precision: str, out: Path, photos: list[str]) -> None:
    cut = photos.index("--")
    calibration, scored = ([photo(Path(name)) for name in names] for names in (photos[:cut], photos[cut + 1 :]))
    net = load(checkpoint)
    write_expected(net, scored, out / "expected.npz")
    sample = (scored[0],)
    made: Any
    if precision == "int8":
        made = converted_int8(net, sample, calibration)
    else:
        print("converts the net", flush=True)
        made = litert_torch.convert(net, sample)
    part = out / "part.tflite"
    made.export(str(part))
    part.replace(out / "model.tflite")


def converted_int8(net: torch.nn.Module, sample: tuple[torch.Tensor], calibration: list[torch.Tensor]) -> Any:
    """Errors: ``ValueError`` without calibration photos."""
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    if not calibration:
        raise ValueError("int8 needs photos that show what goes into the net")
    quantizer = PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(net, sample).module(), quantizer)
    with torch.no_grad():
        for number, picture in enumerate(calibration, start=1):
            prepared(picture)
            print(f"calibrates on photo {number} of {len(calibration)}", flush=True)
    made = convert_pt2e(prepared, fold_quantize=False)
    print("converts the net", flush=True)
    return litert_torch.convert(made, sample, quant_config=QuantConfig(pt2e_quantizer=quantizer))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    except ValueError as error:
        sys.exit(str(error))
