"""How commands find the running node of a home: `node.json`, written when it is ready, removed when it ends."""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from node.errors import NodeUnreachable, UsageError

FILE_NAME = "node.json"


@attrs.frozen
class NodeFile:
    """What a running node says of itself: its process, the URL of its API, its peer id, its multiaddrs."""

    pid: int
    api: str
    peer: str
    addresses: list[str]


@contextmanager
def announced(home: Path, node: NodeFile) -> Iterator[None]:
    """Have `node.json` tell of this node inside the block."""
    path = home / FILE_NAME
    temporary = path.with_name(f".{FILE_NAME}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            json.dump(attrs.asdict(node), file)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"{path}: cannot write it: {error.strerror}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def find_node(home: Path) -> NodeFile:
    """The node that runs in a home. NodeUnreachable, with the remedy, when there is none."""
    path = home / FILE_NAME
    try:
        document = json.loads(path.read_bytes())
        node = NodeFile(**document)
    except FileNotFoundError:
        raise NodeUnreachable(f"no node of {home} is running; start one with `herd up`") from None
    except OSError as error:
        raise NodeUnreachable(f"{path}: cannot read it: {error.strerror}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise NodeUnreachable(f"{path}: not written by a node; remove it and start one with `herd up`") from error
    if not (isinstance(node.api, str) and isinstance(node.peer, str) and isinstance(node.pid, int)):
        raise NodeUnreachable(f"{path}: not written by a node; remove it and start one with `herd up`")
    return node


def gone(home: Path, node: NodeFile, reason: str) -> NodeUnreachable:
    """What to say of a node that does not answer: whether it died, or lives and hangs."""
    try:
        os.kill(node.pid, 0)
    except ProcessLookupError:
        return NodeUnreachable(f"the node of {home} is gone without saying so; start it again with `herd up`")
    except PermissionError:
        pass  # it lives and is somebody else's
    return NodeUnreachable(f"the node of {home} (process {node.pid}) does not answer at {node.api}: {reason}")
