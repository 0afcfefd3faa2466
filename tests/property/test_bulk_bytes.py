"""Whatever bytes arrive: the decoders that face peers refuse what is wrong, and nothing else comes out of them.

`scripts/fuzz` feeds the same decoders by the million (tests/FUZZ.md).
"""

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.bulk.frames import CIPHERS, BrokenFrame, FrameKind, FrameOpener, asker_ends, giver_ends
from scripts.fuzz_targets import REFUSALS, TARGETS, mutated

KEY, CONNECTION = b"k" * 32, b"c" * 16
MIB = 1024 * 1024


def refused(decoder: str, data: bytes) -> bool:
    """Whether the decoder refused the input; anything but a refusal fails the test."""
    try:
        TARGETS[decoder].feed(data)
    except REFUSALS:
        return True
    return False


@pytest.mark.parametrize("decoder", TARGETS)
def test_the_examples_are_valid(decoder: str) -> None:
    assert not any(refused(decoder, example) for example in TARGETS[decoder].examples)


@pytest.mark.parametrize("decoder", TARGETS)
@settings(max_examples=150)
@given(st.data())
def test_any_bytes_are_understood_or_refused(decoder: str, data: st.DataObject) -> None:
    said = data.draw(st.binary(max_size=TARGETS[decoder].size_bytes_max))
    assert refused(decoder, said) in (True, False)


@pytest.mark.parametrize("decoder", TARGETS)
def test_nearly_valid_bytes_are_understood_or_refused_in_little_memory(decoder: str) -> None:
    target, rng = TARGETS[decoder], random.Random(decoder)
    inputs = [
        mutated(rng.choice(target.examples), rng.choice(target.examples), rng, target.size_bytes_max)
        for _ in range(1500)
    ]
    tracemalloc.start()
    try:
        refusals = sum(refused(decoder, data) for data in inputs)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0 < refusals < len(inputs), "some of each, else the inputs are too wild or too tame to say anything"
    assert peak_bytes < 8 * MIB


def open_all(opener: FrameOpener, sealed: list[bytearray], opened: list[tuple[FrameKind, bytes]]) -> None:
    for frame in sealed:
        kind, size_bytes = opener.announced(bytes(frame[:4]))
        # A reader would wait for more where a size grew; here the end of the frame is all there is.
        text = bytearray(min(size_bytes, len(frame) - 20))
        opener.open_into(bytes(frame[:4]), memoryview(frame)[4 : 20 + len(text)], memoryview(text))
        opened.append((kind, bytes(text)))


@pytest.mark.parametrize("cipher", CIPHERS)
@given(st.lists(st.tuples(st.sampled_from(FrameKind), st.binary(max_size=300)), min_size=1, max_size=5), st.data())
def test_a_stream_changed_anywhere_opens_up_to_there_and_no_further(
    cipher: str, frames: list[tuple[FrameKind, bytes]], data: st.DataObject
) -> None:
    sealer, opener = giver_ends(cipher, KEY, CONNECTION)[0], asker_ends(cipher, KEY, CONNECTION)[1]
    sealed = []
    for kind, text in frames:
        buffer = memoryview(bytearray(400))
        sealed.append(bytearray(buffer[: sealer.seal_into(kind, text, buffer)]))
    changed = data.draw(st.integers(0, len(sealed) - 1))
    position = data.draw(st.integers(0, len(sealed[changed]) - 1))
    sealed[changed][position] ^= data.draw(st.integers(1, 255))

    opened: list[tuple[FrameKind, bytes]] = []
    with pytest.raises(BrokenFrame):
        open_all(opener, sealed, opened)
    assert opened == frames[:changed]
