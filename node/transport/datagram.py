"""Sealed datagrams over one UDP socket: the membership plane of a real node."""

import ipaddress
import logging
import secrets
import socket
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio

from node.errors import UsageError
from node.identity import Identity
from node.ports import Door
from node.transport.addresses import interface_addresses
from protocols.datagram import (
    DATAGRAM_SIZE_BYTES_MAX,
    LIFE_SIZE_BYTES,
    PAYLOAD_SIZE_BYTES_MAX,
    SENDERS_MAX,
    DatagramRefused,
    Sealer,
)
from protocols.ids import PeerId

log = logging.getLogger("herd.datagram")

RECEIVE_BUFFER_BYTES = 1024 * 1024
"""The kernel's queue in front of `receive`: it bounds what waits, and drops what comes on top."""

ADDRESSES_PARSED_MAX = 8192

HEARD_FOR_S = 30.0
"""So long an answer goes to where its peer was heard from; no firewall forgets a UDP flow sooner (Linux: 30 s)."""

SocketAddress = tuple[str, int] | tuple[str, int, int, int]


@attrs.frozen
class DatagramStatistics:
    """Counts since the start. `unsent` could not be sent from here; the others were dropped on arrival."""

    sent: int
    received: int
    unsent: int
    replayed: int
    forged: int
    truncated: int
    foreign: int
    oversize: int


def udp_address(text: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int] | None:
    """IP and port of `/ip4/A/udp/P` or `/ip6/A/udp/P`; None for anything else (names are not looked up here)."""
    parts = text.split("/")
    if len(parts) != 5 or parts[0] or parts[1] not in ("ip4", "ip6") or parts[3] != "udp":
        return None
    try:
        address = ipaddress.ip_address(parts[2])
        port = int(parts[4])
    except ValueError:
        return None
    if address.version != (4 if parts[1] == "ip4" else 6) or not 0 < port < 65536:
        return None
    return address, port


class UdpDatagrams:
    """`node.ports.Datagrams` over a bound, non-blocking UDP socket. One task receives.

    A peer heard a moment ago is answered at the address it was heard from: of a host in two networks the one it
    announces may lead nowhere from here. Only an authentic datagram that is no replay shows such a way.
    """

    def __init__(self, socket_: socket.socket, sealer: Sealer, announced_host: Callable[[], str]) -> None:
        self._socket = socket_
        self._sealer = sealer
        self._announced_host = announced_host
        self._counts: Counter[str] = Counter()
        self._destinations: dict[str, SocketAddress | None] = {}
        self._heard: OrderedDict[PeerId, tuple[SocketAddress, float]] = OrderedDict()

    def send(self, to: PeerId, address: str, payload: bytes) -> None:
        """Seal and send at once; lost (and counted) when the address is of no use or the socket is full."""
        datagram = self._sealer.seal(to, payload)
        destination = self._heard_at(to) or self._destination(address)
        try:
            if destination is None:
                raise OSError(f"no UDP address this socket can send to: {address[:120]!r}")
            self._socket.sendto(datagram, destination)
        except OSError as error:
            self._counts["unsent"] += 1
            log.debug("a datagram to %s was not sent: %s", to, error)
            return
        self._counts["sent"] += 1

    def _heard_at(self, peer: PeerId) -> SocketAddress | None:
        source, heard_at_s = self._heard.get(peer, (None, 0.0))
        return source if trio.current_time() - heard_at_s <= HEARD_FOR_S else None

    def _hear(self, peer: PeerId, source: SocketAddress) -> None:
        self._heard[peer] = source, trio.current_time()
        self._heard.move_to_end(peer)
        if len(self._heard) > SENDERS_MAX:
            self._heard.popitem(last=False)

    def _destination(self, address: str) -> SocketAddress | None:
        if address not in self._destinations:
            if len(self._destinations) >= ADDRESSES_PARSED_MAX:
                self._destinations.clear()
            self._destinations[address] = self._parse(address)
        return self._destinations[address]

    def _parse(self, text: str) -> SocketAddress | None:
        parsed = udp_address(text)
        if parsed is None:
            return None
        ip, port = parsed
        if self._socket.family == socket.AF_INET6:
            # A dual-stack socket reaches IPv4 by mapped addresses (RFC 4291, 2.5.5.2).
            return (f"::ffff:{ip}" if ip.version == 4 else str(ip), port, 0, 0)
        return (str(ip), port) if ip.version == 4 else None

    async def receive(self) -> tuple[PeerId, bytes]:
        """The next authentic payload and its sender. Cancelling loses nothing."""
        while True:
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                datagram, source = self._socket.recvfrom(DATAGRAM_SIZE_BYTES_MAX + 1)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket.fileno())
                continue
            try:
                opened = self._sealer.open(datagram)
            except DatagramRefused as refused:
                self._counts[refused.reason] += 1
                # A flood of junk must not keep other tasks from running.
                await trio.lowlevel.cancel_shielded_checkpoint()
                continue
            self._counts["received"] += 1
            self._hear(opened[0], source)
            await trio.lowlevel.cancel_shielded_checkpoint()
            return opened

    def address(self) -> str:
        """Where others reach this socket now, as a multiaddr text; interfaces come and go."""
        host = self._announced_host()
        return f"/{'ip6' if ':' in host else 'ip4'}/{host}/udp/{self._socket.getsockname()[1]}"

    def payload_size_bytes_max(self) -> int:
        """How large a payload may be."""
        return PAYLOAD_SIZE_BYTES_MAX

    def statistics(self) -> DatagramStatistics:
        """What was sent, received and dropped."""
        return DatagramStatistics(
            **{field.name: self._counts[field.name] for field in attrs.fields(DatagramStatistics)}
        )


def _bound_socket(host: str, port: int) -> socket.socket:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError as error:
        raise UsageError(f"{host!r} is no IP address to receive datagrams on") from error
    udp = socket.socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    try:
        udp.setblocking(False)
        if ip.version == 6:
            udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        udp.bind((host, port))
    except OSError as error:
        udp.close()
        raise UsageError(
            f"cannot receive datagrams on {host} port {port} (UDP): {error.strerror};"
            " choose another with --host or --port"
        ) from error
    return udp


def announced_host(host: str) -> str:
    """The address to announce when listening on `host`: itself, or for a wildcard that of the way out of this machine.

    Connecting a UDP socket sends nothing; it only lets the kernel choose the interface. Without a way out it is
    the first interface's address.
    """
    ip = ipaddress.ip_address(host)
    if not ip.is_unspecified:
        return host
    family, elsewhere = (socket.AF_INET, "192.0.2.1") if ip.version == 4 else (socket.AF_INET6, "2001:db8::1")
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((elsewhere, 9))  # a documentation address (RFC 5737, RFC 3849)
        except OSError:
            return interface_addresses(ip.version)[0]
        return str(probe.getsockname()[0])


async def _resolved(name: str, port: int) -> str | None:
    """The first IP address of a host name: senders cannot wait for a look-up, so addresses travel as numbers."""
    try:
        found = await trio.socket.getaddrinfo(name, port, type=socket.SOCK_DGRAM)
    except OSError as error:
        log.warning("datagrams cannot be announced at %s: %s", name, error)
        return None
    return str(found[0][4][0])


@asynccontextmanager
async def open_udp_datagrams(
    identity: Identity, door: Door, host: str, port: int, *, advertise: str = ""
) -> AsyncIterator[UdpDatagrams]:
    """Receive and send sealed datagrams at `host`:`port` (0 takes a free port) until the block ends.

    `advertise` is the IP address or host name others should use, where it is not the one listened on; a name is
    looked up once, now (a name that is not found is logged and left out). UsageError when the port cannot be had.
    """
    announced = await _resolved(advertise, port) if advertise else None
    udp = _bound_socket(host, port)
    try:
        first_sequence = time.time_ns() // 1000
        life = secrets.token_bytes(LIFE_SIZE_BYTES)
        sealer = Sealer(identity.seed, identity.public_key, door.datagram_key, first_sequence, life)
        yield UdpDatagrams(udp, sealer, partial(announced_host, announced or host))
    finally:
        trio.lowlevel.notify_closing(udp.fileno())
        udp.close()
