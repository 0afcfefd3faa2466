"""What holds for membership whatever happens, in whatever order."""

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.effects import Event, Received, Send, TimerFired
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId
from protocols.membership.events import (
    AnswerOverStream,
    LocalChanged,
    PushPullAnswered,
    ReceivedOverStream,
    Started,
    StreamProbeAnswered,
)
from protocols.membership.messages import (
    MESSAGES,
    UPDATES,
    Ack,
    AliveUpdate,
    DeadUpdate,
    Gossip,
    Nack,
    Ping,
    PingRequest,
    SuspectUpdate,
    Table,
    TableEntry,
)
from protocols.membership.record import SignedRecord
from protocols.membership.suspicion import Suspicion
from tests.support_membership import PAYLOAD_SIZE_BYTES_MAX, Person, World, make_core

PEOPLE = [Person(number) for number in range(1, 6)]
OTHERS = PEOPLE[1:]
SIGNED = {
    (person.number, incarnation, left): person.signed(incarnation, left=left)
    for person in PEOPLE
    for incarnation in range(4)
    for left in (False, True)
}

numbers = st.integers(1, 5)
incarnations = st.integers(0, 3)
records = st.builds(
    lambda number, incarnation, left: SIGNED[number, incarnation, left], numbers, incarnations, st.booleans()
)
peers = st.sampled_from([person.peer for person in PEOPLE])
updates = st.one_of(
    records.map(AliveUpdate),
    st.builds(SuspectUpdate, peers, incarnations, peers),
    st.builds(DeadUpdate, peers, incarnations, peers),
).map(UPDATES.encode)
update_lists = st.lists(updates | st.binary(max_size=20), max_size=3).map(tuple)
sequences = st.integers(0, 2**63)
tables = st.lists(
    st.builds(TableEntry, records, st.sampled_from(["alive", "suspect", "dead", "left", "odd"]), st.floats()),
    max_size=6,
).map(lambda entries: Table(tuple(entries)))
messages = st.one_of(
    st.builds(Ping, sequences, update_lists),
    st.builds(Ack, sequences, update_lists),
    st.builds(PingRequest, sequences, peers | st.text(max_size=9).map(PeerId)),
    st.builds(Nack, sequences),
    st.builds(Gossip, update_lists),
    tables,
)
senders = st.sampled_from([person.peer for person in OTHERS])
timers = st.sampled_from(["probe", "probe_timeout", "gossip", "push_pull", "reconnect"]) | st.tuples(
    st.just("suspect"), peers
)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(Received, senders, messages),
    st.builds(ReceivedOverStream, senders, messages, st.just("token")),
    st.builds(PushPullAnswered, senders, messages),
    st.builds(StreamProbeAnswered, senders, sequences, st.none() | messages),
    timers.map(TimerFired),
    st.builds(LocalChanged, free_disk_bytes=st.integers(0, 10)),
)


@given(st.lists(st.tuples(st.floats(0, 5), events), max_size=40))
def test_no_history_breaks_the_rules(history: list[tuple[float, Event]]) -> None:
    core = make_core(PEOPLE[0])
    core.handle(Started(), 0.0)
    now = 0.0
    known: dict[PeerId, tuple[int, str]] = {}
    for delay_s, event in history:
        now += delay_s
        for effect in core.handle(event, now):
            if isinstance(effect, Send):
                assert len(MESSAGES.encode(effect.message)) <= PAYLOAD_SIZE_BYTES_MAX
                assert effect.to != PEOPLE[0].peer
            if isinstance(effect, AnswerOverStream):
                assert isinstance(effect.message, Ack | Table)
        for member in core.members():
            before, state = known.get(member.peer, (-1, "unknown"))
            incarnation = member.record.incarnation
            assert incarnation >= before, "an incarnation never goes back"
            if state in ("dead", "left") and member.state in ("alive", "suspect"):
                assert incarnation > before, "nobody comes back without its own newer word"
            known[member.peer] = incarnation, member.state
        assert core.members()[0].state == "self"
        assert core.alive() == sorted(m.peer for m in core.members() if m.state in ("alive", "suspect"))


@given(st.lists(records, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_members_own_words_give_the_same_table_in_any_order_and_number(
    words: list[SignedRecord], shuffler: random.Random
) -> None:
    def outcome(order: list[SignedRecord]) -> list[Any]:
        core = make_core(PEOPLE[4], incarnation=100)
        for signed in order:
            core.handle(Received(OTHERS[0].peer, Gossip((UPDATES.encode(AliveUpdate(signed)),))), 1.0)
        return [(member.record, member.state) for member in core.members()[1:]]

    again = [*words, *words]
    shuffler.shuffle(again)
    assert outcome(words) == outcome(again)


@given(st.binary(max_size=200))
def test_decoding_junk_is_a_remote_error_or_a_message(junk: bytes) -> None:
    for codec in (MESSAGES, UPDATES):
        try:
            message = codec.decode(junk)
        except RemoteProtocolError:
            continue
        assert codec.decode(codec.encode(message)) == message


@given(messages)
def test_messages_travel_unchanged(message: object) -> None:
    encoded = MESSAGES.encode(message)
    assert MESSAGES.encode(MESSAGES.decode(encoded)) == encoded


@given(
    st.floats(0.1, 50),
    st.floats(1, 10),
    st.integers(0, 6),
    st.lists(st.sampled_from("abcdefgh").map(PeerId), max_size=12),
)
def test_accusers_only_ever_shorten_a_suspicion_and_never_below_the_shortest(
    shortest_s: float, factor: float, wanted: int, accusers: list[PeerId]
) -> None:
    suspicion = Suspicion(PeerId("first"), 10.0, shortest_s=shortest_s, longest_s=factor * shortest_s, wanted=wanted)
    deadline = suspicion.runs_out_at()
    for accuser in accusers:
        suspicion.confirm(accuser)
        assert 10.0 + shortest_s <= suspicion.runs_out_at() <= deadline
        deadline = suspicion.runs_out_at()


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 2**32),
    st.floats(0, 0.15),
    st.lists(st.tuples(st.sampled_from(["crash", "start", "block", "unblock"]), st.integers(2, 8)), max_size=8),
)
def test_any_mix_of_crashes_restarts_and_blocked_udp_settles(
    seed: int, loss: float, steps: list[tuple[str, int]]
) -> None:
    world = World(seed=seed, loss=loss)
    for number in range(1, 9):
        world.start(number)
        if number > 1:
            world.join(number, through=1)
    for step, number in steps:
        world.run(3)
        if step == "crash" and number in world.cores:
            world.crash(number)
        elif step == "start" and number not in world.cores:
            world.start(number)
            world.join(number, through=1)
        elif step == "block":
            world.udp_blocked.add(number)
        elif step == "unblock":
            world.udp_blocked.discard(number)
    world.run(150)
    assert world.everybody_sees_everybody()
    assert world.blames == []
