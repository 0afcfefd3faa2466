"""Where the log goes: standard error or a file, as lines for people or as JSON lines for programs."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import WatchedFileHandler
from pathlib import Path

import attrs

from node.errors import UsageError
from protocols.options import option

QUIET_LOGGERS = ("libp2p", "hypercorn", "httpx", "httpcore", "zeroconf", "multiaddr", "asyncio")
"""Libraries that tell every packet at INFO: only their warnings are for the people who run a node."""


@attrs.frozen
class LogConfig:
    """What is logged, how, and where to. Keys and other secrets are never logged, at any level."""

    level: str = option(
        "info", choices=("debug", "info", "warning", "error"), help="The least severe messages that are kept."
    )
    format: str = option("text", choices=("text", "json"), help="Lines for people, or one JSON object a line.")
    file: str = option("", help="File that the log is appended to (it may be rotated); empty: standard error.")


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z warning herd.blame: text`, control characters of foreign texts made visible."""

    def format(self, record: logging.LogRecord) -> str:
        text = f"{_instant(record)} {record.levelname.lower()} {record.name}: {_printable(record.getMessage())}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonFormatter(logging.Formatter):
    """One object a line: `time`, `level`, `logger`, `message`, and `error` with the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _instant(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _instant(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _printable(text: str) -> str:
    # Peers choose some of the texts that are logged; a line break in one would forge a log line.
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


@contextmanager
def logging_to(config: LogConfig) -> Iterator[None]:
    """Log as the section says inside the block, and as before after it. UsageError when the file cannot be opened."""
    handler = _handler(config)
    handler.setFormatter(JsonFormatter() if config.format == "json" else TextFormatter())
    root = logging.getLogger()
    before = {name: (quiet.level, quiet.propagate) for name in QUIET_LOGGERS for quiet in [logging.getLogger(name)]}
    level, handlers = root.level, root.handlers[:]
    root.handlers[:] = [handler]
    root.setLevel(config.level.upper())
    for name in QUIET_LOGGERS:
        quiet = logging.getLogger(name)
        quiet.setLevel(max(logging.WARNING, root.level))
        quiet.propagate = True  # py-libp2p cuts its logger off from everybody's handlers when it is imported
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        for name, (quiet_level, propagate) in before.items():
            logging.getLogger(name).setLevel(quiet_level)
            logging.getLogger(name).propagate = propagate
        handler.close()


def _handler(config: LogConfig) -> logging.Handler:
    if not config.file:
        return logging.StreamHandler(sys.stderr)
    path = Path(config.file).expanduser()
    try:
        return WatchedFileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(f"{path}: cannot write the log (log.file): {error.strerror}") from error
