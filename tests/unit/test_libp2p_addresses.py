"""Addresses as people and peers write them, and the section `[network]`."""

import ipaddress

import pytest

from node.blame import BlameLedger
from node.events import EventBus
from node.transport import addresses
from node.transport.addresses import announced_addresses, tcp_multiaddr, tcp_target
from node.transport.config import NetworkConfig, split_peer_address
from node.transport.libp2p import open_libp2p_transport
from node.trust.mesh_key import MeshKeyDoor
from tests.support_transport import identity_of

ANN = identity_of("ann").peer_id


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("/ip4/192.0.2.1/tcp/4701", ("192.0.2.1", 4701)),
        ("/ip6/2001:db8::1/tcp/1", ("2001:db8::1", 1)),
        ("/dns/gpu-7.example/tcp/65535", ("gpu-7.example", 65535)),
    ],
)
def test_a_tcp_address_has_a_target_and_comes_back(address: str, target: tuple[str, int]) -> None:
    assert tcp_target(address) == target
    assert tcp_multiaddr(*target) == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "/ip4/192.0.2.1/udp/4701",
        "/ip4/192.0.2.1/tcp/0",
        "/ip4/192.0.2.1/tcp/65536",
        "/ip4/192.0.2.999/tcp/1",
        "/ip4/gpu-7/tcp/1",
        "/ip4/192.0.2.1/tcp/4701/ws",
        "192.0.2.1:4701",
    ],
)
def test_what_is_no_tcp_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"no /ip4|does not appear to be"):
        tcp_target(address)


def test_a_wildcard_announces_what_stands_for_it_and_never_itself() -> None:
    assert announced_addresses("127.0.0.1", 9, ["192.0.2.1"]) == ["/ip4/127.0.0.1/tcp/9"]
    assert announced_addresses("0.0.0.0", 9, ["192.0.2.1", "gpu-7"]) == ["/ip4/192.0.2.1/tcp/9", "/dns/gpu-7/tcp/9"]
    for wildcard, version in (("0.0.0.0", 4), ("::", 6)):
        announced = announced_addresses(wildcard, 9, [])
        assert announced
        for address in announced:
            host, port = tcp_target(address)
            assert port == 9
            assert ipaddress.ip_address(host).version == version
            assert not ipaddress.ip_address(host).is_unspecified


async def test_a_wildcard_announces_the_interfaces_there_are_now(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_libp2p_transport(
        identity_of("ann"), MeshKeyDoor(b"m" * 32), NetworkConfig(host="0.0.0.0", port=0), BlameLedger(EventBus())
    ) as transport:
        _, port = tcp_target(transport.addresses()[0])
        monkeypatch.setattr(addresses, "interface_addresses", lambda _version: ["192.0.2.1", "192.0.2.2"])
        assert transport.addresses() == [f"/ip4/192.0.2.1/tcp/{port}", f"/ip4/192.0.2.2/tcp/{port}"]


def test_a_bootstrap_address_is_a_peer_and_an_address() -> None:
    assert split_peer_address(f"/ip4/192.0.2.1/tcp/4701/p2p/{ANN}") == (ANN, "/ip4/192.0.2.1/tcp/4701")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("host", "localhost"),
        ("port", 65536),
        ("port", -1),
        ("bootstrap", ("/ip4/192.0.2.1/tcp/4701",)),
        ("bootstrap", ("/ip4/192.0.2.1/tcp/4701/p2p/QmWrong",)),
        ("advertise", ("0.0.0.0",)),
        ("advertise", ("/ip4/192.0.2.1",)),
        ("dial_timeout_s", 0.0),
        ("connections_max", 1),
    ],
)
def test_a_bad_setting_names_its_field_its_value_and_what_is_allowed(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field}: .*is not allowed"):
        NetworkConfig(**{field: value})  # type: ignore[arg-type]
