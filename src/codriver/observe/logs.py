"""Structured logs through the standard library: one JSON object a line on stderr, or a line of text on a terminal.

A field is given with ``extra``: ``log.info("engine loaded", extra={"engine": "vehicle", "seconds": 2.1})``.
Rule: no line holds a request's text, an answer's text or a key. Fields with such names are blanked, and what looks
like a key is masked in every string; this is the second line of defence, not a licence to log them.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import msgspec
from opentelemetry import trace

from .config import ObserveConfig

ROOT = "codriver"
REDACTED = "[redacted]"
_MOST_CAUSES = 5
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_PRIVATE = re.compile(
    r"^(prompt|messages?_text|content|text|answer|completion|input|body|raw|arguments|headers"
    r"|authorization|api_?keys?|key|secret|password|cookie)$|_(api_?key|secret|password)$",
    re.IGNORECASE,
)
_KEY = re.compile(r"(?i)(bearer\s+)[^\s\"',;]+|\bsk-[A-Za-z0-9_-]{6,}")
_URL_SECRET = re.compile(r"(?i)([?&](?:api_?key|key|token|secret)=)[^&\s]+|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
_LEVEL_MARK = {"DEBUG": "·", "INFO": " ", "WARNING": "!", "ERROR": "✗", "CRITICAL": "✗"}


def mask(text: str) -> str:
    """``text`` with bearer tokens, ``sk-…`` keys, keys in query strings and passwords in URLs blanked."""
    text = _KEY.sub(lambda m: (m[1] or "") + REDACTED, text)
    return _URL_SECRET.sub(lambda m: (m[1] or "") + REDACTED, text)


def where(error: BaseException) -> str:
    """The types of an error and its causes, each with the lines it came through, and nothing of what it says."""
    told: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(told) < _MOST_CAUSES:
        frames = traceback.extract_tb(cause.__traceback__)
        lines = " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
        told.append(f"{type(cause).__name__} at {lines}")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "; because of ".join(told)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in vars(record).items():
        if name in _STANDARD:
            continue
        if _PRIVATE.search(name):
            fields[name] = REDACTED
        else:
            fields[name] = mask(value) if isinstance(value, str) else value
    return fields


class JsonLines(logging.Formatter):
    """``time`` (UTC, ISO 8601), ``level``, ``logger``, ``message``, the fields, ``error`` (a traceback), trace ids."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": mask(record.getMessage()),
        }
        line.update(_fields(record))
        if record.exc_info:
            line["error"] = mask(self.formatException(record.exc_info))
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            line["trace_id"] = f"{span.trace_id:032x}"
            line["span_id"] = f"{span.span_id:016x}"
        return msgspec.json.encode(line, enc_hook=repr).decode()


class TextLines(logging.Formatter):
    """``12:34:56.789 ! gateway: port taken  port=8000``."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        name = record.name.removeprefix(ROOT + ".")
        fields = "".join(f"  {key}={value}" for key, value in _fields(record).items())
        text = f"{time} {_LEVEL_MARK.get(record.levelname, ' ')} {name}: {mask(record.getMessage())}{fields}"
        return text + "\n" + mask(self.formatException(record.exc_info)) if record.exc_info else text


def configure_logs(config: ObserveConfig, stream: TextIO | None = None) -> None:
    """Send the ``codriver`` loggers and the warnings of everything else to ``stream`` (stderr). May be called again."""
    out = stream or sys.stderr
    json = config.log_format == "json" or (config.log_format == "auto" and not out.isatty())
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonLines() if json else TextLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(ROOT).setLevel(config.log_level.upper())
