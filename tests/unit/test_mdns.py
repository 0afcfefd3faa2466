"""Multicast DNS on the loopback interface: hosts find each other, and nothing more than addresses is told."""

import logging
import threading

import pytest
import trio
from zeroconf import Zeroconf
from zeroconf._dns import DNSPointer
from zeroconf._protocol.outgoing import DNSOutgoing

from node.identity import Identity
from node.transport import mdns
from node.transport.mdns import SERVICE_TYPE, open_mdns

ALICE, BOB = (Identity(bytes([number]) * 32) for number in (1, 2))
LOOPBACK = ["127.0.0.1"]

pytestmark = pytest.mark.slow


class Found:
    """What one host found, in the Trio thread."""

    def __init__(self) -> None:
        self.multiaddrs: list[str] = []
        self.news = trio.Event()

    def __call__(self, multiaddr: str) -> None:
        trio.lowlevel.current_task()
        self.multiaddrs.append(multiaddr)
        self.news.set()

    async def wait(self, count: int) -> list[str]:
        with trio.fail_after(10):
            while len(self.multiaddrs) < count:
                self.news = trio.Event()
                await self.news.wait()
        return sorted(set(self.multiaddrs))


async def test_two_hosts_find_each_other_and_not_themselves() -> None:
    found_by_alice, found_by_bob = Found(), Found()
    async with (
        open_mdns(
            ALICE.peer_id, ["/ip4/127.0.0.1/tcp/4701", "/dns4/alice/tcp/4701"], found_by_alice, interfaces=LOOPBACK
        ),
        open_mdns(BOB.peer_id, ["/ip4/127.0.0.1/tcp/4702"], found_by_bob, interfaces=LOOPBACK),
    ):
        assert await found_by_bob.wait(2) == [
            f"/dns4/alice/tcp/4701/p2p/{ALICE.peer_id}",
            f"/ip4/127.0.0.1/tcp/4701/p2p/{ALICE.peer_id}",
        ]
        assert await found_by_alice.wait(1) == [f"/ip4/127.0.0.1/tcp/4702/p2p/{BOB.peer_id}"]


async def test_no_thread_stays_behind() -> None:
    async with open_mdns(ALICE.peer_id, ["/ip4/127.0.0.1/tcp/4701"], Found(), interfaces=LOOPBACK):
        assert [thread.name for thread in threading.enumerate() if "zeroconf" in thread.name]
    assert [thread.name for thread in threading.enumerate() if "zeroconf" in thread.name] == []


async def test_an_end_does_not_wait_for_every_host_that_was_announced_and_never_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mdns, "LOOKUP_TIMEOUT_MS", 500)
    with Zeroconf(interfaces=LOOPBACK) as crowd:
        async with open_mdns(ALICE.peer_id, ["/ip4/127.0.0.1/tcp/4701"], Found(), interfaces=LOOPBACK):
            junk = DNSOutgoing(0x8400)
            for number in range(20):
                name = f"ghost-{number}.{SERVICE_TYPE}"
                junk.add_answer_at_time(DNSPointer(SERVICE_TYPE, 12, 1, 4500, name), 0)
            await trio.to_thread.run_sync(crowd.send, junk)
            await trio.sleep(0.3)  # real time: the packets travel through real sockets
            began = trio.current_time()
        assert trio.current_time() - began < 5


async def test_no_multicast_is_a_warning_and_the_node_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_options: object) -> None:
        raise OSError("no such device")

    monkeypatch.setattr(mdns, "Zeroconf", refuse)
    with caplog.at_level(logging.WARNING):
        async with open_mdns(ALICE.peer_id, [], Found(), interfaces=LOOPBACK):
            pass
    assert "multicast DNS does not work here" in caplog.text


def test_only_peer_id_and_addresses_are_announced() -> None:
    info = mdns._service_info(ALICE.peer_id, ["/ip4/127.0.0.1/tcp/4701"])
    assert info.properties == {b"a0": f"/ip4/127.0.0.1/tcp/4701/p2p/{ALICE.peer_id}".encode()}
    assert info.port == 4701
    assert info.parsed_addresses() == ["127.0.0.1"]


def test_addresses_too_long_for_a_text_record_are_left_out() -> None:
    info = mdns._service_info(
        ALICE.peer_id, ["/dns4/" + "x" * 250 + "/tcp/1", *(f"/ip4/10.0.0.{i}/tcp/1" for i in range(20))]
    )
    assert len(info.properties) == mdns.ADDRESS_COUNT_MAX
    assert max(len(value or b"") for value in info.properties.values()) < 100
