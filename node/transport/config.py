"""The section `[network]` of herd.toml: where a node listens, whom it asks first, and its limits towards strangers."""

import ipaddress
import re

import attrs

from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId, public_key_of
from protocols.options import option

_PEER_ADDRESS = re.compile(r"(/(?:ip4|ip6|dns|dns4|dns6)/[^/]+/tcp/\d{1,5})/p2p/([1-9A-HJ-NP-Za-km-z]+)")


def split_peer_address(text: str) -> tuple[PeerId, str]:
    """A bootstrap multiaddr `/ip4/../tcp/../p2p/ID` as (peer id, address). ValueError saying what is wanted."""
    match = _PEER_ADDRESS.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not allowed: wanted /ip4/ADDRESS/tcp/PORT/p2p/PEER as `herd up` prints it")
    peer = PeerId(match.group(2))
    try:
        public_key_of(peer)
    except RemoteProtocolError as error:
        raise ValueError(f"{text!r} is not allowed: {error}") from error
    return peer, match.group(1)


@attrs.frozen
class NetworkConfig:
    """Addresses, bootstrap and limits of the stream transport."""

    host: str = option("0.0.0.0", help="IP address to listen on; 0.0.0.0 means every IPv4 interface.")
    port: int = option(4701, help="TCP and UDP port to listen on; 0 takes a free one.", minimum=0, maximum=65535)
    bootstrap: tuple[str, ...] = option(
        (), help="Multiaddrs of members asked first, as `herd up` prints them (/ip4/../tcp/../p2p/..)."
    )
    mdns: bool = option(False, help="Find bootstrap peers on the local network by multicast DNS.")
    advertise: tuple[str, ...] = option(
        (),
        help="IP addresses or host names to announce when host is 0.0.0.0 or ::; empty announces every interface's.",
    )
    dial_timeout_s: float = option(
        5.0, unit="s", help="How long one address of a peer may take to connect.", minimum=0.1, maximum=120
    )
    admission_timeout_s: float = option(
        5.0,
        unit="s",
        help="How long a connection may take to authenticate and prove the mesh key.",
        minimum=0.5,
        maximum=60,
    )
    write_timeout_s: float = option(
        30.0,
        unit="s",
        help="How long a peer may take nothing from its connection before the connection is closed.",
        minimum=1,
        maximum=600,
    )
    stall_timeout_s: float = option(
        60.0,
        unit="s",
        help="How long a stream's reader may leave its window full before the stream is reset.",
        minimum=1,
        maximum=3600,
    )
    connections_max: int = option(
        1024, help="Connections of members at once; further ones are refused.", minimum=2, maximum=65536
    )
    handshakes_max: int = option(
        64, help="Inbound connections at once that did not prove the mesh key yet.", minimum=1, maximum=4096
    )
    handshakes_per_host_max: int = option(16, help="The same limit for one remote IP address.", minimum=1, maximum=4096)
    streams_per_peer_max: int = option(
        256, help="Inbound streams of one peer at once; further ones are reset.", minimum=8, maximum=65536
    )

    def __attrs_post_init__(self) -> None:
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            raise ValueError(
                f"host: {self.host!r} is not allowed: an IP address such as 0.0.0.0 or 127.0.0.1"
            ) from None
        for text in self.bootstrap:
            try:
                split_peer_address(text)
            except ValueError as error:
                raise ValueError(f"bootstrap: {error}") from None
        for text in self.advertise:
            if not text or "/" in text or text in ("0.0.0.0", "::"):
                raise ValueError(f"advertise: {text!r} is not allowed: an IP address or host name others can reach")
