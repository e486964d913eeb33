"""What the child processes of ``graph_process.py`` share: reading requests, writing replies. It imports nothing of
Codriver, as its children may run where that is not installed; a child loads this file from beside its own.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

Named = tuple[str, str, Sequence[int]]  # name, dtype, shape


def private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Requests and replies. What a runtime prints goes to stderr from here on, and never between two replies.

    Where memory runs out the system ends this process first, which is started again, and not the one that it serves.
    """
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=1 << 20)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
            score.write("1000")
    except OSError:
        pass
    return requests, replies


def serve(
    loaded: Callable[[], tuple[list[Named], list[Named], Callable[[dict[str, Any]], list[tuple[Named, bytes]]]]],
    whats_wrong: Callable[[BaseException], str],
) -> None:
    """Load the graph, tell of it, then answer request after request until nobody asks any more."""
    requests, replies = private_pipes()
    try:
        inputs, outputs, run = loaded()
    except Exception as error:  # noqa: BLE001 - whatever a runtime raises for a file: it is told, and ends this process
        _tell(replies, {"error": whats_wrong(error)})
        return
    _tell(replies, {"inputs": inputs, "outputs": outputs})
    while head := requests.readline():
        feed = {name: (shape, requests.read(size)) for name, shape, size in json.loads(head)["inputs"]}
        try:
            found = run(feed)
        except Exception as error:  # noqa: BLE001 - it is told to the one who asked
            _tell(replies, {"error": whats_wrong(error)})
            continue
        _tell(
            replies,
            {"outputs": [named for named, _ in found], "sizes": [len(data) for _, data in found]},
            [data for _, data in found],
        )


def first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return line if line.endswith(".") else line + "."


def _tell(replies: BinaryIO, head: dict[str, Any], tensors: Sequence[bytes] = ()) -> None:
    for key in ("inputs", "outputs"):
        if key in head:
            head[key] = [
                {"name": n, "dtype": d, "shape": [int(size) if size >= 0 else "any" for size in s]}
                for n, d, s in head[key]
            ]
    line = json.dumps(head).encode()
    try:
        replies.write(b"%08x" % len(line) + line)
        for data in tensors:
            replies.write(data)
        replies.flush()
    except BrokenPipeError:
        sys.exit()
