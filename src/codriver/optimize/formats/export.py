"""Formats that a GGUF file can be written as, by name; each is loaded again by the runtime that it is for.

The rule kept here: a writer takes a file and a target, tells its steps, and leaves the whole target or nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from codriver.core.errors import BadConfigValue

Writer = Callable[[Path, Path, Callable[[str], None]], None]

FORMATS = {
    "compressed-tensors": "codriver.optimize.formats.hf_folder:write_w4a16",
    "compressed-tensors-int8": "codriver.optimize.formats.hf_folder:write_w8a16",
    "gguf": "codriver.optimize.formats.hf_reader:write_f16",
    "gguf-f32": "codriver.optimize.formats.hf_reader:write_f32",
    "onnx-genai": "codriver.optimize.formats.genai_folder:write_as_is",
    "onnx-genai-int8": "codriver.optimize.formats.genai_folder:write_int8",
    "onnx-genai-int4": "codriver.optimize.formats.genai_folder:write_int4",
    "onnx-genai-w8a8": "codriver.optimize.formats.genai_folder:write_w8a8",
    "openvino": "codriver.optimize.formats.openvino_folder:write_as_is",
    "safetensors": "codriver.optimize.formats.hf_folder:write_plain",
}


def export(source: Path, form: str, target: Path, told: Callable[[str], None]) -> None:
    """Write ``source`` as ``form`` to ``target``. Errors: :class:`BadConfigValue` for a format that is not known; those
    of the writer.
    """
    place = FORMATS.get(form)
    if place is None:
        raise BadConfigValue(f"'{form}' is no format to write; there are {', '.join(sorted(FORMATS))}.", param="to")
    module, _, name = place.partition(":")
    writer: Writer = getattr(importlib.import_module(module), name)
    writer(source, target, told)
