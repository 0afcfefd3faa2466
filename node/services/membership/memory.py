"""`members.json` in the node's home: where some members listened, so that a restarted node finds its mesh again."""

import json
import logging
from collections.abc import Sequence
from typing import Any

import attrs
import trio

from node.ports import SmallFile
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId, public_key_of
from protocols.membership.record import ADDRESS_COUNT_MAX, ADDRESS_SIZE_BYTES_MAX
from protocols.membership.table import DEAD, LEFT, Member

log = logging.getLogger("herd.membership")

FILE_NAME = "members.json"
FORMAT_VERSION = 1
FILE_SIZE_BYTES_MAX = 8 * 1024 * 1024


@attrs.frozen
class RememberedMember:
    """A member of an earlier life of this node."""

    peer: PeerId
    addresses: tuple[str, ...]


class MemberMemory:
    """Reads and writes the file. Nothing in it is trusted: a peer proves who it is when it is contacted."""

    def __init__(self, file: SmallFile | None, members_max: int, forget_after_s: float) -> None:
        self._file = file
        self._members_max = members_max
        self._forget_after_s = forget_after_s
        self._unseen: list[RememberedMember] = []
        self._loaded_at_s = 0.0
        self._written: list[RememberedMember] | None = None

    def load(self) -> list[RememberedMember]:
        """Whom this node knew, best first; nobody when there is no file or it is damaged (that is logged)."""
        if self._file is None:
            return []
        try:
            data = self._file.read(FILE_SIZE_BYTES_MAX)
            members = _parse(data) if data is not None else []
        except (OSError, ValueError, RemoteProtocolError) as error:
            log.warning("%s: cannot be used, remembered members are forgotten: %s", self._file, error)
            return []
        self._unseen, self._loaded_at_s = members[: self._members_max], trio.current_time()
        return list(self._unseen)

    def save(self, members: Sequence[Member]) -> None:
        """Remember those who take part, the longest known first, then who went last, then whom we did not meet again.

        The dead and those who left may be there at the next start: they went with the same power cut or the same
        restart of all hosts, or stand behind a wire that is down. Atomic, and nothing happens when nothing changed;
        a file that cannot be written is logged, never an error.
        """
        here = sorted((m for m in members if m.reachable), key=lambda member: (member.since, member.peer))
        gone = sorted((m for m in members if m.state in (DEAD, LEFT)), key=lambda member: (-member.since, member.peer))
        met = {member.peer for member in members}
        expired = trio.current_time() - self._loaded_at_s > self._forget_after_s
        self._unseen = [] if expired else [each for each in self._unseen if each.peer not in met]
        chosen = [RememberedMember(member.peer, member.record.addresses) for member in [*here, *gone]]
        chosen = (chosen + self._unseen)[: self._members_max]
        if self._file is None or not chosen or chosen == self._written:
            return
        document = {"version": FORMAT_VERSION, "members": [attrs.asdict(member) for member in chosen]}
        try:
            self._file.replace(f"{json.dumps(document, indent=1)}\n".encode())
        except OSError as error:
            log.warning("%s: cannot remember members for the next start: %s", self._file, error.strerror)
            return
        self._written = chosen


def _parse(data: bytes) -> list[RememberedMember]:
    document: Any = json.loads(data)
    if not isinstance(document, dict) or document.get("version") != FORMAT_VERSION:
        raise ValueError(f"not a list of members in format {FORMAT_VERSION}")
    rows = document.get("members")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("its members are no list of tables")
    return [_parse_member(row) for row in rows]


def _parse_member(row: dict[str, Any]) -> RememberedMember:
    peer, addresses = row.get("peer"), row.get("addresses")
    if not isinstance(peer, str) or not isinstance(addresses, list) or len(addresses) > ADDRESS_COUNT_MAX:
        raise ValueError("a member has a peer and a list of addresses")
    if not all(isinstance(address, str) and len(address) <= ADDRESS_SIZE_BYTES_MAX for address in addresses):
        raise ValueError("an address is a short text")
    public_key_of(PeerId(peer))
    return RememberedMember(PeerId(peer), tuple(addresses))
