"""Asks one herd node through its API, from where the node runs; pulls are timed here, with nothing started for them."""

import http.client
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from scripts.benchmark.answering import answer_requests, begin_at

ANSWER_TIMEOUT_S = 60.0
"""A running operation is heard of every few seconds, so silence this long means that the node hangs."""


class Asker:
    """One node's API by its URL."""

    def __init__(self, api: str) -> None:
        self._address = urlsplit(api).netloc

    @contextmanager
    def _connected(self) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection(self._address, timeout=ANSWER_TIMEOUT_S)
        try:
            connection.connect()
            yield connection
        finally:
            connection.close()

    def read(self, path: str, method: str = "GET") -> str:
        """The text of one answer; OSError for any status but 200."""
        with self._connected() as connection:
            connection.request(method, path)
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status != 200:
                raise OSError(f"{method} {path} is answered with {answer.status}: {text[:300]}")
            return text

    def operate(self, path: str, arguments: dict[str, str], at: float | None = None) -> dict[str, Any]:
        """One long operation: its report and the seconds from `at`, else from the request, to the report."""
        with self._connected() as connection:
            began = begin_at(at)
            for line in self._lines(connection, path, arguments):
                if "report" in line:
                    return {"seconds": monotonic() - began, "report": line["report"]}
        raise OSError(f"{path} ended without a report")

    def pull_and_kill(self, name: str, share: float, pid: int) -> dict[str, int]:
        """Pull until more than a share is held, then kill -9 the node: what it had stored, and held, just before."""
        with self._connected() as connection:
            for line in self._lines(connection, "/api/mesh/pull", {"name": name}):
                if "report" in line:
                    break
                if line.get("size_bytes") and line["held_bytes"] > share * line["size_bytes"]:
                    stored_bytes = self.counters()["herd_exchange_stored_bytes_total"]
                    os.kill(pid, signal.SIGKILL)
                    return {"stored_bytes": int(stored_bytes), "held_bytes": line["held_bytes"]}
        raise OSError("the pull ended before the node could be killed: a larger model is needed")

    def counters(self) -> dict[str, float]:
        """Every metric without labels."""
        lines = (line.rsplit(" ", 1) for line in self.read("/metrics").splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines if "{" not in name}

    def _lines(
        self, connection: http.client.HTTPConnection, path: str, arguments: dict[str, str]
    ) -> Iterator[dict[str, Any]]:
        connection.request("POST", path, body=json.dumps(arguments))
        answer = connection.getresponse()
        for text in answer:
            line = json.loads(text)
            if answer.status != 200 or "error" in line:
                raise OSError(f"{path} failed: {line.get('error', line)}")
            yield line


def main() -> None:
    """`asker API`: answer requests until stdin ends."""
    asker = Asker(sys.argv[1])
    commands: Mapping[str, Callable[..., Any]] = {
        "read": asker.read,
        "operate": asker.operate,
        "pull_and_kill": asker.pull_and_kill,
        "counters": asker.counters,
    }
    answer_requests(commands)


if __name__ == "__main__":
    main()
