"""Does llama.cpp load and read a file? Asked in a process of its own, before a file that a user gave is loaded here.

llama.cpp aborts the whole process on some files (``GGML_ASSERT``), and refuses others with the reason in its log alone.
The child takes both: its death, or its last error line, becomes one sentence. Once per file and process; files that
were written here need no check. Run as ``python -m codriver.optimize.llama_check FILE``.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

from codriver.core.errors import BadModelFile, CodriverError
from codriver.core.gguf import read_header

from .llama_runtime import LlamaModel, tell_errors

_LIMIT_S = 600.0
_SPARE_BYTES = 16 << 30  # of addresses, besides the file twice: a hostile count must not take the machine's memory
_GENERAL = ("failed to load model", "failed to read tensor info", "failed to read key-value pairs")
_PREFIX = re.compile(r"^(llama_model_load: )?(error loading model: )*|^\S*/(?=[\w-]+\.(c|h|cpp|hpp):\d+: )")
_OTHERS = {"imatrix": "an importance matrix", "adapter": "an adapter", "mmproj": "a projector for images"}
_checked: set[tuple[int, int, int, int]] = set()


def check(file: Path) -> None:
    """Errors: those of ``read_header``; :class:`BadModelFile` with what llama.cpp said last."""
    header = read_header(file)
    stat = file.stat()
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if key in _checked:
        return
    kind = header.metadata.get("general.type", "model")
    if kind in _OTHERS:
        raise BadModelFile(f"{file} holds {_OTHERS[str(kind)]}, no model (its general.type is '{kind}').")
    if not header.architecture:
        raise BadModelFile(f"{file} does not say its architecture (general.architecture): it is no model to load.")
    if not header.tensors:
        raise BadModelFile(f"{file} holds no weights, only a vocabulary: it is no model to load.")
    command = [sys.executable, "-m", "codriver.optimize.llama_check", os.fsdecode(file)]
    env = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    try:
        done = subprocess.run(command, capture_output=True, env=env, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise BadModelFile(f"llama.cpp does not load {file}: it took more than {_LIMIT_S:.0f} s.") from None
    if done.returncode:
        raise BadModelFile(f"llama.cpp does not load {file}: {_why(done.returncode, done.stderr)}.")
    _checked.add(key)


def _why(code: int, said: bytes) -> str:
    lines = [line.strip() for line in said.decode(errors="replace").splitlines()]
    told = [line for line in lines if line and not any(one in line for one in _GENERAL)]
    ended = f"it was ended by {signal.Signals(-code).name}" if code < 0 else ""
    last = " ".join(_PREFIX.sub("", told[-1]).split()) if told else ""
    last = "".join(letter if letter.isprintable() else "?" for letter in last)[:300].rstrip(".")
    return ", ".join(one for one in (last, ended) if one) or f"it ended with {code}"


def main(file: Path) -> int:
    """What :func:`check` runs: load, and read a few tokens. 1 where that fails, with llama.cpp's errors on stderr."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    room = 2 * file.stat().st_size + _SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    tell_errors()
    try:
        with LlamaModel(file) as model, model.context(32, 1) as context:
            context.logits([*model.begin, *range(min(8, model.vocabulary))])
    except CodriverError as error:
        if not error.message.startswith("llama.cpp does not load"):
            print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
