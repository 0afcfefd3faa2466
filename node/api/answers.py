"""Answers of the API: JSON documents, and every failure as `{"error": text, "exit_code": n}`."""

import json
import logging
from typing import Any

from starlette.responses import Response

from node.api.failures import herd_error_in
from node.errors import HerdError

log = logging.getLogger("herd.api")


class Document(Response):
    """A JSON document in ASCII: names of files may hold lone surrogates, which UTF-8 cannot carry but `\\u` can."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode("ascii")


def error_document(error: HerdError) -> dict[str, Any]:
    """What a client is told of a failure."""
    return {"error": str(error), "exit_code": error.exit_code}


def error_answer(error: HerdError, *, status: int | None = None, headers: dict[str, str] | None = None) -> Document:
    """The failure as an HTTP response, with the status of its class unless another one says more."""
    return Document(error_document(error), status_code=status or error.http_status, headers=headers)


def told(error: Exception) -> HerdError:
    """The failure to tell the client; an unexpected exception is logged with its traceback and told without it."""
    expected = herd_error_in(error)
    if expected is not None:
        return expected
    log.error("a request failed unexpectedly", exc_info=error)
    return HerdError(f"internal error: {type(error).__name__}; the node's log has the details")
