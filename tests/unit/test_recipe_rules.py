"""protocols/recipe/rules: where a blob is cut, and that what one node cut another can cut again."""

import random

import pytest

from protocols.errors import RemoteProtocolError
from protocols.recipe.gguf import GgufHeader
from protocols.recipe.recipe import CHUNK_SIZE_BYTES_MAX
from protocols.recipe.rules import (
    FASTCDC_AVERAGE_SIZE_BYTES_MAX,
    boundaries_gguf,
    boundaries_safetensors,
    choose_rule,
    target_of_rule,
)
from protocols.recipe.safetensors import SafetensorsHeader
from tests.support_recipe import f16_tensor, gguf_bytes, header_of

MIB = 1024 * 1024


def layout(*tensors: tuple[int, int]) -> SafetensorsHeader:
    """Tensors as (first byte, byte after the last)."""
    return SafetensorsHeader(tensors[0][0] if tensors else 0, tensors)


def test_the_header_is_cut_too_and_the_first_tensor_begins_a_chunk() -> None:
    assert boundaries_safetensors(layout((2500, 3000)), 3000, 1024) == (1024, 2048, 2500, 3000)


def test_small_tensors_share_a_chunk_up_to_the_target() -> None:
    tensors = layout((100, 500), (500, 900), (900, 1124), (1124, 1500))
    assert boundaries_safetensors(tensors, 1500, 1024) == (100, 1124, 1500)


def test_a_large_tensor_is_cut_from_its_own_first_byte() -> None:
    tensors = layout((100, 200), (200, 3000), (3000, 3100))
    assert boundaries_safetensors(tensors, 3100, 1024) == (100, 200, 1224, 2248, 3000, 3100)


def test_padding_belongs_to_the_chunk_before_it() -> None:
    assert boundaries_safetensors(layout((100, 1124), (1140, 1200)), 1200, 1024) == (100, 1140, 1200)
    assert boundaries_safetensors(layout((100, 2148), (2150, 2200)), 2200, 1024) == (100, 1124, 2150, 2200)


def test_padding_never_makes_a_chunk_too_large_for_a_recipe() -> None:
    end = 100 + CHUNK_SIZE_BYTES_MAX
    tensors = layout((100, end), (end + 16, end + 20))
    assert boundaries_safetensors(tensors, end + 20, CHUNK_SIZE_BYTES_MAX) == (100, end, end + 16, end + 20)


def test_the_last_chunk_covers_trailing_bytes() -> None:
    assert boundaries_safetensors(layout((100, 1000)), 1090, 1024) == (100, 1090)
    assert boundaries_safetensors(layout((100, 1000)), 5000, 1024)[-1] == 5000


def test_a_file_without_tensors_is_cut_at_the_target() -> None:
    assert boundaries_safetensors(layout(), 2500, 1024) == (1024, 2048, 2500)


def test_small_blobs_are_one_chunk_and_empty_ones_none() -> None:
    assert boundaries_safetensors(layout((100, 1024)), 1024, 1024) == (1024,)
    assert boundaries_safetensors(layout(), 0, 1024) == ()


def test_gguf_tensors_begin_chunks() -> None:
    data = gguf_bytes([f16_tensor("a", bytes(3000)), f16_tensor("b", bytes(40)), f16_tensor("c", bytes(40))])
    header = header_of(data)
    first = header.data_offset_bytes
    # 3000 bytes are padded to 3008, 40 to 64; b and c share a chunk.
    assert boundaries_gguf(header, len(data), 1024) == (first, first + 1024, first + 2048, first + 3008, len(data))


def gguf_header() -> GgufHeader:
    return header_of(gguf_bytes())


@pytest.mark.parametrize(
    ("size_bytes", "target", "header", "rule"),
    [
        (0, 4 * MIB, None, "whole-1"),
        (4 * MIB, 4 * MIB, None, "whole-1"),
        (4 * MIB + 1, 4 * MIB, None, "fastcdc-1:4194304"),
        (17 * MIB, 16 * MIB, None, "fastcdc-1:4194304"),
        (5 * MIB, 1 * MIB, None, "fastcdc-1:1048576"),
        (5 * MIB, 4 * MIB, gguf_header(), "gguf-1:4194304"),
        (3 * MIB, 4 * MIB, gguf_header(), "whole-1"),
        (17 * MIB, 16 * MIB, layout(), "safetensors-1:16777216"),
    ],
)
def test_the_rule_follows_size_and_kind(
    size_bytes: int, target: int, header: GgufHeader | SafetensorsHeader | None, rule: str
) -> None:
    assert choose_rule(size_bytes, target, header) == rule


def test_any_rule_chosen_can_be_followed_again_from_its_name() -> None:
    rng = random.Random(1)
    headers = [None, gguf_header(), layout()]
    for _ in range(2000):
        size_bytes, target = rng.randrange(40 * MIB), rng.randrange(1024, 16 * MIB + 1)
        header = rng.choice(headers)
        rule = choose_rule(size_bytes, target, header)
        assert choose_rule(size_bytes, target_of_rule(rule, size_bytes), header) == rule


@pytest.mark.parametrize(
    ("rule", "size_bytes"),
    [
        ("", 5),
        ("gguf-2:4194304", 2**30),
        ("gguf-1:0", 2**30),
        ("gguf-1:1023", 2**30),
        ("gguf-1:04194304", 2**30),
        ("gguf-1:-4194304", 2**30),
        ("gguf-1:4194304 ", 2**30),
        ("gguf-1:١٠٢٤٠", 2**30),
        (f"gguf-1:{16 * MIB + 1}", 2**30),
        ("gguf-1:4194304", 4 * MIB),
        (f"fastcdc-1:{FASTCDC_AVERAGE_SIZE_BYTES_MAX + 1}", 2**30),
        ("whole-1", 16 * MIB + 1),
        ("whole-1:5", 5),
    ],
)
def test_a_rule_that_cannot_be_is_the_peers_fault(rule: str, size_bytes: int) -> None:
    with pytest.raises(RemoteProtocolError):
        target_of_rule(rule, size_bytes)


@pytest.mark.parametrize("target", [0, -1, 1023, 16 * MIB + 1])
def test_a_target_no_rule_can_have_is_refused(target: int) -> None:
    with pytest.raises(ValueError, match="is not within"):
        choose_rule(5, target, None)
