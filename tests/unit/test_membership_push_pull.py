"""Push/pull between two cores: a fingerprint first, whole tables only where two believe different things."""

from protocols.effects import TimerFired
from protocols.membership.events import AnswerOverStream, PushPull, PushPullAnswered, ReceivedOverStream
from protocols.membership.membership import Membership
from protocols.membership.messages import Fingerprint, Table
from tests.support_membership import Person, make_core
from tests.support_membership_transcript import FOUR, ONE, THREE, TWO, alive, blames, dead, hear, of, state, suspect


def core_of(own: Person, *others: Person) -> Membership:
    """A core of one that has heard of the others."""
    core = make_core(own)
    for other in others:
        hear(core, other, alive(other))
    return core


def ask(core: Membership, asked: Membership, asker: Person, question: PushPull) -> tuple[object, list[PushPull]]:
    """One question and what the asked answers; what the asker still wants to say then."""
    [answer] = of(asked.handle(ReceivedOverStream(asker.peer, question.message, "token"), 2.0), AnswerOverStream)
    effects = core.handle(PushPullAnswered(question.peer, answer.message, question.message), 2.0)
    assert blames(effects) == []
    return answer.message, of(effects, PushPull)


def question_of(core: Membership) -> PushPull:
    """What the core asks when its push/pull is due."""
    [question] = of(core.handle(TimerFired("push_pull"), 1.0), PushPull)
    assert isinstance(question, PushPull)
    return question


def test_two_that_believe_the_same_spare_each_other_their_tables() -> None:
    one, two = core_of(ONE, TWO), core_of(TWO, ONE)
    question = question_of(one)
    assert isinstance(question.message, Fingerprint)
    answer, further = ask(one, two, ONE, question)
    assert answer == question.message
    assert further == []


def test_who_knows_less_is_told_and_tells_nothing() -> None:
    one, two = core_of(ONE, TWO), core_of(TWO, ONE, THREE)
    answer, further = ask(one, two, ONE, question_of(one))
    assert isinstance(answer, Table)
    assert state(one, THREE) == "alive"
    assert further == []


def test_who_knows_other_things_tells_them_too_and_once() -> None:
    one, two = core_of(ONE, TWO, FOUR), core_of(TWO, ONE, THREE)
    _, [push] = ask(one, two, ONE, question_of(one))
    assert isinstance(push.message, Table)
    answer, further = ask(one, two, ONE, push)
    assert isinstance(answer, Table)
    assert further == []
    assert state(two, FOUR) == state(one, THREE) == "alive"
    assert question_of(one).message == question_of(two).message


def test_a_suspicion_is_no_difference_and_a_death_is() -> None:
    one, two = core_of(ONE, TWO, THREE), core_of(TWO, ONE, THREE)
    hear(one, TWO, suspect(THREE, TWO))
    assert question_of(one).message == question_of(two).message
    hear(one, TWO, dead(THREE, TWO))
    answer, _ = ask(one, two, ONE, PushPull(TWO.peer, question_of(one).message))
    assert isinstance(answer, Table)


def test_a_fingerprint_that_answers_another_one_is_blamed() -> None:
    one = core_of(ONE, TWO)
    asked = question_of(one).message
    effects = one.handle(PushPullAnswered(TWO.peer, Fingerprint(b"x" * 16), asked), 2.0)
    assert blames(effects) == ["sent a Fingerprint as the answer to a fingerprint"]
    effects = one.handle(PushPullAnswered(TWO.peer, asked, one.table_message(2.0)), 2.0)
    assert blames(effects) == ["sent a Fingerprint as the answer to a table"]
