"""The ledger of broken rules: what is counted, what is told, and for how long a peer is kept away."""

import logging

import pytest
import trio
from trio.testing import MockClock

from node import blame as blame_module
from node.blame import BAN_S, TOLD_PER_PEER_MAX, TOLD_PERIOD_S, BlameLedger
from node.events import EventBus
from tests.support_transport import identity_of

MALLORY, BOB = identity_of("mallory").peer_id, identity_of("bob").peer_id


async def test_a_thousand_broken_rules_are_counted_and_twenty_told(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = BlameLedger(EventBus())
    for _ in range(1000):
        ledger.blame(MALLORY, "protocol", "nonsense")
    ledger.blame(BOB, "protocol", "another's flood hides nobody")
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == TOLD_PER_PEER_MAX + 1
    assert ledger.view(MALLORY).counts == {"protocol": 1000}
    assert ledger.statistics() == {"protocol": 1001}
    await trio.sleep(TOLD_PERIOD_S)
    ledger.blame(MALLORY, "protocol", "nonsense")
    assert "for protocol (1001 times): nonsense" in caplog.text


async def test_a_ban_is_told_even_in_a_flood_and_runs_out_by_itself(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = BlameLedger(EventBus())
    for _ in range(100):
        ledger.blame(MALLORY, "protocol", "nonsense")
    assert not ledger.banned(MALLORY)
    ledger.blame(MALLORY, "chunk", "wrong bytes", ban=True)
    ledger.blame(MALLORY, "chunk", "wrong bytes", ban=True)
    assert caplog.text.count("for chunk") == 1
    assert ledger.banned(MALLORY)
    await trio.sleep(BAN_S)
    assert not ledger.banned(MALLORY)


async def test_the_ledger_forgets_whom_it_blamed_longest_ago(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blame_module, "PEERS_MAX", 10)
    ledger = BlameLedger(EventBus())
    for number in range(50):
        ledger.blame(identity_of(f"peer {number}").peer_id, "protocol", "nonsense", ban=True)
    assert len(ledger._counts) == len(ledger._told) == len(ledger._banned_until_s) == 10
    assert ledger.view(identity_of("peer 49").peer_id).banned
    assert ledger.view(identity_of("peer 0").peer_id).counts == {}
