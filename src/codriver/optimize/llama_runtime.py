"""A GGUF file in the runtime that will load it: token ids, logits of every position, what goes into each matrix.

llama.cpp's C functions in the engine's own wheel, by ``ctypes``. Its parameter structs are passed as bytes that the
library itself filled in; the few fields set here are found by their neighbours' documented defaults, and a library in
which they are not found is refused. Not for serving: the vehicle's engine is ``engines/llama_cpp``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from codriver.core.errors import BadModelFile, MissingExtra

from .ggml import Floats, library

_F32 = 0
_BYTES = 512  # more than any of its structs has
_I32_P = ctypes.POINTER(ctypes.c_int32)
_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_EVAL = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)
Taker = Callable[[str, str, Floats], None]


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


class _Tensor(ctypes.Structure):
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
        ("llama_batch_init", _Batch, [ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]),
        ("llama_batch_free", None, [_Batch]),
        ("llama_decode", ctypes.c_int32, [ctypes.c_void_p, _Batch]),
        ("llama_get_logits", ctypes.POINTER(ctypes.c_float), [ctypes.c_void_p]),
        ("llama_get_memory", ctypes.c_void_p, [ctypes.c_void_p]),
        ("llama_memory_clear", None, [ctypes.c_void_p, ctypes.c_bool]),
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

    @contextlib.contextmanager
    def context(self, tokens: int, threads: int, taker: Taker | None = None) -> Iterator[Context]:
        """Room to read up to ``tokens`` at once. ``taker`` is given each weight's name, and the name and the values of
        what it is multiplied with: (tokens, width), a view that lasts for the call.
        """
        failures: list[BaseException] = []
        watch = _EVAL(_watching(self._lib, taker, failures)) if taker else None
        address = ctypes.cast(watch, ctypes.c_void_p).value or 0 if watch is not None else 0
        params = _context_params(self._lib, tokens, threads, address)
        handle = self._lib.llama_init_from_model(self._model, params)
        if not handle:
            raise BadModelFile(f"llama.cpp cannot use {self.file} with {tokens} tokens of context.")
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
        found: Floats = np.ctypeslib.as_array(
            lib.llama_get_logits(self._handle), (len(tokens) - first, self._vocabulary)
        )
        return found


def _context_params(lib: ctypes.CDLL, tokens: int, threads: int, watch: int) -> _Params:
    params = lib.llama_context_default_params()
    raw = bytearray(params.raw)
    # n_ctx, n_batch, n_ubatch, n_seq_max; n_threads twice; the cache's two types (F16) after a callback and its data.
    threads_at = raw.find(struct.pack("<ii", 4, 4), 16, 64)
    types_at = raw.find(struct.pack("<ii", 1, 1), 64, 160)
    if (
        raw[:16] != struct.pack("<4I", 512, 2048, 512, 1)
        or threads_at < 0
        or types_at < 0
        or any(raw[types_at - 16 : types_at])
    ):
        raise MissingExtra("The library in xllamacpp has parameters of another llama.cpp than this is for.")
    struct.pack_into("<3I", raw, 0, tokens, tokens, tokens)
    struct.pack_into("<ii", raw, threads_at, threads, threads)
    struct.pack_into("<Q", raw, types_at - 16, watch)
    return _Params((ctypes.c_ubyte * _BYTES)(*raw))


def _watching(lib: ctypes.CDLL, taker: Taker, failures: list[BaseException]) -> Callable[[int, bool, int], bool]:
    """What ggml calls. An exception cannot pass through it: it ends the reading, and is raised behind it."""

    def watch(address: int, ask: bool, _: int) -> bool:
        try:
            return _watched(lib, taker, address, ask)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)
            return False

    return watch


def _watched(lib: ctypes.CDLL, taker: Taker, address: int, ask: bool) -> bool:
    """ggml asks of each operation whether its result is wanted, and shows it once it is there."""
    tensor = _Tensor.from_address(address)
    if lib.ggml_get_name(address) != tensor.name:
        raise MissingExtra("The library in xllamacpp has tensors of another llama.cpp than this is for.")
    if not tensor.src[0] or not tensor.src[1]:
        return False
    name = _Tensor.from_address(tensor.src[0]).name.decode(errors="replace")
    given = _Tensor.from_address(tensor.src[1])
    # Token ids look up rows; a norm's weight is no matrix.
    if not name.endswith(".weight") or name.endswith("norm.weight") or given.type != _F32:
        return False
    if ask:
        return True
    rows, width = int(given.ne[1] * given.ne[2] * given.ne[3]), int(given.ne[0])
    if given.nb[0] != 4 or given.nb[1] != 4 * width:
        raise BadModelFile(f"What goes into '{name}' does not lie in one piece, and cannot be read.")
    data = (ctypes.c_float * (rows * width)).from_address(given.data)
    taker(name, given.name.decode(errors="replace"), np.ctypeslib.as_array(data).reshape(rows, width))
    return True
