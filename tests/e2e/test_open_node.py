"""Whole nodes in one process, opened as a program opens them: what the composition root ties together is tied."""

import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import httpx
import pytest
import trio

from node import app
from node.app import open_node
from node.config import load_config
from node.errors import HerdError, UsageError
from node.local_node import LocalNode
from node.ports import TransportError
from node.views import Progress, TransferView
from protocols.ids import PeerId
from protocols.limits.config import Direction
from tests.e2e.support import write_llama
from tests.support_transport import until

pytestmark = pytest.mark.slow

LOOPBACK: dict[str, object] = {
    "network.host": "127.0.0.1",
    "network.port": 0,
    "api.listen": "127.0.0.1:0",
    "store.reserve_free_bytes": 0,
}
ROOMS = ("store", "transport", "datagrams", "dht", "membership", "catalog", "discovery", "exchange", "limits", "blame")


@asynccontextmanager
async def running(
    home: Path, mesh_key: bytes | None = None, bootstrap: Sequence[str] = (), zone: str = "none", mdns: bool = False
) -> AsyncIterator[LocalNode]:
    """A node with its home and store in one folder."""
    environment = {"HERD_LABELS_ZONE": zone}
    if mesh_key is not None:
        environment["HERD_MESH_KEY"] = mesh_key.hex()
    flags = {**LOOPBACK, "store.models_path": str(home / "models"), "network.bootstrap": list(bootstrap)}
    flags["network.mdns"] = mdns
    async with open_node(load_config(home, environment, flags).config) as node:
        assert isinstance(node, LocalNode)
        yield node


def key_of(home: Path) -> bytes:
    return bytes.fromhex((home / "mesh.key").read_text())


async def metrics_of(node: LocalNode) -> str:
    async with httpx.AsyncClient(base_url=node.api, trust_env=False, timeout=20) as client:
        return (await client.get("/metrics")).text


async def test_what_one_node_is_and_holds_the_other_sees(tmp_path: Path) -> None:
    with trio.fail_after(120):
        model = await write_llama(tmp_path / "llama.gguf", size_mb=24)
        async with running(tmp_path / "one", zone="a") as one:
            bootstrap = one.status().addresses
            async with running(tmp_path / "two", key_of(tmp_path / "one"), bootstrap=bootstrap) as two:
                added = await one.add(model, "llama")
                await until(lambda: [member.models for member in two.members()] == [0, 1])
                assert [member.state for member in two.members()] == ["self", "alive"]
                other = two.members()[1]
                assert (other.peer, other.labels, other.addresses) == (one.peer_id, {"zone": "a"}, bootstrap)
                assert (two.members()[0].nearness, other.nearness) == (0, 2), "another zone, and no region named"
                assert (other.blame, other.banned) == ({}, False)

                under_way: list[TransferView] = []
                report = await two.pull("llama", on_progress=lambda _: under_way.extend(two.status().transfers))
                assert (report.digest, report.sources) == (added.digest, {one.peer_id: report.size_bytes})
                assert {view.model for view in under_way} == {"llama:latest"}

                status = two.status()
                assert (status.members_alive, status.members_suspect, status.models) == (1, 0, 1)
                assert (status.transfers, status.stored_bytes) == ([], report.size_bytes)
                assert 0 < status.uptime_s < 120
                two.blame.blame(one.peer_id, "chunk", "it sent wrong bytes", ban=True)
                assert two.members()[1].banned
                told = await metrics_of(two)
                assert all(re.search(f"^herd_{room}_", told, re.MULTILINE) for room in ROOMS)
                assert 'herd_blame_total{reason="chunk"} 1.0' in told
            # It said good-bye, so nobody had to suspect it.
            await until(lambda: [member.state for member in one.members()] == ["self", "left"])


async def test_what_a_node_knew_it_knows_again_at_once(tmp_path: Path) -> None:
    with trio.fail_after(120):
        model = await write_llama(tmp_path / "llama.gguf", size_mb=1)
        async with running(tmp_path / "one") as one:
            await one.add(model, "llama")
            bootstrap, key = one.status().addresses, key_of(tmp_path / "one")
            async with running(tmp_path / "two", key, bootstrap=bootstrap) as two:
                await until(lambda: two.catalog.names() != [])
        async with running(tmp_path / "two", key) as two:
            assert two.catalog.names() == ["registry.ollama.ai/library/llama:latest"]
            assert await two.discover("*") == [], "known, but nobody who holds it is alive"


async def test_what_multicast_dns_finds_is_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    @asynccontextmanager
    async def open_fake_mdns(
        peer: PeerId, addresses: Sequence[str], found: Callable[[str], None], **_options: object
    ) -> AsyncIterator[None]:
        for multiaddr in heard:
            found(multiaddr)
        yield

    monkeypatch.setattr(app, "open_mdns", open_fake_mdns)
    with trio.fail_after(60):
        async with running(tmp_path / "one") as one:
            heard += one.status().addresses
            key = key_of(tmp_path / "one")
            async with running(tmp_path / "deaf", key) as deaf, running(tmp_path / "two", key, mdns=True) as two:
                await until(lambda: two.status().members_alive == 1)
                assert deaf.status().members_alive == 0


async def test_limits_are_those_of_the_home_until_others_are_set(tmp_path: Path) -> None:
    (tmp_path / "herd.toml").write_text('[limits]\nup = "5MB/s"\n')
    with trio.fail_after(60):
        async with running(tmp_path) as node:
            assert not node.limiting.unlimited(Direction.UP)
            assert node.limits().limits[0].bytes_per_s == 5_000_000
            view = node.set_limits({"up": "unlimited"})
            assert node.limiting.unlimited(Direction.UP)
            assert view.changed == ["up"]
            assert view.note.endswith(f"under [limits] in {tmp_path}/herd.toml")


async def test_one_home_opens_one_node(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with running(tmp_path):
            with pytest.raises(UsageError, match="a node of this home is already running"):
                async with running(tmp_path):
                    pass


async def test_who_joins_must_have_the_key_and_does_not_make_one(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with running(tmp_path / "one") as one:
            with pytest.raises(UsageError, match="HERD_MESH_KEY"):
                async with running(tmp_path / "two", bootstrap=one.status().addresses):
                    pass
        assert not (tmp_path / "two" / "mesh.key").exists()


async def test_the_status_counts_members_by_their_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with trio.fail_after(60):
        async with running(tmp_path) as node:
            (own,) = node.membership.members()
            seen = [attrs.evolve(own, state=state) for state in ("alive", "suspect", "suspect", "dead", "left")]
            monkeypatch.setattr(node.membership, "members", lambda: [own, *seen])
            assert (node.status().members_alive, node.status().members_suspect) == (1, 2)


async def test_a_broken_network_is_one_error_with_the_models_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*arguments: object) -> None:
        raise TransportError("the network is down")

    with trio.fail_after(60):
        async with running(tmp_path) as node:
            monkeypatch.setattr(node.models, "pull", broken)
            monkeypatch.setattr(node.models, "discover", broken)
            steps: list[Progress] = []
            with pytest.raises(HerdError, match="llama could not be pulled: the network is down"):
                await node.pull("llama", on_progress=steps.append)
            with pytest.raises(HerdError, match=r"could not be asked for lla\*: the network is down"):
                await node.discover("lla*")
