"""A GGUF file in the runtime that will load it: token ids, logits of every position, what goes into each matrix.

llama.cpp's C functions in the engine's own wheel, by ``ctypes``. Its parameter structs are passed as bytes that the
library itself filled in; the few fields set here are found by their neighbours' documented defaults, and a library in
which they are not found is refused. Not for serving: the vehicle's engine is ``engines/llama_cpp``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from codriver.core.errors import BadConfigValue, BadModelFile, MissingExtra

from .ggml import NUMBERS, Floats, library

_F32 = 0
_BYTES = 512  # more than any of its structs has
_I32_P = ctypes.POINTER(ctypes.c_int32)
_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_EVAL = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)
Taker = Callable[[str, str, Floats], None]
Keeper = Callable[[str, Floats], Floats]
CACHE_TYPES = ("F32", "F16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL")
SHARES = "kq_soft_max"
_CACHE_ROWS = re.compile(r"cache_([kv])_l\d+ \(view\)")


@dataclass(frozen=True)
class Cache:
    """What a context holds of the tokens it read. ``keys`` and ``values``: types by their names in GGUF files.
    ``cells``: for so many tokens; 0 for as many as are read at once. ``keep``: what is held in place of new rows
    (tokens, width) of ``k`` or ``v``, as F16 has it. ``fused``: attention in one step, as llama.cpp does by itself;
    without it the shares of attention can be looked at, and values cannot be of a quantised type.
    """

    keys: str = "F16"
    values: str = "F16"
    cells: int = 0
    keep: Keeper | None = None
    fused: bool = True

    def refuse(self) -> None:
        """Errors: :class:`BadConfigValue` naming what does not go together."""
        for side, kind in (("keys", self.keys), ("values", self.values)):
            if kind not in CACHE_TYPES:
                allowed = ", ".join(CACHE_TYPES).lower()
                raise BadConfigValue(f"The cache's {side} cannot be '{kind.lower()}'; allowed: {allowed}.", param=side)
        if not self.fused and self.values not in ("F16", "F32"):
            raise BadConfigValue(f"Values of {self.values} need attention in one step.", param="values")
        if self.keep is not None and ((self.keys, self.values) != ("F16", "F16") or not self.fused):
            raise BadConfigValue("What is kept can be changed in a cache of F16 only.", param="keys")


PLAIN_CACHE = Cache()
Shown = Callable[[str, Floats], None]


class _Params(ctypes.Structure):
    _fields_ = [("raw", ctypes.c_ubyte * _BYTES)]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_int32),
        ("token", _I32_P),
        ("embd", ctypes.c_void_p),
        ("pos", _I32_P),
        ("seq_count", _I32_P),
        ("seq", ctypes.POINTER(_I32_P)),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


class GgmlTensor(ctypes.Structure):
    """The begin of a ``ggml_tensor``; checked against the name that the library gives for it."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    ]


@dataclass(frozen=True)
class Results:
    """Whose results are shown, by llama.cpp's own name for each step ("l_out-3"): its values as (tokens, width)."""

    wanted: Callable[[str], bool]
    take: Shown


_SILENT = _LOG(lambda level, text, data: None)
_ERROR_LEVEL = 4
_ERRORS = _LOG(lambda level, text, data: os.write(2, text) and None if level == _ERROR_LEVEL else None)


@cache
def _llama() -> ctypes.CDLL:
    lib = library()
    for name, result, arguments in (
        ("llama_model_default_params", _Params, []),
        ("llama_context_default_params", _Params, []),
        ("llama_model_load_from_file", ctypes.c_void_p, [ctypes.c_char_p, _Params]),
        ("llama_init_from_model", ctypes.c_void_p, [ctypes.c_void_p, _Params]),
        ("llama_model_free", None, [ctypes.c_void_p]),
        ("llama_free", None, [ctypes.c_void_p]),
        ("llama_model_get_vocab", ctypes.c_void_p, [ctypes.c_void_p]),
        ("llama_vocab_n_tokens", ctypes.c_int32, [ctypes.c_void_p]),
        ("llama_vocab_get_add_bos", ctypes.c_bool, [ctypes.c_void_p]),
        ("llama_vocab_bos", ctypes.c_int32, [ctypes.c_void_p]),
        ("llama_vocab_is_eog", ctypes.c_bool, [ctypes.c_void_p, ctypes.c_int32]),
        ("llama_model_n_ctx_train", ctypes.c_int32, [ctypes.c_void_p]),
        ("llama_token_to_piece", ctypes.c_int32,
         [ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p, *[ctypes.c_int32] * 2, ctypes.c_bool]),
        ("llama_batch_init", _Batch, [ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]),
        ("llama_batch_free", None, [_Batch]),
        ("llama_decode", ctypes.c_int32, [ctypes.c_void_p, _Batch]),
        ("llama_get_logits", ctypes.POINTER(ctypes.c_float), [ctypes.c_void_p]),
        ("llama_get_memory", ctypes.c_void_p, [ctypes.c_void_p]),
        ("llama_memory_clear", None, [ctypes.c_void_p, ctypes.c_bool]),
        ("llama_memory_can_shift", ctypes.c_bool, [ctypes.c_void_p]),
        ("llama_memory_seq_rm", ctypes.c_bool, [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]),
        ("llama_memory_seq_add", None, [ctypes.c_void_p, *[ctypes.c_int32] * 4]),
        ("llama_state_seq_get_size", ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_int32]),
        ("llama_state_seq_get_data", ctypes.c_size_t,
         [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int32]),
        ("llama_state_seq_set_data", ctypes.c_size_t,
         [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int32]),
        ("llama_flash_attn_type_name", ctypes.c_char_p, [ctypes.c_int]),
        ("llama_log_set", None, [_LOG, ctypes.c_void_p]),
        ("llama_tokenize", ctypes.c_int32,
         [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, _I32_P, ctypes.c_int32, ctypes.c_bool, ctypes.c_bool]),
        ("ggml_get_name", ctypes.c_char_p, [ctypes.c_void_p]),
    ):  # fmt: skip
        function = getattr(lib, name, None)
        if function is None:
            raise MissingExtra(f"The library in xllamacpp has no {name}: it is of another llama.cpp than this is for.")
        function.restype, function.argtypes = result, arguments
    lib.llama_log_set(_SILENT, None)
    lib.llama_backend_init()
    return lib


def tell_errors() -> None:
    """llama.cpp's errors on stderr, as they come: for a process that may not outlive them."""
    _llama().llama_log_set(_ERRORS, None)


class LlamaModel:
    """One file, loaded. Errors: :class:`BadModelFile` for one that llama.cpp does not load, :class:`MissingExtra`."""

    def __init__(self, file: Path) -> None:
        self._lib = _llama()
        self._model = self._lib.llama_model_load_from_file(os.fsencode(file), self._lib.llama_model_default_params())
        if not self._model:
            raise BadModelFile(f"llama.cpp does not load {file}.")
        self.file = file
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self.vocabulary = int(self._lib.llama_vocab_n_tokens(self._vocab))
        self.room = int(self._lib.llama_model_n_ctx_train(self._model))  # tokens that it was made to read
        self.begin: list[int] = (
            [int(self._lib.llama_vocab_bos(self._vocab))] if self._lib.llama_vocab_get_add_bos(self._vocab) else []
        )

    def close(self) -> None:
        if self._model:
            self._lib.llama_model_free(self._model)
            self._model = None

    def __enter__(self) -> LlamaModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tokens(self, text: str) -> list[int]:
        """Token ids without a mark for the begin."""
        raw = text.encode()
        room = len(raw) + 8
        ids = (ctypes.c_int32 * room)()
        found = self._lib.llama_tokenize(self._vocab, raw, len(raw), ids, room, False, False)
        if found < 0:
            raise BadModelFile(f"llama.cpp cannot split text into tokens of {self.file}.")
        return list(ids[:found])

    def piece(self, token: int) -> bytes:
        """What a token writes: UTF-8, maybe of a part of a letter; nothing for a mark."""
        room = 256
        held = ctypes.create_string_buffer(room)
        found = int(self._lib.llama_token_to_piece(self._vocab, token, held, room, 0, False))
        if found < 0:
            raise BadModelFile(f"llama.cpp cannot write token {token} of {self.file}.")
        return held.raw[:found]

    def ends(self, token: int) -> bool:
        """Whether a token is a mark for the end of what is written."""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    @contextlib.contextmanager
    def context(
        self,
        tokens: int,
        threads: int,
        takers: tuple[Taker | None, Results | None] = (None, None),
        cache: Cache = PLAIN_CACHE,
    ) -> Iterator[Context]:
        """Room to read up to ``tokens`` at once. The first of ``takers`` is given each weight's name, and the name and
        the values of what it is multiplied with: (tokens, width), a view that lasts for the call; the second the
        results that it wants, likewise (of ``SHARES``, in a cache that is not ``fused``: heads × tokens, cells).

        Errors: those of ``Cache.refuse``; :class:`BadModelFile` where llama.cpp does not make it.
        """
        cache.refuse()
        failures: list[BaseException] = []
        wanted = any(takers) or cache.keep
        watch = _EVAL(_watching(self._lib, takers, cache, failures)) if wanted else None
        address = ctypes.cast(watch, ctypes.c_void_p).value or 0 if watch is not None else 0
        params = _context_params(self._lib, (tokens, cache), threads, address)
        handle = self._lib.llama_init_from_model(self._model, params)
        if not handle:
            raise BadModelFile(
                f"llama.cpp cannot use {self.file} with {max(tokens, cache.cells)} tokens of context, keys in "
                f"{cache.keys} and values in {cache.values}."
            )
        context = Context(self._lib, handle, (tokens, self.vocabulary), failures)
        try:
            yield context
        finally:
            context.close()


class Context:
    """Made by :meth:`LlamaModel.context`."""

    def __init__(self, lib: ctypes.CDLL, handle: int, sizes: tuple[int, int], failures: list[BaseException]) -> None:
        room, self._vocabulary = sizes
        self._lib, self._handle, self._failures = lib, handle, failures
        self._batch = lib.llama_batch_init(room, 0, 1)
        self._read = 0

    def close(self) -> None:
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._handle)

    def logits(self, tokens: Sequence[int], first: int = 0) -> Floats:
        """Of the positions from ``first`` on: (positions, vocabulary), a view until the next call. Reads from an empty
        memory.
        """
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._handle), True)
        self._read = 0
        return self.more(tokens, first)

    @property
    def read(self) -> int:
        """The position of the next token."""
        return self._read

    def drop(self, begin: int, end: int, close: bool = True) -> None:
        """The tokens from ``begin`` to before ``end`` are forgotten; what was read behind them moves up, or with
        ``close`` unset stays where it was. Errors: :class:`BadModelFile` for a model whose memory cannot do this.
        """
        memory = self._lib.llama_get_memory(self._handle)
        if close and end < self._read and not self._lib.llama_memory_can_shift(memory):
            raise BadModelFile("The memory of this model cannot be moved up.")
        if not self._lib.llama_memory_seq_rm(memory, 0, begin, end):
            raise BadModelFile("The memory of this model cannot be forgotten in part.")
        if close:
            if end < self._read:
                self._lib.llama_memory_seq_add(memory, 0, end, -1, begin - end)
            self._read -= end - begin

    def memory(self) -> bytes:
        """What is held of the tokens that were read, for :meth:`resume`."""
        size = self._lib.llama_state_seq_get_size(self._handle, 0)
        held = ctypes.create_string_buffer(size)
        found = int(self._lib.llama_state_seq_get_data(self._handle, held, size, 0))
        return held.raw[:found]

    def resume(self, memory: bytes, read: int) -> None:
        """Go on behind ``read`` tokens, of which another context held ``memory``. Errors: :class:`BadModelFile` where
        there are too few cells for it.
        """
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._handle), True)
        if not self._lib.llama_state_seq_set_data(self._handle, memory, len(memory), 0):
            raise BadModelFile(f"A memory of {len(memory):,} bytes does not fit into this context's cells.")
        self._read = read

    def more(self, tokens: Sequence[int], first: int = 0) -> Floats:
        """As :meth:`logits`, going on from what was read before."""
        lib, batch = self._lib, self._batch
        batch.count = len(tokens)
        for at, token in enumerate(tokens):
            batch.token[at], batch.pos[at], batch.seq_count[at] = token, self._read + at, 1
            batch.seq[at][0], batch.logits[at] = 0, at >= first
        code = lib.llama_decode(self._handle, batch)
        if self._failures:
            raise self._failures.pop()
        if code:
            raise BadModelFile(f"llama.cpp failed to read {len(tokens)} tokens (code {code}).")
        self._read += len(tokens)
        if first >= len(tokens):
            return np.zeros((0, self._vocabulary), np.float32)
        found: Floats = np.ctypeslib.as_array(
            lib.llama_get_logits(self._handle), (len(tokens) - first, self._vocabulary)
        )
        return found


def _context_params(lib: ctypes.CDLL, sizes: tuple[int, Cache], threads: int, watch: int) -> _Params:
    """``sizes``: how many tokens are read at once, and what holds them."""
    tokens, cache = sizes
    params = lib.llama_context_default_params()
    raw = bytearray(params.raw)
    # n_ctx, n_batch, n_ubatch, n_seq_max; n_threads twice; four choices left to the model (-1), the last of them
    # whether attention is fused, before rope's base and scale (0) and an extrapolation of -1; the cache's two types
    # (F16) after a callback and its data.
    threads_at = raw.find(struct.pack("<ii", 4, 4), 16, 64)
    choices = struct.pack("<4i3f", -1, -1, -1, -1, 0, 0, -1)
    choices_at = raw.find(choices, 16, 96)
    types_at = raw.find(struct.pack("<ii", 1, 1), 64, 160)
    if (
        raw[:16] != struct.pack("<4I", 512, 2048, 512, 1)
        or min(threads_at, choices_at, types_at) < 0
        or any(raw[types_at - 16 : types_at])
        or [lib.llama_flash_attn_type_name(number) for number in (0, 1)] != [b"disabled", b"enabled"]
    ):
        raise MissingExtra("The library in xllamacpp has parameters of another llama.cpp than this is for.")
    struct.pack_into("<3I", raw, 0, max(tokens, cache.cells), tokens, tokens)
    struct.pack_into("<ii", raw, threads_at, threads, threads)
    if cache != PLAIN_CACHE:
        struct.pack_into("<i", raw, choices_at + 12, int(cache.fused))
        struct.pack_into("<ii", raw, types_at, NUMBERS[cache.keys], NUMBERS[cache.values])
    struct.pack_into("<Q", raw, types_at - 16, watch)
    return _Params((ctypes.c_ubyte * _BYTES)(*raw))


def _watching(
    lib: ctypes.CDLL, takers: tuple[Taker | None, Results | None], cache: Cache, failures: list[BaseException]
) -> Callable[[int, bool, int], bool]:
    """What ggml calls. An exception cannot pass through it: it ends the reading, and is raised behind it."""
    taker, results = takers

    def watch(address: int, ask: bool, _: int) -> bool:
        try:
            tensor = GgmlTensor.from_address(address)
            if lib.ggml_get_name(address) != tensor.name:
                raise MissingExtra("The library in xllamacpp has tensors of another llama.cpp than this is for.")
            if cache.keep is not None and _kept(tensor, cache.keep, ask):
                return True
            shown = results is not None and _showed(results, tensor, ask)
            return (taker is not None and _watched(taker, tensor, ask)) or shown
        except BaseException as error:  # noqa: BLE001
            failures.append(error)
            return False

    return watch


def _kept(tensor: GgmlTensor, keeper: Keeper, ask: bool) -> bool:
    """Rows that were written into the cache are written once more, as ``keeper`` has them."""
    side = _CACHE_ROWS.fullmatch(tensor.name.decode(errors="replace"))
    if side is None or not tensor.src[0] or not tensor.src[1]:
        return False
    given, where = GgmlTensor.from_address(tensor.src[0]), GgmlTensor.from_address(tensor.src[1])
    if given.type != _F32 or where.type != NUMBERS["I64"]:
        return False
    width, rows = int(tensor.ne[0]), int(where.ne[0])
    if tensor.type != NUMBERS["F16"] or given.ne[0] != width or given.nb[1] != 4 * width or tensor.nb[1] != 2 * width:
        raise BadModelFile(f"The rows of '{tensor.name.decode()}' lie in another way than this knows.")
    if ask:
        return True
    values = np.ctypeslib.as_array((ctypes.c_float * (rows * width)).from_address(given.data)).reshape(rows, width)
    cells = np.ctypeslib.as_array((ctypes.c_int64 * rows).from_address(where.data))
    held = np.ctypeslib.as_array((ctypes.c_uint16 * (int(tensor.ne[1]) * width)).from_address(tensor.data))
    held.reshape(-1, width)[cells] = keeper(side[1], values).astype(np.float16).view(np.uint16)
    return True


def _showed(results: Results, tensor: GgmlTensor, ask: bool) -> bool:
    name = tensor.name.decode(errors="replace")
    if tensor.type != _F32 or not results.wanted(name):
        return False
    if not ask:
        results.take(name, _values(tensor, f"What '{name}' results in"))
    return True


def _watched(taker: Taker, tensor: GgmlTensor, ask: bool) -> bool:
    """ggml asks of each operation whether its result is wanted, and shows it once it is there."""
    if not tensor.src[0] or not tensor.src[1]:
        return False
    name = GgmlTensor.from_address(tensor.src[0]).name.decode(errors="replace")
    given = GgmlTensor.from_address(tensor.src[1])
    # Token ids look up rows; a norm's weight is no matrix.
    if not name.endswith(".weight") or name.endswith("norm.weight") or given.type != _F32:
        return False
    if not ask:
        taker(name, given.name.decode(errors="replace"), _values(given, f"What goes into '{name}'"))
    return True


def _values(tensor: GgmlTensor, called: str) -> Floats:
    rows, width = int(tensor.ne[1] * tensor.ne[2] * tensor.ne[3]), int(tensor.ne[0])
    if tensor.nb[0] != 4 or tensor.nb[1] != 4 * width:
        raise BadModelFile(f"{called} does not lie in one piece, and cannot be read.")
    data = (ctypes.c_float * (rows * width)).from_address(tensor.data)
    return np.ctypeslib.as_array(data).reshape(rows, width)
