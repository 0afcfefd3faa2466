"""The command line's side of the API: one request, or one long operation, to the node of a home."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from node.api.config import PEER_HEADER
from node.cli.node_file import NodeFile, find_node, gone
from node.errors import HerdError, JoinRefused, NodeUnreachable, NotFound, UsageError, VerificationFailed

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0
"""Searching the DHT may take its time; while an operation runs, the node says every few seconds that it lives."""

_ERRORS = {kind.exit_code: kind for kind in (UsageError, NotFound, NodeUnreachable, VerificationFailed, JoinRefused)}


class NodeClient:
    """Talks to the running node of a home. Every failure is a HerdError with the node's own words."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.node: NodeFile = find_node(home)
        with self._translated():
            self._http = httpx.Client(
                base_url=self.node.api,
                # The node is on this machine: a proxy of the environment has no business here.
                trust_env=False,
                headers={PEER_HEADER: self.node.peer},
                timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            )

    def __enter__(self) -> "NodeClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(self, method: str, path: str, /, **parameters: str) -> Any:
        """The JSON document of one answer."""
        with self._translated():
            answer = self._http.request(method, path, params=parameters)
            return self._document(answer)

    def tell(self, path: str, /, **arguments: str) -> Any:
        """The JSON document that answers a posted one."""
        with self._translated():
            return self._document(self._http.post(path, content=_body(arguments)))

    def operate(self, path: str, /, **arguments: Any) -> Iterator[dict[str, Any]]:
        """The lines of a long operation as they come: progress, and last `{"report": ...}`; a failure raises."""
        with self._translated(), self._http.stream("POST", path, content=_body(arguments)) as answer:
            if answer.status_code != 200:
                answer.read()
                self._document(answer)
            for text in answer.iter_lines():
                line = self._parsed(text)
                if "error" in line:
                    raise _failure(line)
                yield line
                if "report" in line:
                    return
        raise NodeUnreachable(f"the node of {self._home} ended before the operation did; start it again and repeat")

    def _document(self, answer: httpx.Response) -> Any:
        document = self._parsed(answer.text)
        if answer.is_success:
            return document
        if answer.status_code == 421:
            raise NodeUnreachable(
                f"the node of {self._home} is gone and another one answers at {self.node.api}; start it with `herd up`"
            )
        raise _failure(document)

    def _parsed(self, text: str) -> Any:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise NodeUnreachable(f"something that is no herd node answers at {self.node.api}; start it with `herd up`")
        return document

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            raise gone(self._home, self.node, "it took too long") from error
        except UnicodeEncodeError as error:
            raise UsageError(f"{error.object[:80]!r} is no text that can be sent: not UTF-8") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise gone(self._home, self.node, str(error) or type(error).__name__) from error


def _body(arguments: dict[str, Any]) -> bytes:
    # ASCII JSON of our own: a file's name may hold what UTF-8 cannot carry.
    return json.dumps(arguments).encode("ascii")


def _failure(document: Any) -> HerdError:
    """The error a node told, as the class of its exit code."""
    told = document.get("error") if isinstance(document, dict) else None
    code = document.get("exit_code") if isinstance(document, dict) else None
    text = told if isinstance(told, str) else "the node refused without saying why"
    return _ERRORS.get(code if isinstance(code, int) else 1, HerdError)(text)
