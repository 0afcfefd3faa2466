"""Finding the mesh: knocking at bootstrap peers and remembered members until somebody lets this node in."""

import logging
from collections.abc import Awaitable, Callable, Sequence

import attrs
import trio

from node.errors import JoinRefused, UsageError
from node.ports import AdmissionError, TransportError
from node.services.membership.memory import RememberedMember
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId, public_key_of, short_peer
from protocols.membership.config import MembershipConfig
from protocols.membership.table import LEFT, Member

log = logging.getLogger("herd.membership")

REMEMBERED_KNOCKS_MAX = 8
"""At so many remembered members a starting node knocks; if none of them is there, bootstrap peers still may be."""

FOUND_KNOCKS_MAX = 32
"""At so many peers found by the way (multicast) a node knocks at once; what more is found must be found again."""

FOUND_ADDRESSES_MAX = 8

Exchange = Callable[[PeerId, Sequence[str]], Awaitable[None]]
"""Learn the addresses and exchange tables with the peer; TransportError or RemoteProtocolError when that failed."""


def parse_bootstrap(text: str) -> tuple[PeerId, str]:
    """Peer and address of a `/ip4/../tcp/../p2p/ID` multiaddr. UsageError naming the text when it is none."""
    address, separator, peer = text.rpartition("/p2p/")
    parts = address.split("/")
    try:
        if not separator or len(parts) != 5 or parts[0] or not parts[2] or parts[3] != "tcp":
            raise ValueError("wanted /ip4/ADDRESS/tcp/PORT/p2p/PEER, as `herd up` prints it")
        if parts[1] not in ("ip4", "ip6", "dns", "dns4", "dns6"):
            raise ValueError(f"unknown address kind {parts[1]!r}")
        if not parts[4].isascii() or not parts[4].isdigit() or not 0 < int(parts[4]) < 65536:
            raise ValueError(f"{parts[4]!r} is no TCP port")
        public_key_of(PeerId(peer))
    except (ValueError, RemoteProtocolError) as error:
        raise UsageError(f"bootstrap address {text!r} is not usable: {error}") from error
    return PeerId(peer), address


@attrs.define(eq=False)
class _Door:
    """One peer we knock at."""

    peer: PeerId
    addresses: tuple[str, ...]
    kind: str
    attempts: int = 0
    open: bool = False
    refused: bool = False
    problem: str = ""


class Joiner:
    """Knocks at doors, each in its own task of the service's nursery.

    A bootstrap peer is knocked at whenever it is no member, as long as this node runs: so meshes which started apart,
    or were apart for longer than they remember each other, grow together. A remembered one is knocked at until it
    answered once, left, or would be forgotten: not only while this node is alone, or the parts of a mesh that was
    restarted while they could not reach each other would stay apart. A found one is knocked at a few times.
    """

    def __init__(
        self,
        config: MembershipConfig,
        own: PeerId,
        exchange: Exchange,
        known: Callable[[PeerId], Member | None],
    ) -> None:
        self._config = config
        self._own = own
        self._exchange = exchange
        self._known = known
        self._doors: dict[PeerId, _Door] = {}
        self._progress = trio.Event()

    async def join(
        self,
        nursery: trio.Nursery,
        bootstrap: Sequence[tuple[PeerId, str]],
        remembered: Sequence[RememberedMember],
    ) -> None:
        """Knock everywhere at once; come back when one let us in, or when all had their tries (they go on behind).

        JoinRefused when no bootstrap peer admits this node.
        """
        doors: dict[PeerId, _Door] = {}
        for peer, address in bootstrap:
            known = doors.get(peer)
            addresses = (*known.addresses, address) if known is not None else (address,)
            doors[peer] = _Door(peer, addresses, "bootstrap")
        for member in remembered[:REMEMBERED_KNOCKS_MAX]:
            doors.setdefault(member.peer, _Door(member.peer, member.addresses, "remembered"))
        doors.pop(self._own, None)
        waited_for = [self._begin(nursery, door) for door in doors.values()]
        while not self._settled(waited_for):
            await self._progress.wait()

    def meet(self, nursery: trio.Nursery, peer: PeerId, addresses: tuple[str, ...]) -> None:
        """A peer was found: knock at it unless it is known."""
        if peer == self._own or self._is_member(peer):
            return
        door = self._doors.get(peer)
        if door is not None:
            if door.kind == "found":
                door.addresses = tuple(dict.fromkeys((*door.addresses, *addresses)))[:FOUND_ADDRESSES_MAX]
        elif sum(1 for door in self._doors.values() if door.kind == "found") < FOUND_KNOCKS_MAX:
            self._begin(nursery, _Door(peer, addresses, "found"))

    def _begin(self, nursery: trio.Nursery, door: _Door) -> _Door:
        """Knock at a door; one that was found and is being knocked at already is taken over. Gives the one in use."""
        begun = self._doors.get(door.peer)
        if begun is not None:
            begun.kind, begun.addresses = door.kind, tuple(dict.fromkeys((*door.addresses, *begun.addresses)))
            return begun
        self._doors[door.peer] = door
        nursery.start_soon(self._knock_until_done, door)
        return door

    async def _knock_until_done(self, door: _Door) -> None:
        began_at_s, delay_s = trio.current_time(), self._config.join_retry_s
        try:
            while True:
                if self._is_member(door.peer):
                    door.open = True
                else:
                    await self._knock(door)
                self._progress.set()
                self._progress = trio.Event()
                if self._done_with(door, began_at_s):
                    return
                if door.open or door.refused:
                    delay_s = self._config.join_retry_max_s
                await trio.sleep(min(delay_s, self._config.join_retry_max_s))
                delay_s *= 2
        finally:
            self._doors.pop(door.peer, None)

    def _done_with(self, door: _Door, began_at_s: float) -> bool:
        match door.kind:
            case "bootstrap":
                return False
            case "remembered":
                member = self._known(door.peer)
                gone = member is not None and member.state == LEFT
                return door.open or gone or trio.current_time() - began_at_s > self._config.forget_after_s
            case _:
                return door.open or door.refused or door.attempts >= self._config.join_attempts

    def _is_member(self, peer: PeerId) -> bool:
        member = self._known(peer)
        return member is not None and member.reachable

    async def _knock(self, door: _Door) -> None:
        door.attempts += 1
        try:
            await self._exchange(door.peer, door.addresses)
        except (TransportError, RemoteProtocolError) as error:
            door.refused = isinstance(error, AdmissionError)
            problem, door.problem = door.problem, str(error) or type(error).__name__
            # Said once a reason, not once a try; of one that was there, the list of members tells that it is gone.
            if door.kind == "bootstrap" and not door.open and door.problem != problem and door.attempts > 1:
                log.warning("bootstrap peer %s: %s", door.peer, error)
            elif door.kind == "found" and door.refused:
                log.info("found peer %s does not admit this node: %s", door.peer, error)
        else:
            door.open, door.refused = True, False
            log.info("joined through %s peer %s", door.kind, door.peer)

    def _settled(self, doors: Sequence[_Door]) -> bool:
        if not doors or any(door.open for door in doors):
            return True
        bootstrap = [door for door in doors if door.kind == "bootstrap"]
        if not all(door.problem for door in doors):
            return False  # one was not tried to its end yet
        if bootstrap and all(door.refused for door in bootstrap):
            reasons = "; ".join(dict.fromkeys(door.problem for door in bootstrap))
            raise JoinRefused(f"no bootstrap peer admits this node: {reasons}")
        if any(door.attempts < self._config.join_attempts and not door.refused for door in bootstrap):
            return False
        named = ", ".join(f"{short_peer(door.peer)} ({door.problem})" for door in bootstrap or doors)
        log.warning("no member answers yet, trying on in the background; asked: %s", named)
        return True
