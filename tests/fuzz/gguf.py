"""A fuzz target for headers of GGUF files: what a real one says, cut, flipped, and grown.

By hand: ``python tests/fuzz/gguf.py -runs=1000000`` (any of libFuzzer's flags; needs atheris). Properties: no error but
``MissingFile`` and ``BadModelFile``, whose sentence can be printed and names the file; and of a header that is taken,
each tensor has a name of its own and lies in the file.
"""

from __future__ import annotations

import os
import struct
import sys
import tempfile
from pathlib import Path

from codriver.core.errors import BadModelFile, MissingFile
from codriver.core.gguf import read_header
from codriver.optimize.inspect import inspect

SIZE_BYTES = 1 << 16
_STRING, _ARRAY = 8, 9


def text(said: str) -> bytes:
    return struct.pack("<Q", len(said.encode())) + said.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def header(pairs: list[bytes], tensors: list[bytes]) -> bytes:
    return struct.pack("<IIQQ", 0x46554747, 3, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(tensors)


# As SmolLM2's begins, with a vocabulary of four.
PAIRS = [
    pair("general.architecture", _STRING, text("llama")),
    pair("general.name", _STRING, text("Smollm2 135M 8k Lc100K Mix1 Ep2")),
    pair("llama.block_count", 4, struct.pack("<I", 1)),
    pair("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)),
    pair("general.file_type", 4, struct.pack("<I", 3)),
    pair("tokenizer.ggml.add_bos_token", 7, b"\0"),
    pair("tokenizer.ggml.tokens", _ARRAY, struct.pack("<IQ", _STRING, 4) + b"".join(map(text, "abcd"))),
    pair("tokenizer.ggml.token_type", _ARRAY, struct.pack("<IQ4i", 5, 4, 1, 1, 3, 3)),
    pair("general.alignment", 4, struct.pack("<I", 32)),
]
TENSORS = [
    tensor("token_embd.weight", (64, 4), 8, 0),
    tensor("blk.0.attn_norm.weight", (64,), 0, 288),
    tensor("blk.0.ffn_down.weight", (64, 32), 3, 544),
]
SEED = header(PAIRS, TENSORS)


def one_input(data: bytes) -> None:
    """The first two bytes say how long the file is."""
    size = int.from_bytes(data[:2], "little")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        file = Path(folder) / "m.gguf"
        file.write_bytes(data[2:])
        os.truncate(file, max(size, 1))
        check(file)


def check(file: Path) -> None:
    try:
        found = read_header(file)
    except (BadModelFile, MissingFile) as error:
        assert str(file) in error.message and error.message.isprintable(), ascii(error.message)
        assert len(error.message) < 1000
        return
    names = [each.name for each in found.tensors]
    assert len(set(names)) == len(names) and all(name.isprintable() for name in names)
    assert all(0 <= each.offset <= each.offset + each.size_bytes <= file.stat().st_size for each in found.tensors)
    assert sum(each.size_bytes for each in found.tensors) <= file.stat().st_size
    looked = inspect(file)
    assert looked.bits >= 0 and all(sentence.isprintable() for sentence in looked.sentences())


def main() -> None:
    import atheris

    atheris.instrument_func(read_header)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
