"""ExecuTorch as an engine for the graphs of ``.pte`` files, in a process of its own.

Extra ``executorch``, which brings torch: ExecuTorch's Python binding needs it at run time, its C++ runtime does not.
``python`` may name the interpreter of another environment that has both. A ``.pte`` file names neither its inputs nor
its outputs: they are ``input_0``, ``output_0`` and so on, in their order. Limits: CPU, shapes as the file was exported
with; see ``graph.py``.
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
class ExecuTorchConfig:
    """One method of one program."""

    id: str = setting("executorch", "The engine's name.")
    model: Path = setting(Path("model.pte"), "The .pte file.")
    method: str = setting("forward", "The program's method that is run.")
    locality: Literal["vehicle", "cloud"] = setting("vehicle", "Where the engine runs.")
    threads: int = setting(1, "Threads of one run; 0 means as many as ExecuTorch finds best.", least=0)
    load_s: float = setting(120.0, "Seconds that loading may take, before its process is ended.", least=1)
    run_s: float = setting(60.0, "Seconds that a run may take, before its process is ended.", least=0.1)
    python: Path = setting(Path(sys.executable), "A Python that has executorch and torch.")


class ExecuTorch(GraphEngine):
    """Started by :meth:`start`."""

    @classmethod
    async def start(cls, config: ExecuTorchConfig) -> ExecuTorch:
        """Errors: :class:`MissingFile`, :class:`BadModelFile` for a file that is no usable program."""
        need_file(config.id, config.model)
        script = Path(__file__).with_name("executorch_child.py")
        child = Child(config.python, script, (str(config.model.absolute()), str(config.threads), config.method))
        engine = cls(config.id, config.locality, config.model, GraphProcess(child, config.load_s, config.run_s))
        await engine.load("ExecuTorch")
        return engine
