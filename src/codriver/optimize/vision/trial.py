"""Run as ``python -m codriver.optimize.vision.trial FILE``: the graph once, on zeros; stderr says why not."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import numpy as np

from codriver.core.errors import CodriverError

from .runtime import OrtGraph

_MOST_BYTES = 8 << 30


def main(file: Path) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        graph = OrtGraph(file, 1)
        graph.run(np.zeros(graph.shape, np.float32))
    except CodriverError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
