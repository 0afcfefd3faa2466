"""Multiaddr texts and what they mean on a host: only `/ip4|ip6|dns*/HOST/tcp/PORT` is spoken here."""

import ipaddress
import re
from collections.abc import Sequence

import ifaddr

_TCP = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/([^/]+)/tcp/(\d{1,5})")


def tcp_target(address: str) -> tuple[str, int]:
    """Host and port of a multiaddr text without `/p2p/`. ValueError when it is no TCP address."""
    match = _TCP.fullmatch(address)
    if match is None or not 0 < int(match.group(3)) < 65536:
        raise ValueError(f"{address[:120]!r} is no /ip4|ip6|dns/HOST/tcp/PORT address")
    if match.group(1) in ("ip4", "ip6"):
        ipaddress.ip_address(match.group(2))
    return match.group(2), int(match.group(3))


def tcp_multiaddr(host: str, port: int) -> str:
    """The multiaddr text of an IP address or host name and a port."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return f"/dns/{host}/tcp/{port}"
    return f"/ip{version}/{host}/tcp/{port}"


def announced_addresses(host: str, port: int, advertise: Sequence[str]) -> list[str]:
    """What others are told when a node listens on `host`: itself, or for 0.0.0.0 and :: what stands for it.

    That is `advertise` where it is given, else every interface's address except the loopback's, which means another
    host to each reader; a machine without any other has only that.
    """
    if not ipaddress.ip_address(host).is_unspecified:
        return [tcp_multiaddr(host, port)]
    version = ipaddress.ip_address(host).version
    return [tcp_multiaddr(each, port) for each in list(advertise) or interface_addresses(version)]


def interface_addresses(version: int) -> list[str]:
    """Every usable address of one IP version: a listener on :: takes no IPv4, and the other way round.

    A machine without any has only the loopback's.
    """
    found: list[str] = []
    for adapter in ifaddr.get_adapters():
        for entry in adapter.ips:
            text = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            address = ipaddress.ip_address(text)
            unusable = address.is_loopback or address.is_link_local or address.is_multicast
            if address.version == version and not unusable:
                found.append(str(address))
    return sorted(dict.fromkeys(found)) or ["127.0.0.1" if version == 4 else "::1"]
