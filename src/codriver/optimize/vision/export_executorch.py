"""From a TwinLiteNet checkpoint to ExecuTorch's ``.pte``, delegated to XNNPACK. Run as a script, in a toolkit's
environment, where Codriver is not installed:

    export_executorch.py CHECKPOINT fp32|int8 OUT_FOLDER CALIBRATION_PHOTOS -- SCORED_PHOTOS

Writes ``model.pte`` and, for the comparison, ``expected.npz``. The int8 one is quantised by PT2E: weights per channel,
activations per tensor by their range on the calibration photos; what XNNPACK has no integers for stays float32.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower

sys.path.append(str(Path(__file__).parent))
from twinlitenet import load, photo, write_expected  # type: ignore[import-not-found]

sys.path.pop()  # the other files there may have names of libraries


def main(checkpoint: Path, precision: str, out: Path, photos: list[str]) -> None:
    cut = photos.index("--")
    calibration, scored = ([photo(Path(name)) for name in names] for names in (photos[:cut], photos[cut + 1 :]))
    net = load(checkpoint)
    write_expected(net, scored, out / "expected.npz")
    print("exports the net", flush=True)
    sample = (scored[0],)
    if precision == "int8":
        net = quantised(net, sample, calibration)
    program = torch.export.export(net, sample)
    print("lowers it to XNNPACK", flush=True)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    part = out / "model.pte.part"
    part.write_bytes(lowered.to_executorch().buffer)
    part.replace(out / "model.pte")
    left = sorted({str(node.target) for node in lowered.exported_program().graph.nodes if "aten" in str(node.target)})
    print(f"not in XNNPACK, but in portable kernels: {', '.join(left) or 'nothing'}", flush=True)


def quantised(net: torch.nn.Module, sample: tuple[torch.Tensor], calibration: list[torch.Tensor]) -> torch.nn.Module:
    """Errors: ``ValueError`` without calibration photos."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    if not calibration:
        raise ValueError("int8 needs photos that show what goes into the net")
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(net, sample).module(), quantizer)
    with torch.no_grad():
        for number, picture in enumerate(calibration, start=1):
            prepared(picture)
            print(f"calibrates on photo {number} of {len(calibration)}", flush=True)
    made: torch.nn.Module = convert_pt2e(prepared)
    return made


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    except ValueError as error:
        sys.exit(str(error))
