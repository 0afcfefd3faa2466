"""How one core probes: pings, requests to others, streams, nacks, its own health; effect by effect."""

import pytest

from protocols.effects import Received, SetTimer, TimerFired
from protocols.membership.config import MembershipConfig
from protocols.membership.events import (
    MemberChangedEffect,
    ProbeOverStream,
    PushPullAnswered,
    Started,
    StreamProbeAnswered,
)
from protocols.membership.messages import (
    Ack,
    AliveUpdate,
    Gossip,
    Nack,
    Ping,
    PingRequest,
    SuspectUpdate,
    Table,
    TableEntry,
)
from protocols.membership.probing import RELAYED_MAX
from tests.support_membership import make_core
from tests.support_membership_transcript import (
    FOUR,
    ONE,
    THREE,
    TWO,
    alive,
    begin_probe,
    core_knowing,
    hear,
    of,
    sends,
    state,
    updates_in,
)


def test_ping_is_answered_with_its_sequence() -> None:
    effects = core_knowing(TWO).handle(Received(TWO.peer, Ping(77)), 1.0)
    assert sends(effects, Ack) == [(TWO.peer, Ack(77))]


def test_first_ping_to_a_newcomer_carries_our_record_and_later_ones_do_not() -> None:
    core = make_core(ONE)
    core.handle(Started(), 0.0)
    core.handle(PushPullAnswered(THREE.peer, Table((TableEntry(TWO.signed(), "alive", 0.0),))), 0.0)
    target, sequence, effects = begin_probe(core)
    assert target == TWO.peer
    assert updates_in(sends(effects, Ping)[0][1]) == [AliveUpdate(core.members()[0].signed)]
    core.handle(Received(TWO.peer, Ack(sequence)), 1.1)
    _, _, effects = begin_probe(core, 2.0)
    assert sends(effects, Ping)[0][1].updates == ()


def test_answered_probe_changes_nothing() -> None:
    core = core_knowing(TWO)
    _, sequence, _ = begin_probe(core)
    assert core.handle(Received(TWO.peer, Ack(sequence)), 1.1) == []
    assert core.handle(TimerFired("probe_timeout"), 1.5) == []
    core.handle(TimerFired("probe"), 2.0)
    assert state(core, TWO) == "alive"
    assert core.statistics().probes_answered == 1


def test_unanswered_probe_asks_others_and_a_stream_then_suspects_and_tells_the_suspect_first() -> None:
    core = core_knowing(TWO, THREE, FOUR)
    target, sequence, _ = begin_probe(core)
    effects = core.handle(TimerFired("probe_timeout"), 1.5)
    others = {TWO.peer, THREE.peer, FOUR.peer} - {target}
    assert dict(sends(effects, PingRequest)) == dict.fromkeys(others, PingRequest(sequence, target))
    [stream_probe] = of(effects, ProbeOverStream)
    assert (stream_probe.peer, stream_probe.sequence, stream_probe.message.sequence) == (target, sequence, sequence)

    for other in others:
        core.handle(Received(other, Nack(sequence)), 1.9)
    core.handle(StreamProbeAnswered(target, sequence, None), 1.95)
    effects = core.handle(TimerFired("probe"), 2.0)
    [changed] = of(effects, MemberChangedEffect)
    assert (changed.member.peer, changed.member.state) == (target, "suspect")
    to, gossip = sends(effects, Gossip)[0]
    assert to == target
    assert updates_in(gossip) == [SuspectUpdate(target, 1, ONE.peer)]
    assert core.statistics().local_health_score == 0, "all nacks came, so the silence is the target's"


def test_missing_nacks_make_the_prober_doubt_itself() -> None:
    core = core_knowing(TWO, THREE, FOUR)
    target, sequence, _ = begin_probe(core)
    core.handle(TimerFired("probe_timeout"), 1.5)
    core.handle(StreamProbeAnswered(target, sequence, None), 1.9)
    effects = core.handle(TimerFired("probe"), 2.0)
    assert core.statistics().local_health_score == 2
    # The next period began after the verdict: it and its timeout are stretched by score + 1.
    timers = {effect.name: effect.delay_s for effect in of(effects, SetTimer)}
    assert (timers["probe"], timers["probe_timeout"]) == (3.0, 1.5)


def test_ack_through_a_relay_counts() -> None:
    core = core_knowing(TWO, THREE)
    target, sequence, _ = begin_probe(core)
    core.handle(TimerFired("probe_timeout"), 1.5)
    [relay] = {TWO.peer, THREE.peer} - {target}
    core.handle(Received(relay, Ack(sequence)), 1.8)
    core.handle(StreamProbeAnswered(target, sequence, None), 1.9)
    core.handle(TimerFired("probe"), 2.0)
    assert core.statistics().probes_answered_indirectly == 1
    assert core.statistics().suspect == 0


def test_ack_from_a_bystander_does_not_count() -> None:
    core = core_knowing(TWO, THREE, config=MembershipConfig(indirect_probe_count=0))
    target, sequence, _ = begin_probe(core)
    core.handle(TimerFired("probe_timeout"), 1.5)
    [bystander] = {TWO.peer, THREE.peer} - {target}
    core.handle(Received(bystander, Ack(sequence)), 1.8)
    core.handle(StreamProbeAnswered(target, sequence, None), 1.9)
    core.handle(TimerFired("probe"), 2.0)
    assert core.statistics().suspect == 1


@pytest.mark.parametrize("in_time", [True, False])
def test_stream_answer_saves_a_member_even_after_the_period(in_time: bool) -> None:
    core = core_knowing(TWO)
    _, sequence, _ = begin_probe(core)
    core.handle(TimerFired("probe_timeout"), 1.5)
    if not in_time:
        core.handle(TimerFired("probe"), 2.0)
        assert state(core, TWO) == "alive", "the verdict waits for the stream"
    core.handle(StreamProbeAnswered(TWO.peer, sequence, Ack(sequence)), 2.3)
    assert state(core, TWO) == "alive"
    assert core.statistics().probes_answered_over_stream == 1


def test_late_silence_of_the_stream_suspects() -> None:
    core = core_knowing(TWO)
    _, sequence, _ = begin_probe(core)
    core.handle(TimerFired("probe_timeout"), 1.5)
    core.handle(TimerFired("probe"), 2.0)
    core.handle(StreamProbeAnswered(TWO.peer, sequence, None), 2.5)
    assert state(core, TWO) == "suspect"


def test_member_without_a_datagram_address_is_probed_over_the_stream_only() -> None:
    core = make_core(ONE)
    core.handle(Started(), 0.0)
    hear(core, TWO, alive(TWO, datagram_address=""))
    effects = core.handle(TimerFired("probe"), 1.0)
    assert sends(effects, Ping) == []
    assert [effect.peer for effect in of(effects, ProbeOverStream)] == [TWO.peer]


def test_ping_request_is_relayed_and_its_ack_passed_on() -> None:
    core = core_knowing(TWO, THREE)
    effects = core.handle(Received(TWO.peer, PingRequest(9, THREE.peer)), 1.0)
    [(target, ping)] = sends(effects, Ping)
    assert target == THREE.peer
    effects = core.handle(Received(THREE.peer, Ack(ping.sequence)), 1.1)
    assert sends(effects, Ack) == [(TWO.peer, Ack(9))]


def test_silence_of_the_target_gives_a_nack_and_a_late_ack_still_passes() -> None:
    core = core_knowing(TWO, THREE)
    effects = core.handle(Received(TWO.peer, PingRequest(9, THREE.peer)), 1.0)
    [(_, ping)] = sends(effects, Ping)
    [timer] = of(effects, SetTimer)
    assert timer.delay_s == 0.4
    assert sends(core.handle(TimerFired(timer.name), 1.4), Nack) == [(TWO.peer, Nack(9))]
    assert sends(core.handle(Received(THREE.peer, Ack(ping.sequence)), 1.6), Ack) == [(TWO.peer, Ack(9))]
    assert core.handle(TimerFired(timer.name), 2.4) == []


def test_ping_request_for_a_stranger_gets_a_nack_at_once() -> None:
    effects = core_knowing(TWO).handle(Received(TWO.peer, PingRequest(9, FOUR.peer)), 1.0)
    assert sends(effects, Nack) == [(TWO.peer, Nack(9))]


def test_relayed_pings_are_bounded() -> None:
    core = core_knowing(TWO, THREE)
    for number in range(RELAYED_MAX):
        core.handle(Received(TWO.peer, PingRequest(number, THREE.peer)), 1.0)
    effects = core.handle(Received(TWO.peer, PingRequest(9999, THREE.peer)), 1.0)
    assert sends(effects, Nack) == [(TWO.peer, Nack(9999))]


def test_period_that_came_late_judges_nobody() -> None:
    core = core_knowing(TWO)
    _, sequence, _ = begin_probe(core)
    core.handle(TimerFired("probe_timeout"), 30.0)
    core.handle(StreamProbeAnswered(TWO.peer, sequence, None), 30.0)
    core.handle(TimerFired("probe"), 30.0)
    assert state(core, TWO) == "alive"
    assert core.statistics().overslept_periods == 1
