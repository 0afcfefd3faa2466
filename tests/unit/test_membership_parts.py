"""The small parts of membership by themselves: records, suspicion, health, the update queue, the probe order."""

import random

import pytest

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import PeerId
from protocols.membership.beliefs import IDENTITY_CONFLICTS_TOLD
from protocols.membership.config import MembershipConfig
from protocols.membership.dissemination import UpdateQueue, transmissions_max
from protocols.membership.messages import MESSAGE_OVERHEAD_BYTES, MESSAGES, UPDATES, AliveUpdate, Ping, SuspectUpdate
from protocols.membership.record import (
    RECORD_SIZE_BYTES_MAX,
    SignedRecord,
    check_signature,
    fitting_addresses,
    labels_problem,
    read_record,
    sign_record,
)
from protocols.membership.suspicion import LocalHealth, Suspicion, confirmations_wanted, suspicion_bounds_s
from protocols.membership.table import Member, MemberTable
from tests.support_membership import PAYLOAD_SIZE_BYTES_MAX, Person

ONE, TWO = Person(1), Person(2)
A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def _member(number: int, state: str = "alive", since: float = 0.0) -> Member:
    person = Person(number)
    return Member(person.record(), person.signed(), state, since)


def test_signed_record_is_read_back_and_is_its_subjects_word() -> None:
    signed = ONE.signed(3)
    record = read_record(signed)
    assert record == ONE.record(3)
    check_signature(record, signed)


def test_record_signed_by_another_is_refused() -> None:
    signed = sign_record(ONE.record(), TWO.sign)
    with pytest.raises(RemoteProtocolError, match="is not signed by it"):
        check_signature(read_record(signed), signed)


def test_record_of_a_later_release_with_more_fields_is_understood_and_verified() -> None:
    from protocols.codec import pack

    record = ONE.record()
    fields = [ONE.peer, 1, list(record.addresses), record.datagram_address, {"region": "north"}, 10**12, False, "new"]
    body = pack(fields)
    signed = SignedRecord(body, ONE.sign(b"herd member record 1\x00" + body))
    assert read_record(signed) == record
    check_signature(record, signed)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"addresses": ("/ip4/1.1.1.1/tcp/1",) * 9}, "9 addresses are over the limit of 8"),
        ({"addresses": ("10.0.0.1:80",)}, "'10.0.0.1:80' is no multiaddr text"),
        ({"datagram_address": "/" + "x" * 120}, "an address of 121 bytes is over the limit of 120"),
        ({"labels": {str(i): "" for i in range(17)}}, "17 labels are over the limit of 16"),
        ({"labels": {"k": "v" * 300}}, "labels of 301 bytes .* are over the limit of 300"),
        ({"labels": {"": "v"}}, "a label has a key"),
        ({"labels": {"k": "two\nlines"}}, "printable text only"),
        ({"free_disk_bytes": -1}, "-1 bytes of free disk"),
        ({"addresses": tuple(f"/dns4/{'x' * 100}{i}/tcp/1" for i in range(8))}, "over the limit of 900"),
    ],
)
def test_record_over_a_limit_is_not_signed_and_the_limit_is_named(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(LocalProtocolError, match=problem):
        ONE.signed(**changes)  # type: ignore[arg-type]


def test_record_over_a_limit_from_a_peer_is_refused_too() -> None:
    from protocols.codec import pack

    for body in (b"x" * (RECORD_SIZE_BYTES_MAX + 1), b"\xc1", pack(ONE.record(-1)), pack(ONE.record(labels={"": ""}))):
        with pytest.raises(RemoteProtocolError):
            read_record(SignedRecord(body, bytes(64)))


def test_largest_possible_record_fits_one_ping() -> None:
    addresses = fitting_addresses([f"/dns4/{'x' * 25}{i}/tcp/65535" for i in range(50)])
    labels = {f"{i:02}": "é" * 8 for i in range(16)}
    assert labels_problem(labels) is None
    signed = ONE.signed(
        2**63 - 1, addresses=addresses, labels=labels, free_disk_bytes=2**62, datagram_address="/" + "x" * 119
    )
    ping = Ping(2**63, (UPDATES.encode(AliveUpdate(signed)),))
    assert len(MESSAGES.encode(ping)) <= PAYLOAD_SIZE_BYTES_MAX


def test_accusation_and_largest_record_together_do_not_break_the_limit() -> None:
    accusation = UPDATES.encode(SuspectUpdate(ONE.peer, 2**63 - 1, TWO.peer))
    large = UPDATES.encode(AliveUpdate(SignedRecord(bytes(RECORD_SIZE_BYTES_MAX), bytes(64))))
    updates = UpdateQueue().take(PAYLOAD_SIZE_BYTES_MAX - MESSAGE_OVERHEAD_BYTES, 4, (accusation, large))
    assert accusation in updates
    assert len(MESSAGES.encode(Ping(2**63, updates))) <= PAYLOAD_SIZE_BYTES_MAX


def test_fitting_addresses_keeps_order_drops_doubles_and_what_does_not_fit() -> None:
    many = [f"/ip4/10.0.0.{i}/tcp/4701" for i in range(20)]
    assert fitting_addresses([many[0], many[0], "no multiaddr", *many]) == (many[0], *many[1:8])
    assert fitting_addresses([]) == ()


def test_suspicion_bounds_follow_the_paper() -> None:
    assert suspicion_bounds_s(4, 6, 1.0, 2) == (4.0, 24.0)
    assert suspicion_bounds_s(4, 6, 1.0, 1000) == pytest.approx((12.0, 72.0))
    assert suspicion_bounds_s(4, 6, 0.5, 100) == (4.0, 24.0)


def test_small_groups_want_no_confirmations() -> None:
    assert [confirmations_wanted(4, count) for count in (1, 2, 3, 4, 100)] == [0, 0, 0, 2, 2]


def test_suspicion_shrinks_logarithmically_with_independent_accusers() -> None:
    suspicion = Suspicion(A, 100.0, shortest_s=2.0, longest_s=30.0, wanted=3)
    assert suspicion.runs_out_at() == 130.0
    assert not suspicion.confirm(A)
    assert suspicion.confirm(B)
    assert suspicion.runs_out_at() == pytest.approx(100 + 30 - 0.5 * 28)
    assert not suspicion.confirm(B)
    assert suspicion.confirm(C)
    assert suspicion.confirm(PeerId("d"))
    assert suspicion.runs_out_at() == pytest.approx(102.0)
    assert not suspicion.confirm(PeerId("e"))


def test_suspicion_in_a_small_group_is_the_shortest_from_the_start() -> None:
    suspicion = Suspicion(A, 100.0, shortest_s=4.0, longest_s=24.0, wanted=0)
    assert suspicion.runs_out_at() == 104.0
    assert not suspicion.confirm(B)


def test_local_health_stays_within_its_bounds() -> None:
    health = LocalHealth(7)
    health.add(-3)
    assert (health.score, health.stretch(0.5)) == (0, 0.5)
    health.add(100)
    assert (health.score, health.stretch(0.5)) == (7, 4.0)


def test_transmissions_grow_with_the_logarithm_of_the_group() -> None:
    assert [transmissions_max(4, count) for count in (1, 9, 10, 99, 100, 999)] == [4, 4, 8, 8, 12, 12]


def test_update_is_sent_a_bounded_number_of_times_and_newest_first() -> None:
    queue = UpdateQueue()
    queue.put(A, b"old a")
    queue.put(B, b"b")
    assert queue.take(5, 2) == (b"b",)
    assert queue.take(100, 2) == (b"old a", b"b")
    assert queue.take(100, 2) == (b"old a",)
    assert queue.take(100, 2) == ()
    assert len(queue) == 0


def test_news_of_a_subject_replaces_what_waited_about_it() -> None:
    queue = UpdateQueue()
    queue.put(A, b"suspect")
    queue.put(A, b"alive")
    assert queue.take(100, 3) == (b"alive",)


def test_updates_that_must_go_first_go_first_and_only_once() -> None:
    queue = UpdateQueue()
    queue.put(A, b"a")
    queue.put(B, b"b")
    assert queue.take(100, 3, (b"b",)) == (b"b", b"a")


def test_every_member_is_probed_once_a_round() -> None:
    table = MemberTable(100, random.Random(1))
    people = [_member(number) for number in range(1, 11)]
    for person in people:
        table.put(person)
    rounds = [[member.peer for _ in people if (member := table.next_probe()) is not None] for _ in range(5)]
    assert all(sorted(one) == table.reachable() for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1, "each round has an order of its own"


def test_newcomer_is_probed_within_the_running_round() -> None:
    table = MemberTable(100, random.Random(1))
    for number in range(1, 6):
        table.put(_member(number))
    for _ in range(2):
        table.next_probe()
    table.put(_member(9))
    rest = [member.peer for _ in range(4) if (member := table.next_probe()) is not None]
    assert Person(9).peer in rest


def test_a_member_that_comes_and_goes_often_is_probed_no_more_than_others() -> None:
    table = MemberTable(100, random.Random(1))
    for number in range(1, 11):
        table.put(_member(number))
    for _ in range(1000):
        table.put(_member(10, "left"))
        table.put(_member(10, "alive"))
    probed = [table.next_probe() for _ in range(20)]
    assert [member.peer for member in probed if member].count(Person(10).peer) <= 3


def test_the_dead_are_not_probed_and_an_empty_table_probes_nobody() -> None:
    table = MemberTable(100, random.Random(1))
    assert table.next_probe() is None
    table.put(_member(1))
    table.put(_member(2, "dead"))
    assert {member.peer for _ in range(6) if (member := table.next_probe())} == {ONE.peer}
    table.put(_member(1, "left"))
    assert table.next_probe() is None


def test_full_table_forgets_whoever_is_gone_longest() -> None:
    table = MemberTable(3, random.Random(1))
    assert table.put(_member(1, "dead", since=5.0))
    assert table.put(_member(2, "left", since=1.0))
    assert table.put(_member(3))
    assert table.put(_member(4))
    assert table.get(TWO.peer) is None
    assert table.put(_member(5))
    assert not table.put(_member(6))


def test_timeout_must_leave_room_for_indirect_probes() -> None:
    with pytest.raises(ValueError, match="probe_timeout_s: 1 is not allowed: under probe_interval_s"):
        MembershipConfig(probe_timeout_s=1.0)


def test_one_restart_is_no_identity_conflict() -> None:
    assert min(IDENTITY_CONFLICTS_TOLD) > 1
