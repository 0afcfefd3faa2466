"""node/store/census: what waits to be read comes smallest first, whatever changes meanwhile."""

from pathlib import Path

import attrs

from node.events import EventBus
from node.store.census import VERIFIED, BlobFile, Census
from node.store.files import FileKey
from protocols.ids import Digest, digest_of


def blob(number: int, size_bytes: int) -> BlobFile:
    digest = digest_of(str(number).encode())
    return BlobFile(digest, Path("blobs") / digest, FileKey(1, number, size_bytes, 1))


def reading_order(census: Census) -> list[Digest]:
    order = []
    while (file := census.next_unverified()) is not None:
        order.append(file.digest)
        census.put_file(attrs.evolve(file, state=VERIFIED, chunk_count=1))
    return order


def test_the_smallest_file_is_read_next_and_of_equals_the_first_found() -> None:
    census = Census(EventBus())
    large, small, middle, other = blob(1, 900), blob(2, 10), blob(3, 500), blob(4, 500)
    for file in (large, small, middle, other):
        census.put_file(file)
    assert census.unverified_bytes() == 1910

    assert reading_order(census) == [small.digest, middle.digest, other.digest, large.digest]
    assert census.unverified_bytes() == 0


def test_what_is_postponed_gone_or_grown_meanwhile_keeps_its_place() -> None:
    census = Census(EventBus())
    first, second, third = blob(1, 100), blob(2, 200), blob(3, 300)
    for file in (first, second, third):
        census.put_file(file)
    census.postpone(first.digest)
    census.drop_file(second.digest)
    census.put_file(attrs.evolve(third, key=attrs.evolve(third.key, size_bytes=50)))
    assert census.unverified_bytes() == 50

    # The next scan finds the postponed one still there, and again; it is read once.
    census.enqueue(first.digest)
    census.enqueue(first.digest)
    census.put_file(blob(4, 75))
    assert reading_order(census) == [third.digest, blob(4, 75).digest, first.digest]
