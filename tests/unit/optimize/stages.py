"""One way through optimise that ends at a stage: by a signal to itself, or by a disk with no room from there on.

Run as ``python -m tests.unit.optimize.stages MODEL TEXT OUT STAGE SIGNAL BYTES``: at the step whose name begins with
STAGE the process gets SIGNAL, or may write no more than BYTES to a file; empty or 0: nothing. Prints the error's code
and sentence.
"""

from __future__ import annotations

import os
import resource
import signal as signals
import sys
from collections.abc import Callable
from pathlib import Path

from codriver.core.errors import CodriverError
from codriver.optimize.optimise import Optimisation, Settings
from codriver.optimize.requirement import parse_requirements

SIZES = {"windows": 4, "judged": 1, "sensed": 1, "bands": 1, "runs": 1}

WITHIN = ("sees what", "scores it")  # steps that tell their progress: the signal comes in the midst of them


def main(model: str, text: str, out: str, stage: str, signal: str, room: str) -> int:
    read = Path(text).read_text()
    # A shell that ran the tests in its background has its children ignore it.
    signals.signal(signals.SIGINT, signals.default_int_handler)

    def told(step: str) -> Callable[[int, int], None]:
        print(step, file=sys.stderr)
        meant = bool(stage) and step.startswith(stage)
        if meant and int(signal):
            if step.startswith(WITHIN):
                return lambda done, of: os.kill(os.getpid(), int(signal))
            os.kill(os.getpid(), int(signal))
        elif meant:
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), resource.RLIM_INFINITY))
        return lambda done, of: None

    try:
        settings = Settings(read, read[: len(read) // 2], kinds=("Q4_0", "Q8_0"), **SIZES)
        Optimisation(Path(model), Path(out), settings, told).run(parse_requirements("size<=8MB"))
    except CodriverError as error:
        print(f"{error.code}: {error.message}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
