"""Recipes under any reads, any layout and any damage: hypothesis looks for the blob that breaks the rules."""

import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocols.errors import RemoteProtocolError
from protocols.ids import Digest
from protocols.manifest import parse_manifest
from protocols.recipe import hasher
from protocols.recipe.gguf import GgufError, GgufHeader, read_gguf_header
from protocols.recipe.recipe import CHUNK_SIZE_BYTES_MAX, Recipe
from protocols.recipe.rules import boundaries_gguf, boundaries_safetensors, target_of_rule
from protocols.recipe.safetensors import SafetensorsHeader
from tests.support_recipe import (
    LLAMA_METADATA,
    BlobHasher,
    Tensor,
    f16_tensor,
    gguf_bytes,
    header_of,
    safetensors_bytes,
)

TARGET = 1024


def varied_bytes(count: int, seed: int) -> bytes:
    """Cheap bytes that differ from place to place and from seed to seed."""
    word = (seed * 2654435761 + 1) & 0xFFFFFFFF
    return b"".join(((word * (index + 1)) & 0xFFFFFFFF).to_bytes(4, "little") for index in range(count // 4 + 1))[
        :count
    ]


lengths = st.integers(1, 1500) | st.integers(1, 4).map(lambda n: n * 512)
tensor_lists = st.lists(lengths, max_size=6).map(
    lambda counts: [f16_tensor(f"t{i}", varied_bytes(2 * count, i)) for i, count in enumerate(counts)]
)
models = st.builds(
    gguf_bytes, tensor_lists, order=st.sampled_from("<>"), version=st.sampled_from([2, 3]), alignment=st.just(32)
)
blobs = st.one_of(
    models,
    st.builds(lambda data, cut: data[: len(data) - cut], models, st.integers(1, 200)),
    st.lists(lengths, max_size=5).map(
        lambda counts: safetensors_bytes({f"t{i}": varied_bytes(count, i) for i, count in enumerate(counts)})
    ),
    st.builds(varied_bytes, st.integers(0, 20_000), st.integers(0, 2**32)),
    st.binary(max_size=3000),
)


def hash_blob(data: bytes, steps: list[int]) -> tuple[Digest, Recipe]:
    """Feed the blob in pieces of the given sizes, over and over."""
    blob = BlobHasher(len(data), TARGET)
    position, turn = 0, 0
    while position < len(data):
        step = steps[turn % len(steps)]
        blob.update(memoryview(data)[position : position + step])
        position, turn = position + step, turn + 1
    return blob.finish()


@given(blobs, st.lists(st.integers(1, 5000), min_size=1, max_size=5), st.sampled_from([9, 64, 1000, 2**20]))
def test_any_reads_give_the_same_recipe(data: bytes, steps: list[int], first_look_bytes: int) -> None:
    at_once = hash_blob(data, [max(1, len(data))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hasher, "FIRST_LOOK_BYTES", first_look_bytes)
        assert hash_blob(data, steps) == at_once


@given(blobs)
def test_any_recipe_survives_the_wire_and_can_be_made_again_from_its_rule(data: bytes) -> None:
    _, recipe = hash_blob(data, [4096])
    assert Recipe.from_bytes(recipe.to_bytes()) == recipe
    again = BlobHasher(len(data), target_of_rule(recipe.rule, len(data)))
    again.update(data)
    assert again.finish()[1] == recipe


@st.composite
def layouts(draw: st.DrawFn) -> tuple[SafetensorsHeader, int]:
    """Tensors with gaps before, between and behind them, in a file of some size."""
    position = draw(st.integers(10, 5000))
    first, tensors = position, []
    for size, gap in draw(st.lists(st.tuples(lengths | st.just(0), st.integers(0, 60) | st.just(3000)), max_size=8)):
        tensors.append((position, position + size))
        position += size + gap
    return SafetensorsHeader(first, tuple(tensors)), position + draw(st.integers(0, 3000))


@given(layouts())
def test_chunks_cover_the_blob_and_respect_its_tensors(layout: tuple[SafetensorsHeader, int]) -> None:
    header, size = layout
    ends = boundaries_safetensors(header, size, TARGET)
    starts = (0, *ends[:-1])
    assert ends[-1] == size
    assert all(0 < end - start <= CHUNK_SIZE_BYTES_MAX for start, end in zip(starts, ends, strict=True))
    if size <= TARGET or not header.tensors:
        return
    assert header.tensors[0][0] in (*starts, size)
    for begin, end in header.tensors:
        if end - begin > TARGET:
            assert begin in starts
            assert set(range(begin, end, TARGET)) <= {*starts}
    for start, end in zip(starts, ends, strict=True):
        inside = [tensor for tensor in header.tensors if tensor[0] < end and tensor[1] > start]
        if len(inside) > 1:
            # What shares a chunk stands in it whole, and fits the target together.
            assert start <= inside[0][0]
            assert inside[-1][1] <= end
            assert end - start <= TARGET


@given(tensor_lists.filter(bool), st.data())
def test_a_changed_tensor_changes_only_its_chunks(tensors: list[Tensor], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(tensors) - 1))
    changed = list(tensors)
    changed[index] = f16_tensor(tensors[index].name, bytes(byte ^ 0x55 for byte in tensors[index].data))
    file = gguf_bytes(tensors)
    before = hash_blob(file, [4096])[1]
    after = hash_blob(gguf_bytes(changed), [4096])[1]
    assert before.sizes_bytes == after.sizes_bytes
    place = header_of(file).tensors[index]
    for chunk in range(len(before)):
        start, end = before.offset_bytes(chunk), before.offset_bytes(chunk) + before.sizes_bytes[chunk]
        touched = start < place.offset_bytes + place.size_bytes and end > place.offset_bytes
        assert (before.chunk_hash(chunk) != after.chunk_hash(chunk)) == touched


@given(tensor_lists, st.integers(1025, 4000).map(lambda n: 16 * n), st.text(max_size=40))
def test_a_large_tensor_has_the_same_chunks_in_every_file(tensors: list[Tensor], size: int, name: str) -> None:
    large = f16_tensor("large", varied_bytes(size * 2, 99))
    alone = hash_blob(gguf_bytes([large, f16_tensor("z", bytes(64))]), [4096])[1]
    renamed = [*LLAMA_METADATA, ("general.description", 8, name)]
    among = hash_blob(gguf_bytes([*tensors, large, f16_tensor("z", bytes(64))], renamed), [4096])[1]
    hashes = {bytes(among.chunk_hash(index)) for index in range(len(among))}
    first = 1
    while alone.offset_bytes(first) < header_of(gguf_bytes([large, f16_tensor("z", bytes(64))])).data_offset_bytes:
        first += 1
    # All of it: 16 * n half-precision numbers need no padding, so even the last piece is the tensor's alone.
    for index in range(first, len(alone) - 1):
        assert bytes(alone.chunk_hash(index)) in hashes


SOUND = gguf_bytes([Tensor("a", (256, 2), 12, bytes(288)), f16_tensor("b", bytes(100))])
changes = st.one_of(
    st.tuples(st.integers(0, len(SOUND) - 1), st.binary(min_size=1, max_size=8)),
    st.tuples(st.integers(0, 60), st.sampled_from([b"\xff" * 8, b"\xff" * 4, bytes(8), b"\0\0\0\x80"])),
)


def damaged(edits: list[tuple[int, bytes]], length: int) -> bytes:
    data = bytearray(SOUND)
    for position, replacement in edits:
        data[position : position + len(replacement)] = replacement
    return bytes(data[:length])


@settings(max_examples=400)
@given(
    st.lists(changes, min_size=1, max_size=4),
    st.integers(0, len(SOUND)) | st.just(len(SOUND)),
    st.sampled_from([0, 10**6, 2**45]),
)
@example([(8, b"\xff" * 8)], len(SOUND), 2**45)
@example([(16, (60_000).to_bytes(8, "little"))], len(SOUND), 2**45)
def test_a_damaged_header_is_read_or_refused_and_never_costs_memory(
    edits: list[tuple[int, bytes]], length: int, claimed_more_bytes: int
) -> None:
    data = damaged(edits, length)
    asked = 0

    def read(offset: int, size: int) -> bytes:
        nonlocal asked
        assert 0 <= offset < len(data) + claimed_more_bytes
        assert 0 < size <= 1024 * 1024
        asked += 1
        return data[offset : offset + size]

    tracemalloc.start()
    try:
        outcome: GgufHeader | str = read_gguf_header(read, len(data) + claimed_more_bytes)
    except GgufError as error:
        outcome = str(error)
    finally:
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    if isinstance(outcome, str):
        assert outcome
        assert "\n" not in outcome
    else:
        check_header(outcome, len(data) + claimed_more_bytes)
    assert asked < 10
    assert peak_bytes < 200_000


def check_header(header: GgufHeader, size: int) -> None:
    """What is accepted can be cut, and its derived texts can be made."""
    position = header.data_offset_bytes
    for tensor in header.tensors:
        assert position <= tensor.offset_bytes
        position = tensor.offset_bytes + tensor.size_bytes
    assert position <= size
    assert header.model_type
    assert header.file_type
    if size < 2**30:
        assert boundaries_gguf(header, size, TARGET)[-1] == size


@given(st.binary(max_size=200) | st.text(alphabet='{}[]":,0123456789layersdigz', max_size=80).map(str.encode))
@example(b'{"layers":[{"digest":"sha256:' + b"a" * 64 + b'","size":1}]}')
def test_any_bytes_are_a_manifest_or_the_senders_fault(data: bytes) -> None:
    try:
        manifest = parse_manifest(data)
    except RemoteProtocolError:
        return
    assert manifest.raw == data
    named = [*manifest.layers, *([manifest.config] if manifest.config else [])]
    assert {layer.digest for layer in named} == {blob.digest for blob in manifest.blobs()}
    assert manifest.size_bytes <= sum(layer.size_bytes for layer in named)
