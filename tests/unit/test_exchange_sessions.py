"""Transcripts of sessions: what each side says, and what neither may."""

from typing import Any

import msgpack
import pytest

from protocols.bits import Bits
from protocols.codec import Codec
from protocols.effects import Effect, Received, Send, SetTimer, TimerFired
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.exchange.asking import AskingSession
from protocols.exchange.asking_words import (
    BlobAbsent,
    BlobGained,
    BlobHeld,
    CancelChunks,
    ChunkCame,
    ChunkTaken,
    CloseBlob,
    FetchRecipe,
    OpenBlob,
    RecipeCame,
    SessionStarted,
    WantChunks,
    WantsOver,
    Welcomed,
)
from protocols.exchange.config import ExchangeConfig
from protocols.exchange.giving import (
    HAVE_TIMER,
    BlobChanged,
    BlobFound,
    BlobGrew,
    BlobNotFound,
    BlobReleased,
    GivingSession,
    Greeted,
    LookUp,
    WantsQueued,
)
from protocols.exchange.messages import (
    CODEC,
    OPEN_BLOBS_MAX,
    RECIPE_PAGE_SIZE_BYTES_MAX,
    WANTS_MAX,
    Bitfield,
    Cancel,
    Cancelled,
    Close,
    DontHave,
    GetRecipe,
    Have,
    Hello,
    Missing,
    Open,
    RecipePage,
    Want,
    Welcome,
    from_ranges,
    to_ranges,
)
from protocols.exchange.spread import Spread
from protocols.ids import PeerId, RecipeId, digest_of

GIVER, ASKER = PeerId("giver"), PeerId("asker")
TICKET = b"t" * 16
BLOB = digest_of(b"blob")
RULE_A, RULE_B = RecipeId(b"A" * 32), RecipeId(b"B" * 32)


def found(bits: Bits, recipe_id: RecipeId = RULE_A, recipe: bytes = b"recipe") -> BlobFound:
    return BlobFound(BLOB, bits, recipe_id, recipe, (100,) * bits.count)


class Asker:
    """The asking side with the wire cut open."""

    def __init__(self, **config: Any) -> None:
        self.core = AskingSession(GIVER, TICKET, ExchangeConfig(**config))

    def does(self, command: Any) -> list[Any]:
        return said(self.core.handle(command, 0.0))

    def hears(self, message: object) -> list[Any]:
        return said(self.core.handle(Received(GIVER, CODEC.decode(CODEC.encode(message))), 0.0))

    def opened(self, bits: Bits) -> "Asker":
        self.does(SessionStarted())
        self.hears(Welcome())
        self.does(OpenBlob(BLOB, 1000))
        self.hears(Bitfield(BLOB, bits.count, bits.to_bytes(), RULE_A))
        return self


class Giver:
    """The giving side with the wire cut open."""

    def __init__(self, spread: Spread | None = None) -> None:
        self.core = GivingSession(ASKER, ExchangeConfig(), spread)

    def learns(self, event: Any) -> list[Any]:
        return said(self.core.handle(event, 0.0))

    def hears(self, message: object) -> list[Any]:
        return said(self.core.handle(Received(ASKER, CODEC.decode(CODEC.encode(message))), 0.0))

    def opened(self, bits: Bits) -> "Giver":
        self.hears(Hello(TICKET))
        self.hears(Open(BLOB))
        self.learns(found(bits))
        return self


def said(effects: list[Effect]) -> list[Any]:
    """Messages bare, other effects as they are."""
    return [effect.message if isinstance(effect, Send) else effect for effect in effects]


def test_an_asker_from_hello_to_close() -> None:
    asker = Asker()
    assert asker.does(SessionStarted()) == [Hello(TICKET)]
    assert asker.does(OpenBlob(BLOB, 1 << 30)) == [Open(BLOB)]
    assert asker.hears(Welcome()) == [Welcomed()]
    bits = Bits(5, [0, 1, 2])
    assert asker.hears(Bitfield(BLOB, 5, bits.to_bytes(), RULE_A)) == [BlobHeld(BLOB, bits, RULE_A, b"")]
    assert asker.does(FetchRecipe(BLOB)) == [GetRecipe(BLOB, RULE_A, 0)]
    page, rest = b"r" * RECIPE_PAGE_SIZE_BYTES_MAX, b"est"
    size_bytes = len(page + rest)
    answers = asker.hears(RecipePage(BLOB, size_bytes, 0, page))
    assert answers == [GetRecipe(BLOB, RULE_A, len(page)), RecipeCame(BLOB, None)]
    assert asker.hears(RecipePage(BLOB, size_bytes, len(page), rest)) == [RecipeCame(BLOB, page + rest)]
    assert asker.does(WantChunks(BLOB, ((0, 100), (1, 100), (2, 50)))) == [Want(BLOB, RULE_A, ((0, 3),))]
    assert asker.does(ChunkCame(BLOB, 1, 100)) == [ChunkTaken(BLOB, 1, 100, True)]
    assert asker.hears(Have(BLOB, (3, 4))) == [BlobGained(BLOB, (3, 4))]
    assert asker.does(CancelChunks(BLOB, (0, 2))) == [Cancel(BLOB, ((0, 1), (2, 1)))]
    assert asker.hears(Cancelled(BLOB, (2,))) == [WantsOver(BLOB, (2,), (50,), False, True)]
    assert asker.does(ChunkCame(BLOB, 0, 100)) == [ChunkTaken(BLOB, 0, 100, True)]
    assert asker.does(CloseBlob(BLOB)) == [Close(BLOB)]
    assert asker.core.wants() == []
    assert not asker.core.owed()


def test_a_giver_from_hello_to_close() -> None:
    giver = Giver()
    assert giver.hears(Hello(TICKET)) == [Greeted(TICKET), Welcome()]
    assert giver.hears(Open(BLOB)) == [LookUp(BLOB)]
    bits = Bits(4, [0, 1])
    assert giver.learns(found(bits)) == [Bitfield(BLOB, 4, bits.to_bytes(), RULE_A, b"recipe", load=1)]
    assert giver.hears(Want(BLOB, RULE_A, ((0, 3),))) == [WantsQueued()]
    first = giver.core.peek()
    assert first is not None
    assert (first.index, first.size_bytes) == (0, 100)
    giver.core.take(first)
    second = giver.core.peek()
    assert second is not None
    giver.core.take(second)
    assert giver.core.begin_sending(first)
    assert giver.hears(Cancel(BLOB, ((0, 3),))) == [Cancelled(BLOB, (1, 2))]
    assert not giver.core.begin_sending(second)
    giver.core.sent(first)
    assert giver.core.peek() is None
    assert giver.hears(Close(BLOB)) == [BlobReleased(BLOB)]


def test_the_first_news_are_told_at_once_and_what_follows_soon_together() -> None:
    giver = Giver().opened(Bits(9))
    timer = SetTimer(HAVE_TIMER, ExchangeConfig().have_interval_s)
    assert giver.learns(BlobGrew(BLOB, 3)) == [Have(BLOB, (3,), load=1), timer]
    assert giver.learns(BlobGrew(BLOB, 7)) == []
    assert giver.learns(BlobGrew(BLOB, 8)) == []
    assert giver.learns(TimerFired(HAVE_TIMER)) == [Have(BLOB, (7, 8), load=1), timer]
    assert giver.learns(TimerFired(HAVE_TIMER)) == []
    assert giver.learns(BlobGrew(BLOB, 1)) == [Have(BLOB, (1,), load=1), timer]
    assert giver.learns(BlobGrew(digest_of(b"other"), 1)) == []


def test_what_was_missing_is_told_when_it_comes() -> None:
    giver, asker = Giver(), Asker()
    asker.does(SessionStarted())
    asker.does(OpenBlob(BLOB, 1000))
    giver.hears(Hello(TICKET))
    giver.hears(Open(BLOB))
    assert giver.learns(BlobNotFound(BLOB)) == [Missing(BLOB)]
    assert asker.hears(Missing(BLOB)) == [BlobAbsent(BLOB)]
    assert giver.core.absent() == [BLOB]
    assert giver.learns(BlobNotFound(BLOB)) == []
    assert giver.learns(BlobChanged(BLOB)) == [LookUp(BLOB)]
    (told,) = giver.learns(found(Bits(2)))
    assert asker.hears(told) == [BlobHeld(BLOB, Bits(2), RULE_A, b"recipe", load=1)]


def test_wants_of_an_old_recipe_end_before_the_new_one_is_told() -> None:
    giver = Giver().opened(Bits.full(4))
    giver.hears(Want(BLOB, RULE_A, ((0, 3),)))
    sending = giver.core.peek()
    assert sending is not None
    giver.core.take(sending)
    assert giver.core.begin_sending(sending)
    new = Bits.full(2)
    assert giver.learns(found(new, RULE_B)) == [
        DontHave(BLOB, (1, 2)),
        Bitfield(BLOB, 2, new.to_bytes(), RULE_B, b"recipe", load=1),
    ]
    # The asker did not know yet: no blame, and no chunk that is cut otherwise.
    assert giver.hears(Want(BLOB, RULE_A, ((3, 1),))) == [DontHave(BLOB, (3,))]
    assert giver.hears(GetRecipe(BLOB, RULE_A, 0)) == []


def test_a_blob_is_opened_anew_only_when_its_last_want_has_ended() -> None:
    asker = Asker().opened(Bits.full(3))
    asker.does(WantChunks(BLOB, ((0, 10), (1, 10))))
    assert asker.does(CloseBlob(BLOB)) == [Close(BLOB)]
    assert asker.core.owed()
    assert asker.does(OpenBlob(BLOB, 1000)) == []
    assert asker.hears(Cancelled(BLOB, (1,))) == [WantsOver(BLOB, (1,), (10,), False, False)]
    assert asker.does(ChunkCame(BLOB, 0, 10)) == [ChunkTaken(BLOB, 0, 10, False), Open(BLOB)]


def test_more_blobs_than_may_be_open_wait_for_their_turn() -> None:
    asker = Asker(open_blobs_max=2)
    asker.does(SessionStarted())
    blobs = [digest_of(bytes([number])) for number in range(4)]
    assert [asker.does(OpenBlob(blob, 1)) for blob in blobs] == [[Open(blobs[0])], [Open(blobs[1])], [], []]
    assert asker.does(CloseBlob(blobs[2])) == []
    assert asker.does(CloseBlob(blobs[0])) == [Close(blobs[0]), Open(blobs[3])]


def test_stale_answers_to_a_closed_blob_are_no_offence() -> None:
    asker = Asker().opened(Bits.full(3))
    asker.does(CloseBlob(BLOB))
    for late in (Have(BLOB, (1,)), Missing(BLOB), RecipePage(BLOB, 1, 0, b"x"), Bitfield(BLOB, 0, b"", RULE_A)):
        assert asker.hears(late) == []


@pytest.mark.parametrize(
    ("offence", "why"),
    [
        (ChunkCame(BLOB, 2, 100), "nobody wanted"),
        (ChunkCame(digest_of(b"other"), 0, 100), "nobody wanted"),
        (ChunkCame(BLOB, 0, 99), "has 100 bytes, not 99"),
        (DontHave(BLOB, (2,)), "nobody wanted"),
        (DontHave(BLOB, (0, 2)), "nobody wanted"),
        (DontHave(BLOB, (0, 0)), "nobody wanted"),
        (Cancelled(BLOB, (0,)), "unasked"),
        (Have(BLOB, (5,)), "has 5 chunks, not 5"),
        (Welcome(), "welcomed once"),
        (Hello(TICKET), "no place"),
        (Open(BLOB), "no place"),
    ],
)
def test_what_a_giver_may_not(offence: Any, why: str) -> None:
    asker = Asker().opened(Bits.full(5))
    asker.does(WantChunks(BLOB, ((0, 100),)))
    with pytest.raises(RemoteProtocolError, match=why):
        asker.does(offence) if isinstance(offence, ChunkCame) else asker.hears(offence)
    assert asker.core.wants() == [(BLOB, 0, 100)], "the want is still counted until the session ends"


@pytest.mark.parametrize(
    ("offence", "why"),
    [
        (Hello(TICKET), "one Hello"),
        (Open(BLOB), "open already"),
        (Want(digest_of(b"other"), RULE_A, ((0, 1),)), "not open"),
        (Want(BLOB, RULE_A, ((0, 1),)), "twice at a time"),
        (Want(BLOB, RULE_A, ((1, 2), (2, 1))), "twice at a time"),
        (Want(BLOB, RULE_A, ((4, 2),)), "has 5 chunks, not 5"),
        (Want(BLOB, RULE_A, ((1, WANTS_MAX),)), f"at most {WANTS_MAX} wants"),
        (Cancel(digest_of(b"other"), ((0, 1),)), "not open"),
        (Close(digest_of(b"other")), "not open"),
        (GetRecipe(BLOB, RULE_A, 6), "ends before 6"),
        (Have(BLOB, (1,)), "no place"),
    ],
)
def test_what_an_asker_may_not(offence: object, why: str) -> None:
    giver = Giver().opened(Bits.full(5))
    giver.hears(Want(BLOB, RULE_A, ((0, 1),)))
    with pytest.raises(RemoteProtocolError, match=why):
        giver.hears(offence)


def test_a_session_begins_with_hello() -> None:
    with pytest.raises(RemoteProtocolError, match="begins with Hello"):
        Giver().hears(Open(BLOB))


def test_an_asker_opens_only_so_many() -> None:
    giver = Giver()
    giver.hears(Hello(TICKET))
    for number in range(OPEN_BLOBS_MAX):
        giver.hears(Open(digest_of(number.to_bytes(4, "big"))))
    with pytest.raises(RemoteProtocolError, match=f"at most {OPEN_BLOBS_MAX} blobs"):
        giver.hears(Open(BLOB))


def test_a_recipe_too_large_for_its_blob_is_refused() -> None:
    asker = Asker().opened(Bits.full(5))
    asker.does(FetchRecipe(BLOB))
    with pytest.raises(RemoteProtocolError, match="over 1048576"):
        asker.hears(RecipePage(BLOB, 1048577, 0, bytes(RECIPE_PAGE_SIZE_BYTES_MAX)))


@pytest.mark.parametrize(("offset_bytes", "data"), [(0, b"r"), (3, b"p"), (3, b"pes"), (5, b"x")])
def test_a_recipe_comes_in_full_pages(offset_bytes: int, data: bytes) -> None:
    with pytest.raises(ValueError, match="is full, or ends with the recipe"):
        RecipePage(BLOB, 5, offset_bytes, data)


def test_our_own_mistakes_are_ours() -> None:
    asker = Asker().opened(Bits.full(5))
    asker.does(WantChunks(BLOB, ((0, 100),)))
    for mistake in (WantChunks(BLOB, ((0, 100),)), WantChunks(BLOB, ((5, 1),)), OpenBlob(BLOB, 1)):
        with pytest.raises(LocalProtocolError):
            asker.does(mistake)
    with pytest.raises(LocalProtocolError):
        asker.does(CloseBlob(digest_of(b"other")))


def raw(codec: Codec, *fields: object) -> object:
    return codec.decode(msgpack.packb(list(fields)))


@pytest.mark.parametrize(
    "fields",
    [
        (1, b"short"),
        (3, "sha256:xyz"),
        (3, BLOB.upper()),
        (4, BLOB, 9, b"", RULE_A),
        (4, BLOB, 3, b"\xff", RULE_A),
        (4, BLOB, -1, b"", RULE_A),
        (7, BLOB, 3, 2, b"xx"),
        (8, BLOB, []),
        (8, BLOB, [-1]),
        (9, BLOB, RULE_A, []),
        (9, BLOB, RULE_A, [[0, 0]]),
        (9, BLOB, RULE_A, [[0, WANTS_MAX + 1]]),
        (9, BLOB, RULE_A, [[-1, 2]]),
        (9, BLOB, b"id", [[0, 1]]),
        (99,),
    ],
)
def test_malformed_messages_are_refused(fields: tuple[object, ...]) -> None:
    with pytest.raises(RemoteProtocolError):
        raw(CODEC, *fields)


def test_ranges_there_and_back() -> None:
    assert to_ranges([7, 1, 2, 3, 9]) == ((1, 3), (7, 1), (9, 1))
    assert from_ranges(((1, 3), (7, 1), (9, 1))) == [1, 2, 3, 7, 9]


def test_what_another_asker_was_given_comes_later() -> None:
    spread = Spread()
    one, other = Giver(spread).opened(Bits.full(4)), Giver(spread)
    other.hears(Hello(TICKET))
    other.hears(Open(BLOB))
    (offer,) = other.learns(found(Bits.full(4)))
    assert (offer.turn, offer.load) == (1, 2)
    for giver in (one, other):
        giver.hears(Want(BLOB, RULE_A, ((0, 3),)))
    given = one.core.peek()
    assert given is not None
    one.core.take(given)
    wanted = other.core.peek()
    assert wanted is not None
    assert (given.index, wanted.index) == (0, 1)
    one.hears(Cancel(BLOB, ((0, 1),)))
    wanted = other.core.peek()
    assert wanted is not None
    assert wanted.index == 0, "it did not go after all"
    one.core.end()
    assert spread.load == 1
