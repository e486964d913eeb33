"""LiteRT (TensorFlow Lite) as an engine for the graphs of ``.tflite`` files, in a process of its own.

Extra ``litert``. Quantised inputs and outputs are taken and given as the integers that they are. Names are those of the
file's signature where it has one, else those of its tensors. Limits: CPU (XNNPACK, as LiteRT does by itself); see
``graph.py``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from codriver.core.config import setting

from .graph import GraphEngine, need_file
from .graph_process import Child, GraphProcess


@dataclass(frozen=True)
class LiteRtConfig:
    """One graph."""

    id: str = setting("litert", "The engine's name.")
    model: Path = setting(Path("model.tflite"), "The .tflite file.")
    locality: Literal["vehicle", "cloud"] = setting("vehicle", "Where the engine runs.")
    threads: int = setting(1, "Threads of one run.", least=1)
    load_s: float = setting(60.0, "Seconds that loading may take, before its process is ended.", least=1)
    run_s: float = setting(60.0, "Seconds that a run may take, before its process is ended.", least=0.1)
    python: Path = setting(Path(sys.executable), "A Python that has ai-edge-litert and NumPy.")


class LiteRt(GraphEngine):
    """Started by :meth:`start`."""

    @classmethod
    async def start(cls, config: LiteRtConfig) -> LiteRt:
        """Errors: :class:`MissingFile`, :class:`BadModelFile` for a file that is no usable graph."""
        need_file(config.id, config.model)
        script = Path(__file__).with_name("litert_child.py")
        child = Child(config.python, script, (str(config.model.absolute()), str(config.threads)))
        engine = cls(config.id, config.locality, config.model, GraphProcess(child, config.load_s, config.run_s))
        await engine.load("TensorFlow Lite")
        return engine
