"""Frames of the bulk plane between the two ends of one ticket."""

import pytest

from protocols.bulk.frames import (
    AES_256_GCM,
    CIPHERS,
    FRAME_SIZE_BYTES_MAX,
    BrokenFrame,
    FrameKind,
    FrameOpener,
    FrameSealer,
    asker_ends,
    giver_ends,
    opening,
    parse_opening,
)
from protocols.errors import LocalProtocolError

KEY, CONNECTION = bytes(range(32)), b"connection id 16"


def sealed(sealer: FrameSealer, kind: FrameKind, data: bytes) -> bytes:
    buffer = memoryview(bytearray(len(data) + 100))
    return bytes(buffer[: sealer.seal_into(kind, data, buffer)])


def opened(opener: FrameOpener, frame: bytes) -> tuple[FrameKind, bytes]:
    kind, size_bytes = opener.announced(frame[:4])
    data = bytearray(size_bytes)
    opener.open_into(frame[:4], memoryview(frame[4 : 4 + size_bytes + 16]), memoryview(data))
    return kind, bytes(data)


@pytest.mark.parametrize("cipher", CIPHERS)
def test_what_one_end_seals_the_other_opens(cipher: str) -> None:
    (ask_seal, ask_open), (give_seal, give_open) = (ends(cipher, KEY, CONNECTION) for ends in (asker_ends, giver_ends))
    for kind, data in ((FrameKind.MESSAGE, b""), (FrameKind.BODY, b"x" * FRAME_SIZE_BYTES_MAX), (FrameKind.END, b"")):
        assert opened(give_open, sealed(ask_seal, kind, data)) == (kind, data)
        assert opened(ask_open, sealed(give_seal, kind, data)) == (kind, data)
    assert ask_seal.sealed_bytes == give_open.opened_bytes == FRAME_SIZE_BYTES_MAX


def test_the_opening_names_the_connection() -> None:
    assert parse_opening(opening(CONNECTION)) == CONNECTION
    for wrong in (b"", opening(CONNECTION)[:-1], b"GET / HTTP/1.1\r\nHost: xx", b"X" + opening(CONNECTION)[1:]):
        with pytest.raises(BrokenFrame):
            parse_opening(wrong)


def test_a_frame_over_the_limit_is_our_bug_to_send_and_theirs_to_announce() -> None:
    sealer, opener = asker_ends(AES_256_GCM, KEY, CONNECTION)
    with pytest.raises(LocalProtocolError):
        sealed(sealer, FrameKind.BODY, b"x" * (FRAME_SIZE_BYTES_MAX + 1))
    with pytest.raises(BrokenFrame, match="over"):
        opener.announced(b"\x02\x10\x00\x01")
    with pytest.raises(BrokenFrame, match="unknown kind 9"):
        opener.announced(b"\x09\x00\x00\x01")
