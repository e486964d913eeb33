"""A GGUF file of a language model as OpenVINO's IR, by OpenVINO GenAI's own reader of GGUF, with its tokenizer.

The file's own blocks become compressed weights of the graph. Limits: what that reader takes; of ``Q4_1`` it seems to
keep whole zeros only, which costs as much as rounding to 4 bits anew (docs/optimize.md has the figures).
The rule kept here: the folder has its name when it is whole.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from codriver.core.errors import BadModelFile, MissingExtra

from ..exportable import exportable
from .whole_folder import whole_folder

# As the engine of OpenVINO has them: tried with OpenVINO GenAI 2026.4; its converter names no other.
_READABLE = {"F32", "F16", "Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q8_0"}


def write_as_is(source: Path, target: Path, told: Callable[[str], None]) -> None:
    """``openvino_model.xml`` and its weights. Errors: those of :func:`exportable`; :class:`MissingExtra`,
    :class:`BadModelFile` for what OpenVINO does not convert, :class:`DiskFull`.
    """
    if importlib.util.find_spec("openvino_genai") is None:
        raise MissingExtra("OpenVINO reads the file: pip install 'codriver[openvino]'.")
    decoder = exportable(source)
    foreign = sorted(set(decoder.file.header.tensor_bytes) - _READABLE)
    if foreign:
        raise BadModelFile(f"{source} holds {', '.join(foreign)} tensors, which OpenVINO does not convert.")
    import openvino_genai

    with whole_folder(target) as folder:
        # The runtime writes beside the file that it reads.
        beside = folder / "model.gguf"
        beside.symlink_to(source.resolve())
        told("OpenVINO reads the file and writes its graph")
        try:
            openvino_genai.LLMPipeline(str(beside), "CPU", {"enable_save_ov_model": True})
        except RuntimeError as error:
            said = str(error).strip().splitlines()[-1][-200:]
            raise BadModelFile(f"OpenVINO does not convert {source}: {said}") from error
        beside.unlink()
        missing = [name for name in ("openvino_model.xml", "openvino_model.bin") if not (folder / name).is_file()]
        if missing:
            raise BadModelFile(f"OpenVINO wrote no {missing[0]} of {source}: this version does not save what it reads.")
