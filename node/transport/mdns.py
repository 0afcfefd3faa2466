"""Finding members on the local network by multicast DNS (RFC 6762, DNS-SD RFC 6763), where it is switched on.

It tells everyone on the network this node's peer id and addresses, nothing more: who knocks must still prove the
mesh key. zeroconf runs its own thread; what it finds is handed over to the Trio thread.
"""

import ipaddress
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
from zeroconf import InterfaceChoice, ServiceInfo, ServiceListener, Zeroconf

from protocols.ids import PeerId

log = logging.getLogger("herd.mdns")

SERVICE_TYPE = "_herd._tcp.local."
ADDRESS_COUNT_MAX = 8
ADDRESS_SIZE_BYTES_MAX = 240
"""A TXT string holds 255 bytes with its key (RFC 6763, 6.1)."""

LOOKUP_TIMEOUT_MS = 3000


class _Listener(ServiceListener):
    """Runs in zeroconf's browser thread."""

    def __init__(self, own_name: str, found: Callable[[str], None], token: trio.lowlevel.TrioToken) -> None:
        self._own_name = own_name
        self._found = found
        self._token = token
        self._ended = False

    def end(self) -> None:
        """Look nothing up any more: what was found meanwhile must not hold up the end."""
        self._ended = True

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        if self._ended or name == self._own_name:
            return
        info = zc.get_service_info(type_, name, timeout=LOOKUP_TIMEOUT_MS)
        for multiaddr in _multiaddrs(info):
            try:
                self._token.run_sync_soon(self._hand_over, multiaddr)
            except trio.RunFinishedError:
                return

    def _hand_over(self, multiaddr: str) -> None:
        try:
            self._found(multiaddr)
        except Exception:  # boundary: a listener's bug here would end the Trio run, and with it the node.
            log.exception("the listener to hosts found by multicast DNS failed")

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """Membership notices by itself who goes."""


def _multiaddrs(info: ServiceInfo | None) -> list[str]:
    """What another host announces, as far as it is text; whoever uses it checks it."""
    if info is None:
        return []
    values = [info.properties.get(f"a{index}".encode()) for index in range(ADDRESS_COUNT_MAX)]
    return [value.decode("ascii", "replace") for value in values if value]


def _service_info(peer: PeerId, addresses: Sequence[str]) -> ServiceInfo:
    label = f"herd-{peer[-20:]}"
    texts = [f"{address}/p2p/{peer}" for address in addresses]
    texts = [text for text in texts if len(text) <= ADDRESS_SIZE_BYTES_MAX][:ADDRESS_COUNT_MAX]
    properties: dict[str | bytes, Any] = {f"a{index}": text for index, text in enumerate(texts)}
    parts = [address.split("/") for address in addresses]
    ports = [int(part[4]) for part in parts if len(part) >= 5 and part[4].isdigit()]
    return ServiceInfo(
        SERVICE_TYPE,
        f"{label}.{SERVICE_TYPE}",
        port=ports[0] if ports else 0,
        properties=properties,
        server=f"{label}.local.",
        parsed_addresses=sorted({part[2] for part in parts if len(part) > 2 and _is_ip(part[2])}),
    )


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


@asynccontextmanager
async def open_mdns(
    peer: PeerId,
    addresses: Sequence[str],
    found: Callable[[str], None],
    *,
    interfaces: Sequence[str] | None = None,
) -> AsyncIterator[None]:
    """Announce this node at `addresses` (multiaddr texts without `/p2p/`) and look for others until the block ends.

    `found` is called in the Trio thread with each multiaddr (with `/p2p/`) another host announces; it may be
    anything. `interfaces` are IP addresses, None means all. Where multicast is not to be had this is logged, once.
    """
    info = _service_info(peer, addresses)
    listener = _Listener(info.name, found, trio.lowlevel.current_trio_token())

    def begin() -> Zeroconf:
        zeroconf = Zeroconf(interfaces=InterfaceChoice.All if interfaces is None else list(interfaces))
        try:
            zeroconf.register_service(info, allow_name_change=True)
            # Of a browser made here, zeroconf would not know at its end, and leave its thread behind.
            zeroconf.add_service_listener(SERVICE_TYPE, listener)
        except BaseException:
            zeroconf.close()
            raise
        return zeroconf

    try:
        zeroconf = await trio.to_thread.run_sync(begin)
    except OSError as error:
        log.warning("members on the local network are not looked for, multicast DNS does not work here: %s", error)
        yield
        return
    try:
        yield
    finally:
        # Saying goodbye is a few packets (measured: 0.3 s); a look-up under way ends within its timeout.
        listener.end()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(zeroconf.close)
