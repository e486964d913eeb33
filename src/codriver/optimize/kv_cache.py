"""What a model holds of the tokens that it read, made smaller: in fewer bits, or fewer of them; and what that costs.

Types are llama.cpp's own, for keys and values apart. Keys per channel and values per token in a few bits (KIVI, Liu et
al. 2024, arXiv:2402.02750) is no type of llama.cpp: its arithmetic is done on the rows as they enter the cache, so that
its cost to the predictions is real, and its bytes are not. Eviction is real: first tokens and a window (StreamingLLM,
Xiao et al. 2024, arXiv:2309.17453) in a cache of that many cells, or the prompt's tokens that its end looks at most
(SnapKV, Li et al. 2024, arXiv:2404.14469), here one choice for all heads, because a cell of llama.cpp is held or not.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from codriver.core.artifact import Measured
from codriver.core.errors import BadConfigValue, BadModelFile

from .evaluate import log_softmax
from .ggml import Floats
from .latency import peak_bytes, resident_bytes
from .llama_runtime import SHARES, Cache, Context, Keeper, LlamaModel, Results

STEP = 64  # tokens that are read at once: what is held changes between steps
SINKS = 4
_LOOKS = 32  # tokens at a prompt's end whose attention chooses (SnapKV's observation window)
_NEAR = 7  # neighbours are chosen together (its pooling)


def kivi(bits: int, group: int = 32) -> Keeper:
    """Keys: each channel of ``group`` tokens spans its own grid; values: each ``group`` channels of a token. Tokens of
    a group that is not full are held as they are. Scale and least value are F16, as KIVI stores them.
    """

    def keep(side: str, rows: Floats) -> Floats:
        if side == "v":
            return on_grids(rows.reshape(-1, group), bits).reshape(rows.shape)
        full = len(rows) // group * group
        turned = rows[:full].reshape(-1, group, rows.shape[1]).swapaxes(1, 2)
        held: Floats = on_grids(turned, bits).swapaxes(1, 2).reshape(full, rows.shape[1])
        return np.concatenate([held, rows[full:]])

    return keep


def on_grids(values: Floats, bits: int) -> Floats:
    """What the last axis comes to on 2^bits levels between its least and its largest."""
    least = values.min(axis=-1, keepdims=True).astype(np.float16).astype(np.float32)
    span = values.max(axis=-1, keepdims=True) - least
    scale = (span / (2**bits - 1)).astype(np.float16).astype(np.float32)
    codes = np.rint((values - least) / np.where(scale > 0, scale, 1)).clip(0, 2**bits - 1)
    found: Floats = (codes * scale + least).astype(np.float32)
    return found


@dataclass(frozen=True)
class Reading:
    """How a long text is read: types, and ``cells`` (0: one for each token), of which ``sinks`` keep the first. Of the
    rest, the latest are held; with ``attended``, a prompt's tokens that its end looks at most, and all behind it.
    """

    keys: str = "F16"
    values: str = "F16"
    cells: int = 0
    sinks: int = SINKS
    attended: bool = False

    def refuse(self) -> None:
        """Errors: :class:`BadConfigValue`."""
        Cache(self.keys, self.values, fused=not self.attended).refuse()
        if self.cells and self.cells < self.sinks + 2 * STEP:
            raise BadConfigValue(
                f"{self.cells} cells are too few: {self.sinks} hold the first tokens, and {2 * STEP} more are needed.",
                param="cells",
            )


_PLAIN = Reading()


def read_losses(context: Context, tokens: list[int], reading: Reading, first: int = 0, goes_on: bool = False) -> Floats:
    """Of each token behind number ``first``, in nats: -log p. Where cells are full, the oldest behind the sinks are
    dropped. ``goes_on``: behind what the context holds already. Errors: those of ``Context.drop``.
    """
    held, losses = 0, []
    for begin in range(0, len(tokens), STEP):
        piece, follows = tokens[begin : begin + STEP], tokens[begin + 1 : begin + STEP + 1]
        over = held + len(piece) - reading.cells
        if reading.cells and over > 0:
            context.drop(reading.sinks, reading.sinks + over)
            held -= over
        skipped = min(max(0, first - begin), len(piece))
        logits = (context.more if begin or goes_on else context.logits)(piece, skipped)
        follows = follows[skipped:]
        if follows:
            losses.append(-log_softmax(logits)[np.arange(len(follows)), follows])
        held += len(piece)
    return np.concatenate(losses)


def measure(file: Path, text: str, tokens: int, reading: Reading, threads: int) -> list[Measured]:
    """Perplexity and memory of one text of so many tokens, in a process of its own. Errors: :class:`BadConfigValue` for
    cells or types that cannot be, or a text that is too short; :class:`BadModelFile` with what the process said last.
    """
    reading.refuse()
    with LlamaModel(file) as model:
        found = len(model.tokens(text))
    if found < tokens:
        raise BadConfigValue(f"The text has {found} tokens; {tokens} are to be read.")
    asked = msgspec.json.encode((str(file), text, tokens, reading, threads))
    command = [sys.executable, "-m", "codriver.optimize.kv_cache"]
    # What is freed is given back, as by a vehicle that serves: glibc would keep blocks of up to 32 MiB.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 << 10)}
    done = subprocess.run(command, input=asked, capture_output=True, check=False, env=environment)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"it ended with {done.returncode}"]
        raise BadModelFile(f"{file} could not be measured: {lines[-1][:200]}")
    return msgspec.json.decode(done.stdout, type=list[Measured])


def main(asked: bytes) -> list[Measured]:
    """What :func:`measure` runs in a process of its own. The text's second half is scored, where ``attended`` the half
    behind a prompt. ``held``: what the process has at the end of it, more than before it loaded the file; ``rss``: the
    most that it ever had more.
    """
    name, text, tokens, reading, threads = msgspec.json.decode(asked, type=tuple[str, str, int, Reading, int])
    before, resident = peak_bytes(), resident_bytes()
    with LlamaModel(Path(name)) as model:
        ids = [*model.begin, *model.tokens(text)][:tokens]
        half = len(ids) // 2
        room, memory = reading.cells or len(ids), b""
        if reading.attended and reading.cells:
            _, memory = most_looked_at(model, ids[:half], reading.cells, threads, reading)
            room += len(ids) - half
        cache = Cache(reading.keys, reading.values, room, fused=not memory)
        with model.context(STEP, threads, cache=cache) as context:
            if memory:
                context.resume(memory, half)
                del memory
                losses = read_losses(context, ids[half:], Reading(), goes_on=True)
            else:
                losses = read_losses(context, ids, reading, half)
            held, rss = resident_bytes() - resident, peak_bytes() - before
    losses = losses.astype(np.float64)
    mean, error = losses.mean(), losses.std(ddof=1) / len(losses) ** 0.5
    low, high = np.exp(mean - 1.96 * error), np.exp(mean + 1.96 * error)
    choice = ", of the first half those that its end looks at" if reading.attended else ""
    note = f"{reading.keys} keys, {reading.values} values, {cache.cells} cells, the second half scored{choice}"
    return [
        Measured(f"ppl@{tokens}", float(np.exp(mean)), "perplexity", len(losses), float(low), float(high), note),
        Measured(f"rss@{tokens}", float(rss), "bytes", 1, note=note),
        Measured(f"held@{tokens}", float(held), "bytes", 1, note=note),
    ]


def most_looked_at(
    model: LlamaModel, prompt: list[int], cells: int, threads: int, types: Reading = _PLAIN
) -> tuple[list[int], bytes]:
    """Positions of the prompt to hold in ``cells``, its end among them, and the memory of a context that holds just
    those. Errors: :class:`BadConfigValue` for a prompt that is too short.
    """
    if not _LOOKS < cells < len(prompt):
        raise BadConfigValue(
            f"{cells} cells choose from a prompt of more than {cells} tokens, and hold its last {_LOOKS}; "
            f"this one has {len(prompt)}.",
            param="cells",
        )
    before = len(prompt) - _LOOKS
    seen = np.zeros(before, np.float64)

    def take(name: str, values: Floats) -> None:
        if len(values) and context.read == before:
            # A context that was empty fills its cells in order: cell and position are the same.
            seen[:] += values[:, :before].sum(axis=0)

    cache = Cache(types.keys, types.values, len(prompt), fused=False)
    shares = Results(lambda name: name.startswith(SHARES), take)
    with model.context(STEP, threads, (None, shares), cache) as context:
        for begin in range(0, before, STEP):
            piece = prompt[begin : min(begin + STEP, before)]
            context.more(piece, len(piece))
        context.more(prompt[before:], _LOOKS)
        near = np.convolve(seen, np.ones(_NEAR) / _NEAR, mode="same")
        held = sorted(np.argsort(near)[len(near) - (cells - _LOOKS) :].tolist())
        for begin, end in _gaps(held, before):
            context.drop(begin, end, close=False)
        return [*held, *range(before, len(prompt))], context.memory()


def _gaps(held: list[int], end: int) -> list[tuple[int, int]]:
    """The runs of numbers below ``end`` that are not held."""
    edges = [-1, *held, end]
    return [(one + 1, two) for one, two in itertools.pairwise(edges) if two > one + 1]


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode(main(sys.stdin.buffer.read())).decode())
