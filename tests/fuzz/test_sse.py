"""The fuzz target on streams: by atheris for a few seconds where it is installed, and by hypothesis anywhere."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import sse

SEEDS = (
    b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}],"codriver":{}}\n\n',
    b'event: x\r\nid: 1\r\ndata: {"error":{"message":"m"}}\r\n\r\n: ping\n\ndata: [DONE]\n\n',
    b'data: {"choices":[{"text":"a","logprobs":{"tokens":["a"]}}],"x":1e999}\n\ndata:\ndata:\n\n',
)
pieces = st.sampled_from(
    [*SEEDS, b"data:", b"data: ", b"\n", b"\r\n", b"\r", b"{", b"[" * 2000, b'"', b":", b"x" * 300]
)
streams = st.lists(pieces | st.binary(max_size=8), max_size=12).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=4, max_size=4), streams)
def test_any_bytes_in_any_pieces_give_the_same_events_or_an_error_of_the_tree(cuts: bytes, stream: bytes) -> None:
    sse.one_input(cuts + stream)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_seeds_hold(seed: bytes) -> None:
    sse.one_input(b"\x01\x05\x20\x03" + seed)


def test_a_few_seconds_of_atheris(tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("needs atheris, which has wheels for Linux on x86-64 and Python 3.11 to 3.13")
    for number, seed in enumerate(SEEDS):
        (tmp_path / str(number)).write_bytes(b"\x01\x05\x20\x03" + seed)
    # No limit to memory: a process begins with the peak of the one that started it. The target checks what is held.
    flags = ["-max_total_time=4", "-max_len=2048", "-rss_limit_mb=0", f"-artifact_prefix={tmp_path}/", "-seed=1"]
    ended = subprocess.run(
        [sys.executable, sse.__file__, *flags, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert "Done " in ended.stderr
