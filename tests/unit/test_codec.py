"""protocols/codec: what goes in comes out, and what does not fit is the peer's fault."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.codec import Codec, pack, unpack
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import Digest
from protocols.recipe.recipe import Recipe


@attrs.frozen
class Inner:
    weight: float
    payload: bytes


@attrs.frozen
class Note:
    number: int
    inner: tuple[Inner, ...] = ()
    labels: dict[str, str] = attrs.field(factory=dict)
    maybe: str | None = None


@attrs.frozen
class NoteOfALaterRelease:
    number: int
    inner: tuple[Inner, ...] = ()
    labels: dict[str, str] = attrs.field(factory=dict)
    maybe: str | None = None
    added: bool = False


CODEC = Codec({1: Note, 2: Inner})

notes = st.builds(
    Note,
    number=st.integers(-(2**60), 2**60),
    inner=st.lists(st.builds(Inner, st.floats(allow_nan=False), st.binary(max_size=9)), max_size=3).map(tuple),
    labels=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=4),
    maybe=st.none() | st.text(max_size=5),
)


@given(notes)
def test_a_message_survives_the_wire(note: Note) -> None:
    assert CODEC.decode(CODEC.encode(note)) == note
    assert unpack(pack(note), Note) == note


@given(st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=6))
def test_the_encoding_does_not_depend_on_the_order_of_a_dict(labels: dict[str, str]) -> None:
    backwards = dict(reversed(labels.items()))
    assert pack(Note(1, (), labels)) == pack(Note(1, (), backwards))


def test_two_releases_understand_each_other() -> None:
    later = Codec({1: NoteOfALaterRelease})
    assert CODEC.decode(later.encode(NoteOfALaterRelease(5, added=True))) == Note(5)
    assert later.decode(CODEC.encode(Note(5))) == NoteOfALaterRelease(5)


@given(st.binary(max_size=60))
def test_garbage_is_a_remote_error_and_nothing_else(data: bytes) -> None:
    try:
        message = CODEC.decode(data)
    except RemoteProtocolError:
        return
    assert isinstance(message, Note | Inner)


@pytest.mark.parametrize(
    "fields",
    [
        [1, "1"],
        [1, True],
        [1, 1.0],
        [1, None],
        [1],
        [9, 1],
        ["1", 1],
        [],
        [True, 1],
        [1, 1, [[1.0]]],
        [1, 1, [], {"a": 1}],
        [1, 1, [], {1: "a"}],
    ],
)
def test_a_field_of_the_wrong_type_is_refused_not_converted(fields: list[object]) -> None:
    with pytest.raises(RemoteProtocolError):
        CODEC.decode(pack(fields))


@pytest.mark.parametrize(
    "data",
    [
        b"\x91" * 100_000 + b"\x01",  # arrays in arrays
        b"\x81\x90\x00",  # a map whose key is an array
        b"\x92\x01\x81\x80\x00",  # the same with a map as key, inside a message
        b"\xd7\xff" + b"\xff" * 8,  # a timestamp that is none
        b"\xdd\xff\xff\xff\xff",  # an array of four billion
        b"\xa1\xff",  # text that is no UTF-8
        b"\xc1",  # the one byte msgpack never uses
        b"\x01\x01",  # a value, and more after it
    ],
)
def test_bytes_made_to_break_the_reader_do_not(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        CODEC.decode(data)


def test_our_own_mistakes_are_local_errors() -> None:
    with pytest.raises(LocalProtocolError):
        CODEC.encode("no message")
    with pytest.raises(LocalProtocolError):
        Codec({1: Note, 2: Note})
    with pytest.raises(LocalProtocolError):
        Codec({1: int})


DIGEST = Digest("sha256:" + "0" * 64)


def test_a_recipe_survives_the_wire_and_keeps_its_id() -> None:
    recipe = Recipe(DIGEST, 7, "fastcdc-1:4194304", (3, 4), b"a" * 32 + b"b" * 32)
    again = Recipe.from_bytes(recipe.to_bytes())
    assert again == recipe
    assert again.id() == recipe.id()
    assert [again.offset_bytes(index) for index in range(len(again))] == [0, 3]
    assert again.chunk_hash(1) == b"b" * 32
    assert len(Recipe(DIGEST, 0, "fastcdc-1:4194304", (), b"")) == 0


@pytest.mark.parametrize(
    "fields",
    [
        [DIGEST, 8, "r", [3, 4], b"a" * 64],
        [DIGEST, 7, "r", [3, 4], b"a" * 63],
        [DIGEST, 7, "r", [7, 0], b"a" * 64],
        [DIGEST, 7, "r", [8, -1], b"a" * 64],
        [DIGEST, 7, "r", [3, 4.0], b"a" * 64],
        [DIGEST, 7, 5, [3, 4], b"a" * 64],
        ["sha256:../x", 7, "r", [3, 4], b"a" * 64],
        [DIGEST, 7, "r", [3, 4]],
        [DIGEST, 7, "r", 5, b""],
    ],
)
def test_a_recipe_that_contradicts_itself_is_the_peers_fault(fields: list[object]) -> None:
    with pytest.raises(RemoteProtocolError):
        Recipe.from_bytes(pack(fields))
