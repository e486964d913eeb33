"""Log lines are structured and hold no text of a request and no key."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from codriver.observe.config import ObserveConfig
from codriver.observe.logs import configure_logs, mask

log = logging.getLogger("codriver.gateway")


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("codriver")
    before = root.handlers, root.level, own.level
    yield
    root.handlers, root.level, own.level = before[0], before[1], before[2]


def test_one_json_object_a_line_with_its_fields() -> None:
    out = io.StringIO()
    configure_logs(ObserveConfig(), out)
    log.info("listening on %s", "port 8000", extra={"engine": "vehicle", "seconds": 1.5, "path": {1}})
    log.debug("not shown")
    line = json.loads(out.getvalue())
    assert line["message"] == "listening on port 8000"
    assert (line["level"], line["logger"], line["engine"], line["seconds"]) == (
        "info",
        "codriver.gateway",
        "vehicle",
        1.5,
    )


def test_text_and_keys_are_blanked() -> None:
    out = io.StringIO()
    configure_logs(ObserveConfig(log_format="json"), out)
    extra = {"prompt": "my secret diary", "api_key": "abc", "note": "got Bearer abc.def-ghi and sk-abcdefghijk"}
    log.warning("call to https://u:p4ss@host/v1?key=hunter2 failed", extra=extra)
    written = out.getvalue()
    for secret in ("diary", "abc", "hunter2", "p4ss"):
        assert secret not in written


def test_an_exception_is_part_of_its_line() -> None:
    out = io.StringIO()
    configure_logs(ObserveConfig(log_format="json"), out)
    try:
        raise ValueError("bad Bearer sekrit")
    except ValueError:
        log.exception("failed")
    line = json.loads(out.getvalue())
    assert "ValueError" in line["error"]
    assert "sekrit" not in line["error"]


def test_text_lines_for_people() -> None:
    out = io.StringIO()
    configure_logs(ObserveConfig(log_format="text", log_level="debug"), out)
    log.debug("ready", extra={"port": 8000})
    assert "gateway: ready  port=8000" in out.getvalue()


def test_others_log_from_warnings_up() -> None:
    out = io.StringIO()
    configure_logs(ObserveConfig(log_level="debug"), out)
    logging.getLogger("asyncio").info("chatter")
    assert out.getvalue() == ""


def test_mask_leaves_ordinary_text_alone() -> None:
    assert mask("the key risk-averse driver asked for bearings") == "the key risk-averse driver asked for bearings"
