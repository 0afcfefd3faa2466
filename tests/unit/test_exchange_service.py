"""Stories of whole nodes that fetch from each other, under virtual time."""

import pytest
import trio
import trio.testing

from node.errors import TransferFailed, VerificationFailed
from node.services.exchange.service import FetchProgress
from protocols.exchange.config import ExchangeConfig
from protocols.ids import Digest, digest_of
from simnet.blobs import MemoryBlobs, cut
from tests.support_exchange import CHUNK, Peer, open_swarm, some_bytes


async def test_one_holder_one_asker(autojump_clock: trio.testing.MockClock) -> None:
    async with open_swarm() as swarm:
        seed, asker = await swarm.add("seed"), await swarm.add("asker")
        data = some_bytes(10 * CHUNK + 17)
        digest = seed.blobs.add(data)
        progress: list[FetchProgress] = []

        report = await asker.fetch(digest, len(data), [seed], on_progress=progress.append)

        assert asker.blobs.whole(digest) == data
        assert report.fetched_bytes == len(data)
        assert report.sources == {seed.id: len(data)}
        assert (report.resumed_bytes, report.duplicate_bytes, report.refused_chunks, report.refused_bytes) == (
            0,
            0,
            0,
            0,
        )
        assert seed.exchange.statistics().served_bytes == len(data)
        assert progress[0].held_bytes == 0
        assert progress[-1] == FetchProgress(len(data), len(data), {seed.id: len(data)}, 0)
        assert asker.exchange.statistics().outstanding_bytes == 0


async def test_three_receivers_feed_each_other(autojump_clock: trio.testing.MockClock) -> None:
    # A few chunks at a time from each, as with chunks of 4 MiB and the windows that are usual then.
    config = ExchangeConfig(outstanding_start_bytes=2 * CHUNK, outstanding_bytes_max=4 * CHUNK)
    async with open_swarm(latency_s=0.001, config=config) as swarm:
        seed = await swarm.add("seed", MemoryBlobs(chunk_size_bytes=CHUNK, read_delay_s=0.05, reads_at_once=1))
        receivers = [await swarm.add(name) for name in ("ann", "bob", "cat")]
        data = some_bytes(96 * CHUNK)
        digest = seed.blobs.add(data)
        reports = {}

        async def fetch(peer: Peer) -> None:
            reports[peer.id] = await peer.fetch(digest, len(data), [seed, *receivers])

        async with trio.open_nursery() as nursery:
            for peer in receivers:
                nursery.start_soon(fetch, peer)

        assert all(peer.blobs.whole(digest) == data for peer in receivers)
        from_seed = sum(report.sources.get(seed.id, 0) for report in reports.values())
        from_each_other = sum(report.fetched_bytes for report in reports.values()) - from_seed
        assert from_seed + from_each_other == 3 * len(data)
        assert from_each_other > len(data), f"only {from_each_other / len(data):.2f} blobs came from other receivers"
        travelled = sum(peer.exchange.statistics().served_bytes for peer in (seed, *receivers))
        assert travelled == 3 * len(data) + sum(report.duplicate_bytes for report in reports.values())


async def test_a_killed_sender_is_replaced_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with open_swarm() as swarm:
        slow = MemoryBlobs(chunk_size_bytes=CHUNK, read_delay_s=0.05)
        first = await swarm.add("first", slow)
        second = await swarm.add("second", MemoryBlobs(chunk_size_bytes=CHUNK, read_delay_s=0.05))
        asker = await swarm.add("asker")
        data = some_bytes(60 * CHUNK)
        digest = first.blobs.add(data)
        second.blobs.add(data)

        def kill_in_the_middle(progress: FetchProgress) -> None:
            if progress.held_bytes >= len(data) // 3:
                first.kill()

        started_s = trio.current_time()
        report = await asker.fetch(digest, len(data), [first, second], on_progress=kill_in_the_middle)

        assert asker.blobs.whole(digest) == data
        assert report.sources[first.id] + report.sources[second.id] == len(data)
        assert report.sources[first.id] < len(data) / 2
        # 60 chunks, two at a time from each: the rest from one sender, and no waiting for a timeout in between.
        assert trio.current_time() - started_s < 60 * 0.05


async def test_a_flipped_byte_is_refused_and_fetched_elsewhere(autojump_clock: trio.testing.MockClock) -> None:
    config = ExchangeConfig(outstanding_start_bytes=2 * CHUNK, outstanding_bytes_max=4 * CHUNK)
    async with open_swarm(config=config) as swarm:
        rotten, sound, asker = await swarm.add("rotten"), await swarm.add("sound"), await swarm.add("asker")
        data = some_bytes(20 * CHUNK)
        digest = rotten.blobs.add(data)
        sound.blobs.add(data)
        for index in range(20):
            rotten.blobs.corrupt(digest, index * CHUNK + 5)

        report = await asker.fetch(digest, len(data), [rotten, sound])

        assert asker.blobs.whole(digest) == data
        assert report.sources == {sound.id: len(data)}
        assert report.refused_chunks >= 1
        assert report.refused_bytes == report.refused_chunks * CHUNK
        assert asker.blame.banned(rotten.id)
        assert asker.blame.view(rotten.id).counts["chunk"] == report.refused_chunks
        assert not asker.blame.banned(sound.id)


async def test_a_flipped_byte_at_the_only_holder_is_a_clear_error(autojump_clock: trio.testing.MockClock) -> None:
    async with open_swarm() as swarm:
        rotten, asker = await swarm.add("rotten"), await swarm.add("asker")
        data = some_bytes(4 * CHUNK)
        digest = rotten.blobs.add(data)
        rotten.blobs.corrupt(digest, 3 * CHUNK)
        started_s = trio.current_time()

        with pytest.raises(VerificationFailed, match="sent wrong bytes for chunk 3") as raised:
            await asker.fetch(digest, len(data), [rotten])

        assert "every holder sent wrong bytes" in str(raised.value)
        assert rotten.id[-8:] in str(raised.value)
        assert trio.current_time() - started_s < 3
        assert asker.blobs.whole(digest) is None


async def test_a_lying_recipe_costs_its_giver_the_trust(autojump_clock: trio.testing.MockClock) -> None:
    async with open_swarm() as swarm:
        data, other = some_bytes(8 * CHUNK), some_bytes(8 * CHUNK, seed=2)
        lie = cut(other, CHUNK)
        lie = type(lie)(digest_of(data), lie.size_bytes, lie.rule, lie.sizes_bytes, lie.hashes)
        liar, honest, asker = await swarm.add("liar"), await swarm.add("honest"), await swarm.add("asker")
        liar.blobs.add(other, recipe=lie)
        liar.blobs.on_read = lambda _digest, index: honest.blobs.add(data) if index == 7 else None

        report = await asker.fetch(digest_of(data), len(data), [liar, honest])

        assert asker.blobs.whole(digest_of(data)) == data
        assert report.sources == {honest.id: len(data)}
        assert report.fetched_bytes == len(data)
        assert report.refused_bytes == len(other)
        assert asker.blame.view(liar.id).counts == {"recipe": 1}
        assert asker.blame.banned(liar.id)


async def test_a_stalled_sender_does_not_hold_up_the_others(autojump_clock: trio.testing.MockClock) -> None:
    async with open_swarm() as swarm:
        stalled = await swarm.add("stalled", MemoryBlobs(chunk_size_bytes=CHUNK, read_delay_s=1e6))
        sound = await swarm.add("sound", MemoryBlobs(chunk_size_bytes=CHUNK, read_delay_s=0.01))
        asker = await swarm.add("asker")
        data = some_bytes(40 * CHUNK)
        digest = stalled.blobs.add(data)
        sound.blobs.add(data)
        started_s = trio.current_time()

        report = await asker.fetch(digest, len(data), [stalled, sound])

        assert report.sources == {sound.id: len(data)}
        assert trio.current_time() - started_s < 12


async def test_a_stall_of_everybody_is_told(autojump_clock: trio.testing.MockClock) -> None:
    async with open_swarm() as swarm:
        stalled = await swarm.add("stalled", MemoryBlobs(chunk_size_bytes=CHUNK, read_delay_s=1e6))
        asker = await swarm.add("asker")
        data = some_bytes(4 * CHUNK)
        digest = stalled.blobs.add(data)

        with pytest.raises(TransferFailed, match=r"nothing came for 30 s .*holds 4 of 4 chunks"):
            await asker.fetch(digest, len(data), [stalled])

        # The stalled session owes the end of its cancelled wants, and goes for it; nothing stays counted.
        await trio.sleep(30)
        assert asker.exchange.statistics().outstanding_bytes == 0


async def test_cancel_and_resume_fetches_only_what_is_missing(autojump_clock: trio.testing.MockClock) -> None:
    async with open_swarm() as swarm:
        seed = await swarm.add("seed", MemoryBlobs(chunk_size_bytes=CHUNK, read_delay_s=0.1))
        asker = await swarm.add("asker")
        data = some_bytes(30 * CHUNK)
        digest = seed.blobs.add(data)

        with trio.move_on_after(0.8):
            await asker.fetch(digest, len(data), [seed])
        held = asker.blobs.stored(digest)
        assert held is not None
        had = len(held)
        assert 0 < had < 30
        await trio.sleep(1)
        served_before = seed.exchange.statistics().served_bytes

        report = await asker.fetch(digest, len(data), [seed])

        assert report.resumed_bytes == had * CHUNK
        assert report.fetched_bytes == (30 - had) * CHUNK
        assert seed.exchange.statistics().served_bytes - served_before == report.fetched_bytes
        assert asker.blobs.whole(digest) == data


async def test_what_another_blob_here_has_does_not_travel(autojump_clock: trio.testing.MockClock) -> None:
    async with open_swarm() as swarm:
        seed, asker = await swarm.add("seed"), await swarm.add("asker")
        base = some_bytes(40 * CHUNK)
        tuned = some_bytes(4 * CHUNK, seed=2) + base[4 * CHUNK :]
        asker.blobs.add(base)
        digest = seed.blobs.add(tuned)
        progress: list[FetchProgress] = []

        report = await asker.fetch(digest, len(tuned), [seed], on_progress=progress.append)

        assert asker.blobs.whole(digest) == tuned
        assert (report.copied_bytes, report.fetched_bytes, report.resumed_bytes) == (36 * CHUNK, 4 * CHUNK, 0)
        assert seed.exchange.statistics().served_bytes == 4 * CHUNK
        assert asker.exchange.statistics().stored_bytes == 4 * CHUNK
        assert progress[-1].copied_bytes == 36 * CHUNK
        assert progress[-1].held_bytes == len(tuned)


async def test_a_crash_loses_at_most_what_was_not_durable(autojump_clock: trio.testing.MockClock) -> None:
    async with open_swarm() as swarm:
        seed = await swarm.add("seed", MemoryBlobs(chunk_size_bytes=CHUNK, read_delay_s=0.1))
        asker = await swarm.add("asker")
        data = some_bytes(20 * CHUNK)
        digest = seed.blobs.add(data)
        with trio.move_on_after(0.8):
            await asker.fetch(digest, len(data), [seed])
        left = asker.blobs.crash()
        asker.kill()
        assert left.held(digest) is None, "nothing of it is served before somebody goes on with it"

        again = await swarm.add("again", left)
        report = await again.fetch(digest, len(data), [seed])

        assert report.resumed_bytes + report.fetched_bytes == len(data)
        assert report.resumed_bytes > 0
        assert again.blobs.whole(digest) == data


async def test_two_local_askers_share_one_transfer(autojump_clock: trio.testing.MockClock) -> None:
    async with open_swarm() as swarm:
        seed = await swarm.add("seed", MemoryBlobs(chunk_size_bytes=CHUNK, read_delay_s=0.05))
        asker = await swarm.add("asker")
        data = some_bytes(20 * CHUNK)
        digest = seed.blobs.add(data)
        reports = []

        async def fetch() -> None:
            reports.append(await asker.fetch(digest, len(data), [seed]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch)
            with trio.move_on_after(0.2) as impatient:
                await asker.fetch(digest, len(data), [seed])

        assert impatient.cancelled_caught
        assert [report.fetched_bytes for report in reports] == [len(data)]
        assert seed.exchange.statistics().served_bytes == len(data)


async def test_small_and_empty_blobs_take_two_round_trips(autojump_clock: trio.testing.MockClock) -> None:
    async with open_swarm(latency_s=0.05) as swarm:
        seed, asker = await swarm.add("seed"), await swarm.add("asker")
        blobs = [b"", b"x", *(some_bytes(300, seed=n) for n in range(50))]
        for data in blobs:
            seed.blobs.add(data)
        warm = some_bytes(9, seed=99)
        await asker.fetch(seed.blobs.add(warm), len(warm), [seed])
        started_s = trio.current_time()

        async with trio.open_nursery() as nursery:
            for data in blobs:
                nursery.start_soon(asker.fetch, digest_of(data), len(data), [seed])

        assert all(asker.blobs.whole(digest_of(data)) == data for data in blobs)
        assert trio.current_time() - started_s < 0.25
        assert asker.exchange.statistics().givers == 1


async def test_a_swarm_of_blobs_both_ways(autojump_clock: trio.testing.MockClock) -> None:
    async with open_swarm() as swarm:
        peers = [await swarm.add(name) for name in ("ann", "bob", "cat", "dan")]
        wanted: list[tuple[Digest, bytes]] = []
        for number, peer in enumerate(peers):
            for size in (3, 5 * CHUNK + 1, 17 * CHUNK):
                data = some_bytes(size + number, seed=number)
                wanted.append((peer.blobs.add(data), data))

        async with trio.open_nursery() as nursery:
            for peer in peers:
                for digest, data in wanted:
                    if peer.blobs.whole(digest) is None:
                        nursery.start_soon(peer.fetch, digest, len(data), peers)

        assert all(peer.blobs.whole(digest) == data for peer in peers for digest, data in wanted)
        await trio.sleep(1)  # What was on its way twice arrives.
        for peer in peers:
            statistics = peer.exchange.statistics()
            assert statistics.outstanding_bytes == statistics.serve_buffered_bytes == 0
            assert statistics.received_bytes == statistics.stored_bytes + statistics.duplicate_bytes


async def test_what_is_here_whole_needs_no_holder_however_it_is_cut(autojump_clock: trio.testing.MockClock) -> None:
    data = some_bytes(8 * CHUNK)
    stated = cut(data, CHUNK)
    async with open_swarm() as swarm:
        holder = await swarm.add("holder", MemoryBlobs(chunk_size_bytes=2 * CHUNK))
        holder.blobs.add(data)
        report = await holder.fetch(stated.digest, len(data), [], recipe_id=stated.id())
        assert (report.fetched_bytes, report.resumed_bytes) == (0, len(data))


async def test_every_byte_that_came_is_accounted_for_when_a_fetch_is_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_swarm() as swarm:
        seed = await swarm.add("seed")
        asker = await swarm.add("asker", MemoryBlobs(chunk_size_bytes=CHUNK, write_delay_s=1.0))
        data = some_bytes(20 * CHUNK)
        digest = seed.blobs.add(data)
        with trio.move_on_after(2.5):
            await asker.fetch(digest, len(data), [seed])
        await trio.sleep(5)
        seen = asker.exchange.statistics()
        assert 0 < seen.stored_bytes < len(data)
        assert seen.received_bytes == seen.stored_bytes + seen.duplicate_bytes + seen.refused_bytes
        assert seen.outstanding_bytes == 0
