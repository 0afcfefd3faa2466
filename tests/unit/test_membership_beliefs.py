"""What one core believes of others and why: suspicion, refutation, death, leaving, tables; effect by effect."""

import pytest

from protocols.effects import Received, SetTimer, TimerFired
from protocols.membership.config import MembershipConfig
from protocols.membership.events import (
    AnswerOverStream,
    Leave,
    LocalChanged,
    MemberChangedEffect,
    PushPull,
    PushPullAnswered,
    ReceivedOverStream,
    StreamProbeAnswered,
)
from protocols.membership.messages import UPDATES, Ack, AliveUpdate, DeadUpdate, Gossip, Nack, Ping, Table, TableEntry
from tests.support_membership import Person, make_core
from tests.support_membership_transcript import (
    FOUR,
    ONE,
    THREE,
    TWO,
    alive,
    blames,
    core_knowing,
    dead,
    hear,
    incarnation,
    of,
    sends,
    state,
    suspect,
    updates_in,
)


def test_suspicion_runs_out_into_death() -> None:
    core = core_knowing(TWO, THREE)
    effects = hear(core, THREE, suspect(TWO, THREE))
    [timer] = [effect for effect in of(effects, SetTimer) if effect.name == ("suspect", TWO.peer)]
    effects = core.handle(TimerFired(("suspect", TWO.peer)), 1.0 + timer.delay_s)
    assert [(e.member.peer, e.member.state) for e in of(effects, MemberChangedEffect)] == [(TWO.peer, "dead")]
    assert core.alive() == [THREE.peer]


def test_independent_accusers_shorten_a_suspicion_and_repeated_ones_do_not() -> None:
    crowd = [Person(number) for number in range(2, 12)]
    core = core_knowing(*crowd)
    delays = []
    for accuser in (crowd[1], crowd[1], crowd[2], crowd[3], crowd[4]):
        timers = [e.delay_s for e in of(hear(core, accuser, suspect(TWO, accuser)), SetTimer) if e.name != "gossip"]
        delays.append(timers)
    alpha_s = 4 * 1.0413926851582251  # log10 of 11 members
    longest, repeated, second, third, surplus = delays
    assert longest == [pytest.approx(6 * alpha_s)]
    assert alpha_s < second[0] < 6 * alpha_s
    assert third == [pytest.approx(alpha_s)]
    assert repeated == surplus == []


def test_newer_incarnation_refutes_a_suspicion_and_its_timer() -> None:
    core = core_knowing(TWO, THREE)
    hear(core, THREE, suspect(TWO, THREE))
    effects = hear(core, TWO, alive(TWO, 2))
    assert state(core, TWO) == "alive"
    assert "CancelTimer" in {type(effect).__name__ for effect in effects}
    core.handle(TimerFired(("suspect", TWO.peer)), 99.0)
    assert state(core, TWO) == "alive"


def test_same_incarnation_refutes_nothing() -> None:
    core = core_knowing(TWO, THREE)
    hear(core, THREE, suspect(TWO, THREE))
    hear(core, TWO, alive(TWO, 1))
    assert state(core, TWO) == "suspect"


def test_stale_news_does_not_bring_back_the_dead_but_a_new_incarnation_does() -> None:
    core = core_knowing(TWO, THREE)
    hear(core, THREE, dead(TWO, THREE))
    hear(core, THREE, alive(TWO, 1))
    assert state(core, TWO) == "dead"
    hear(core, THREE, alive(TWO, 2))
    assert state(core, TWO) == "alive"


def test_accusation_of_another_incarnation_is_ignored() -> None:
    core = core_knowing(TWO, THREE)
    hear(core, THREE, suspect(TWO, THREE, incarnation=0), dead(TWO, THREE, incarnation=9))
    assert state(core, TWO) == "alive"


def test_suspected_node_refutes_at_once_to_who_told_it_and_doubts_itself() -> None:
    core = core_knowing(TWO, THREE)
    effects = hear(core, THREE, suspect(ONE, TWO))
    [(to, gossip)] = sends(effects, Gossip)
    assert to == THREE.peer
    [update] = updates_in(gossip)
    assert update == AliveUpdate(core.members()[0].signed)
    assert incarnation(core, ONE) == 2
    assert core.statistics().local_health_score == 1


def test_node_called_dead_in_a_ping_refutes_in_the_ack() -> None:
    core = core_knowing(TWO)
    effects = core.handle(Received(TWO.peer, Ping(5, (dead(ONE, TWO),))), 1.0)
    [(_, ack)] = sends(effects, Ack)
    assert updates_in(ack)[0] == AliveUpdate(core.members()[0].signed)
    assert incarnation(core, ONE) == 2


def test_ping_of_a_member_thought_dead_is_answered_with_that_belief() -> None:
    core = core_knowing(TWO, THREE)
    hear(core, THREE, dead(TWO, THREE))
    [(_, ack)] = sends(core.handle(Received(TWO.peer, Ping(5)), 2.0), Ack)
    assert updates_in(ack)[0] == DeadUpdate(TWO.peer, 1, ONE.peer)


def test_forged_record_is_blamed_on_its_sender_and_changes_nothing() -> None:
    core = core_knowing(TWO, THREE)
    true, forged = TWO.signed(), TWO.signed(5)
    mixed = UPDATES.encode(AliveUpdate(type(true)(forged.body, true.signature)))
    effects = hear(core, THREE, mixed)
    assert blames(effects) == [f"sent an update that is not true: member record of {TWO.peer} is not signed by it"]
    assert incarnation(core, TWO) == 1


@pytest.mark.parametrize("junk", [b"", b"\xc1", b"\x92\x01\x02", b"\x91\x63"])
def test_malformed_update_is_blamed(junk: bytes) -> None:
    effects = hear(core_knowing(TWO), TWO, junk)
    assert len(blames(effects)) == 1


def test_messages_at_the_wrong_place_are_blamed_and_get_no_answer() -> None:
    core = core_knowing(TWO)
    table = core.table_message(0.0)
    assert blames(core.handle(Received(TWO.peer, table), 1.0)) == ["sent a Table in a datagram"]
    effects = core.handle(ReceivedOverStream(TWO.peer, Ack(1), "t"), 1.0)
    assert blames(effects) == ["sent a Ack as a question on a stream"]
    assert of(effects, AnswerOverStream) == []
    assert blames(core.handle(PushPullAnswered(TWO.peer, Nack(1)), 1.0)) == ["sent a Nack as the answer to a table"]
    assert blames(core.handle(StreamProbeAnswered(TWO.peer, 1, table), 1.0)) == ["sent a Table as the answer to a ping"]


def test_table_with_an_impossible_state_is_blamed() -> None:
    core = core_knowing(TWO)
    effects = core.handle(PushPullAnswered(TWO.peer, Table((TableEntry(THREE.signed(), "undead", 0.0),))), 1.0)
    assert blames(effects) == ["sent a table that is not true: a member's state is not 'undead'"]
    assert state(core, THREE) == "unknown"


def test_table_over_any_sensible_size_is_blamed() -> None:
    core = core_knowing(TWO, config=MembershipConfig(members_max=2))
    effects = core.handle(PushPullAnswered(TWO.peer, Table((TableEntry(THREE.signed(), "alive", 0.0),) * 5)), 1.0)
    assert blames(effects) == ["sent a table of 5 members"]


def test_full_table_refuses_newcomers_but_makes_room_by_forgetting_the_dead() -> None:
    core = core_knowing(TWO, THREE, config=MembershipConfig(members_max=2))
    hear(core, TWO, alive(FOUR))
    assert state(core, FOUR) == "unknown"
    hear(core, TWO, dead(THREE, TWO))
    hear(core, TWO, alive(FOUR))
    assert (state(core, FOUR), state(core, THREE)) == ("alive", "unknown")


def test_push_pull_gives_the_whole_table_and_takes_in_the_others() -> None:
    core = core_knowing(TWO, THREE)
    hear(core, THREE, dead(TWO, THREE), now=5.0)
    question = Table((TableEntry(FOUR.signed(), "alive", 3.0),))
    effects = core.handle(ReceivedOverStream(FOUR.peer, question, "token"), 8.0)
    [answer] = of(effects, AnswerOverStream)
    assert answer.token == "token"
    rows = {entry.record: (entry.state, entry.age_s) for entry in answer.message.entries}
    own = core.members()[0].signed
    assert rows[own] == ("alive", 0.0)
    assert rows[TWO.signed()] == ("dead", 3.0)
    assert rows[FOUR.signed()] == ("alive", 0.0)


def test_member_dead_in_a_table_is_only_suspected_here() -> None:
    core = core_knowing(TWO, THREE)
    core.handle(PushPullAnswered(THREE.peer, Table((TableEntry(TWO.signed(), "dead", 1.0),))), 2.0)
    assert state(core, TWO) == "suspect"


def test_stranger_dead_in_a_table_is_remembered_as_long_as_the_teller_does_and_not_spread() -> None:
    core = core_knowing(TWO)
    effects = core.handle(PushPullAnswered(TWO.peer, Table((TableEntry(THREE.signed(), "dead", 40.0),))), 50.0)
    assert [e.member.state for e in of(effects, MemberChangedEffect)] == ["dead"]
    member = core.member(THREE.peer)
    assert member is not None
    assert member.since == 10.0
    assert core.statistics().updates_waiting == 0


def test_leave_is_signed_told_and_final() -> None:
    core = core_knowing(TWO, THREE)
    effects = core.handle(Leave(), 1.0)
    told = sends(effects, Gossip)
    assert {to for to, _ in told} == {TWO.peer, THREE.peer}
    assert {effect.peer for effect in of(effects, PushPull)} == {TWO.peer, THREE.peer}
    [update] = updates_in(told[0][1])
    other = core_knowing(TWO)
    other_two = make_core(TWO)
    hear(other_two, ONE, alive(ONE), UPDATES.encode(update))
    member = other_two.member(ONE.peer)
    assert member is not None
    assert (member.state, member.record.incarnation) == ("left", 2)
    assert other.members()[0].state == "self"
    assert core.handle(TimerFired("probe"), 2.0) == []
    assert hear(core, TWO, suspect(ONE, TWO, incarnation=2)) == []
    assert core.members()[0].state == "left"


def test_restarted_node_goes_past_its_earlier_life() -> None:
    core = core_knowing(TWO)
    effects = hear(core, TWO, alive(ONE, 500))
    assert incarnation(core, ONE) == 501
    assert len(sends(effects, Gossip)) == 1
    assert blames(effects) == []


def test_second_process_with_the_same_identity_is_noticed() -> None:
    core = core_knowing(TWO)
    told = [blames(hear(core, TWO, alive(ONE, 500 * number))) for number in range(1, 6)]
    assert [len(details) for details in told] == [0, 0, 1, 0, 0]
    assert "another process seems to run with this node's identity" in told[2][0]


def test_changed_labels_are_a_new_incarnation_and_unchanged_ones_are_nothing() -> None:
    core = core_knowing(TWO)
    assert core.handle(LocalChanged(labels={"region": "north"}), 1.0) == []
    core.handle(LocalChanged(labels={"region": "south"}, free_disk_bytes=7), 1.0)
    record = core.members()[0].record
    assert (record.incarnation, record.labels, record.free_disk_bytes) == (2, {"region": "south"}, 7)


def test_suspicion_that_ran_out_while_this_process_slept_gets_a_little_longer_once() -> None:
    core = core_knowing(TWO, THREE)
    hear(core, THREE, suspect(TWO, THREE))
    effects = core.handle(TimerFired(("suspect", TWO.peer)), 100.0)
    assert [effect.delay_s for effect in of(effects, SetTimer)] == [2.0]
    assert state(core, TWO) == "suspect"
    core.handle(TimerFired(("suspect", TWO.peer)), 102.0)
    assert state(core, TWO) == "dead"


def test_dead_member_is_asked_again_now_and_then() -> None:
    core = core_knowing(TWO, THREE)
    hear(core, THREE, dead(TWO, THREE), dead(THREE, TWO))
    effects = core.handle(TimerFired("reconnect"), 20.0)
    assert len(of(effects, PushPull)) == 1
    assert of(effects, PushPull)[0].peer in (TWO.peer, THREE.peer)


def test_freshly_dead_member_hears_of_its_death() -> None:
    core = core_knowing(TWO, THREE)
    hear(core, THREE, dead(TWO, THREE))
    told = dict(sends(core.handle(TimerFired("gossip"), 2.0), Gossip))
    assert DeadUpdate(TWO.peer, 1, ONE.peer) in updates_in(told[TWO.peer])
