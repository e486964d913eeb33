"""A fuzz target for what servers upstream send: the parser of events, and what reads an event.

By hand: ``python tests/fuzz/sse.py -runs=1000000`` (any of libFuzzer's flags; needs atheris). Properties: no error but
those of the tree, no more held than the limit, and the same events however the bytes are cut.
"""

from __future__ import annotations

import contextlib
import sys

from codriver.core.errors import CodriverError, UpstreamMalformed
from codriver.core.wire import SseParser, decode_chunk, decode_whole, encode_chunk, with_extension
from codriver.engines.openai_errors import error_in
from codriver.engines.openai_formats import decode_chat, decode_text

LIMIT_BYTES = 512


def events(pieces: list[bytes]) -> tuple[list[bytes], bool]:
    """The events of a stream, and whether it was refused as too large."""
    parser, found = SseParser(LIMIT_BYTES), []
    for piece in pieces:
        try:
            found += parser.feed(piece)
        except UpstreamMalformed:
            return found, True
        assert len(parser._buffer) + parser._data_bytes <= LIMIT_BYTES
        assert len(parser._data) <= LIMIT_BYTES
    return found, False


def read(payload: bytes) -> None:
    """What an engine makes of an event."""
    for decode in (decode_chunk, decode_whole, decode_chat, decode_text):
        with contextlib.suppress(CodriverError):
            chunk = decode(payload)
            encode_chunk(with_extension(chunk, {"engine": "e"}))
    error_in(payload)


def one_input(data: bytes) -> None:
    """The first bytes say where the rest is cut."""
    cuts, stream = data[:4], data[4:]
    whole, refused = events([stream])
    singly, refused_singly = events([stream[at : at + 1] for at in range(len(stream))])
    assert refused == refused_singly
    pieces, rest = [], stream
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    cut_up, refused_cut = events([*pieces, rest])
    assert refused_cut == refused
    if not refused:
        assert whole == singly == cut_up
    for payload in singly:
        read(payload)
    read(stream)


def main() -> None:
    import atheris

    atheris.instrument_func(SseParser.feed)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
