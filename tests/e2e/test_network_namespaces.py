"""Hosts of their own on one wire: network namespaces around a bridge, without a way out, listening on 0.0.0.0."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import attrs
import pytest
import trio

from tests.e2e.support import HerdProcess, herd_process, mesh_key_of, wait_member

pytestmark = [pytest.mark.processes, pytest.mark.slow]

QUICK = {
    "HERD_MEMBERSHIP_PROBE_INTERVAL_S": "0.4",
    "HERD_MEMBERSHIP_PROBE_TIMEOUT_S": "0.2",
    "HERD_MEMBERSHIP_SUSPICION_MAX_MULTIPLIER": "2",
    "HERD_MEMBERSHIP_RECONNECT_INTERVAL_S": "2",
}
READ_URL = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@attrs.frozen
class Wire:
    """A bridge in a namespace of its own; `host` plugs a namespace in."""

    prefix: str

    @property
    def bridge(self) -> str:
        """The namespace of the bridge."""
        return f"{self.prefix}b"

    def host(self, number: int) -> str:
        """A new namespace with the address 10.99.0.`number` and no route but to its neighbours."""
        name = f"{self.prefix}h{number}"
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{number}", "netns", self.bridge)
        _ip("-n", name, "addr", "add", f"10.99.0.{number}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", self.bridge, "link", "set", f"port{number}", "master", "bridge", "up")
        return name

    def plug(self, number: int, state: str) -> None:
        """Cut a host's link (`down`) or mend it (`up`)."""
        _ip("-n", self.bridge, "link", "set", f"port{number}", state)


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire(f"herd{os.getpid()}")
    try:
        _ip("netns", "add", made.bridge)
    except FileNotFoundError:
        pytest.skip("needs the program ip (iproute2) to make network namespaces")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"may not make network namespaces: {error.stderr.strip()}")
    try:
        _ip("-n", made.bridge, "link", "add", "bridge", "type", "bridge")
        _ip("-n", made.bridge, "link", "set", "bridge", "up")
        yield made
    finally:
        listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
        for name in re.findall(rf"^{made.prefix}\w+", listed, re.MULTILINE):
            _ip("netns", "del", name)


async def _counter(node: HerdProcess, name: str) -> float:
    """One of the node's metrics, read where it runs."""
    url = f"{(await node.status()).api}/metrics"
    read = await trio.run_process([*node.inside, sys.executable, "-c", READ_URL, url], capture_stdout=True)
    [value] = re.findall(rf"^{name} (\S+)$", read.stdout.decode(), re.MULTILINE)
    return float(value)


async def test_hosts_on_one_wire_bear_a_cut_link_and_a_firewall(tmp_path: Path, wire: Wire) -> None:
    with trio.fail_after(240):
        async with AsyncExitStack() as stack:
            nodes: list[HerdProcess] = []

            async def start(number: int, bootstrap: list[str], mesh_key: str | None) -> HerdProcess:
                node = herd_process(
                    tmp_path / f"host-{number}",
                    bootstrap=bootstrap,
                    mesh_key=mesh_key,
                    options=["--host", "0.0.0.0"],
                    settings=QUICK,
                    inside=["ip", "netns", "exec", wire.host(number)],
                )
                nodes.append(await stack.enter_async_context(node))
                return nodes[-1]

            async def all_see_all() -> None:
                for node in nodes:
                    await node.wait_members(len(nodes), timeout_s=30)

            first = await start(1, [], None)
            assert first.multiaddr.startswith("/ip4/10.99.0.1/tcp/")
            mesh_key = await mesh_key_of(first)
            for number in (2, 3):
                await start(number, [first.multiaddr], mesh_key)
            await all_see_all()

            # What a wildcard announces leads here from other hosts, for datagrams too.
            for node in nodes:
                assert await _counter(node, "herd_datagrams_received_total") > 0
                assert await _counter(node, "herd_datagrams_forged_total") == 0

            third = nodes[2]
            wire.plug(3, "down")
            await wait_member(first, third.peer, ["dead"])
            await wait_member(third, first.peer, ["dead"])
            wire.plug(3, "up")
            await all_see_all()

            # A firewall that lets no datagram out: streams speak for the host, and nobody takes it for dead.
            _ip("-n", third.inside[-1], "rule", "add", "pref", "0", "ipproto", "udp", "prohibit")
            answered = await _counter(first, "herd_membership_probes_answered_over_stream_total")
            while await _counter(first, "herd_membership_probes_answered_over_stream_total") < answered + 3:
                assert (await wait_member(first, third.peer, ["alive", "suspect", "dead"])).state != "dead"
