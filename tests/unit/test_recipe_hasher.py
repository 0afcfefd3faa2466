"""protocols/recipe/hasher: one pass gives the digest and the recipe, and every node's recipe is the same one."""

import hashlib
import random

import pytest
from blake3 import blake3
from pyfastcdc import FastCDC

from protocols.errors import LocalProtocolError
from protocols.ids import Digest
from protocols.recipe import hasher
from protocols.recipe.hasher import ChunkHasher
from protocols.recipe.recipe import Recipe
from protocols.recipe.safetensors import HEADER_SIZE_BYTES_MAX
from tests.support_recipe import BlobHasher, f16_tensor, gguf_bytes, safetensors_bytes, safetensors_from_header

MIB = 1024 * 1024


def hash_blob(data: bytes, target: int, step: int = 10**9) -> tuple[Digest, Recipe]:
    blob = BlobHasher(len(data), target)
    for start in range(0, len(data), step):
        blob.update(memoryview(data)[start : start + step])
    return blob.finish()


def random_bytes(count: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(count)


def check(data: bytes, recipe: Recipe) -> None:
    """The recipe describes the bytes, chunk by chunk."""
    assert recipe.size_bytes == len(data)
    for index, size in enumerate(recipe.sizes_bytes):
        offset = recipe.offset_bytes(index)
        assert recipe.chunk_hash(index) == blake3(data[offset : offset + size]).digest()


SMALL_MODEL = gguf_bytes([f16_tensor("a", random_bytes(5000, 1)), f16_tensor("b", random_bytes(700, 2))])


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"", "whole-1"),
        (b"{{ .Prompt }}", "whole-1"),
        (random_bytes(30_000), "fastcdc-1:1024"),
        (SMALL_MODEL, "gguf-1:1024"),
        (gguf_bytes([f16_tensor("a", bytes(5000))], order=">", magic=b"FUGG"), "gguf-1:1024"),
        (safetensors_bytes({"a": random_bytes(3000), "b": random_bytes(50)}), "safetensors-1:1024"),
    ],
    ids=["empty", "a template", "anything", "GGUF", "big-endian GGUF", "safetensors"],
)
def test_digest_and_recipe_describe_the_bytes(data: bytes, rule: str) -> None:
    digest, recipe = hash_blob(data, 1024)
    assert digest == "sha256:" + hashlib.sha256(data).hexdigest()
    assert (recipe.digest, recipe.rule) == (digest, rule)
    check(data, recipe)


def test_an_empty_blob_has_no_chunks_and_a_small_one_has_one() -> None:
    assert hash_blob(b"", 1024)[1].sizes_bytes == ()
    assert hash_blob(b"x" * 1024, 1024)[1].sizes_bytes == (1024,)


@pytest.mark.parametrize(
    "data",
    [
        SMALL_MODEL[:-100],
        b"GGUF" + random_bytes(5000),
        safetensors_from_header(b'{"t":1}', bytes(5000)),
        safetensors_from_header(b"{nonsense}", bytes(5000)),
        (6000).to_bytes(8, "little") + b"{" + bytes(5000),
    ],
    ids=["truncated GGUF", "no GGUF behind the magic", "strange JSON", "no JSON", "longer than the file"],
)
def test_a_malformed_header_makes_a_blob_opaque_not_unusable(data: bytes) -> None:
    _, recipe = hash_blob(data, 1024)
    assert recipe.rule == "fastcdc-1:1024"
    check(data, recipe)


def test_content_defined_chunks_are_those_of_the_whole_blob_at_once() -> None:
    data = random_bytes(400_000) + bytes(50_000) + random_bytes(100_000, 3)
    chunker = FastCDC(1024, min_size=256, max_size=4096, normalized_chunking=2)
    expected = tuple(chunk.length for chunk in chunker.cut_buf(data))
    for step in (1000, 4096, 10**9):
        assert hash_blob(data, 1024, step)[1].sizes_bytes == expected


def test_bytes_put_in_front_move_no_later_chunk() -> None:
    data = random_bytes(200_000)
    before = hash_blob(data, 1024)[1]
    after = hash_blob(random_bytes(37, 9) + data, 1024)[1]
    known = {before.chunk_hash(index) for index in range(len(before))}
    new = [index for index in range(len(after)) if after.chunk_hash(index) not in known]
    assert max(new) < 8


def test_a_header_of_many_looks_gives_the_same_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    data = gguf_bytes(
        [f16_tensor("a", random_bytes(5000, 1))],
        [("general.architecture", 8, "llama"), ("tokenizer.ggml.tokens", 9, (8, ["token"] * 3000))],
    )
    expected = hash_blob(data, 1024)[1]
    assert expected.rule == "gguf-1:1024"
    monkeypatch.setattr(hasher, "FIRST_LOOK_BYTES", 16)
    assert hash_blob(data, 1024)[1] == expected
    assert hash_blob(data, 1024, 100)[1] == expected
    # One byte after another: whether the header is whole is asked again at each doubling.
    assert hash_blob(data[:30_000], 1024, 1)[1].rule == "fastcdc-1:1024"


def test_a_safetensors_header_over_what_we_parse_is_not_collected() -> None:
    length = HEADER_SIZE_BYTES_MAX + 1
    chunks = ChunkHasher(50 * MIB, 4 * MIB)
    chunks.update(length.to_bytes(8, "little") + b"{" + bytes(2 * MIB))
    assert len(chunks._beginning) == 0
    assert chunks._rule == "fastcdc-1:4194304"


def test_the_header_alone_tells_the_cut_where_tensors_decide_it() -> None:
    gguf = gguf_bytes([f16_tensor(f"t{i}", random_bytes(1000 * 4**i, i)) for i in range(6)])
    tensors = safetensors_bytes({f"t{i}": random_bytes(1000 * 4**i, i) for i in range(6)})
    for data in (gguf, tensors):
        recipe = hash_blob(data, 65_536)[1]
        chunks = ChunkHasher(len(data), 65_536)
        assert not chunks.understood
        with pytest.raises(LocalProtocolError, match="not understood"):
            chunks.planned()
        chunks.update(data[: hasher.FIRST_LOOK_BYTES])
        assert chunks.understood
        assert chunks.planned() == (recipe.rule, recipe.sizes_bytes)
    opaque = ChunkHasher(3 * MIB, MIB)
    opaque.update(random_bytes(2 * MIB))
    assert opaque.planned() == ("fastcdc-1:1048576", None)
    assert ChunkHasher(10, 1024).planned() == ("whole-1", (10,))


# A rule never changes: the same bytes give these recipes in every release, or nodes of two releases share nothing.
# A failure here means a new rule number, or a chunker that cuts otherwise than the one that was pinned.
GOLDEN = [
    (b"", 4 * MIB, "whole-1"),
    (random_bytes(3_000_000), 4 * MIB, "whole-1"),
    (random_bytes(30_000_000), 4 * MIB, "fastcdc-1:4194304"),
    (random_bytes(9_000_000), 1 * MIB, "fastcdc-1:1048576"),
    (gguf_bytes([f16_tensor(f"t{i}", random_bytes(1000 * 4**i, i)) for i in range(7)]), 1 * MIB, "gguf-1:1048576"),
    (safetensors_bytes({f"t{i}": random_bytes(1000 * 4**i, i) for i in range(7)}), 1 * MIB, "safetensors-1:1048576"),
]
GOLDEN_IDS = [
    "6912792a0f26b1ebc31776c35233d84a09df910fd1e687db6a72b796d0cc8aca",
    "92e81d2e7e51e4a6c0e43cad24f5360d1d63cb55fc8172023f793e9e14d906bf",
    "97e4e216a0555b808c4da48bd95e1768118811b93724de8c8499e93c0767824d",
    "e27276525bf42865842e57c6a1b7f47fe829373119856d53b2c18d4ba9e5a2a4",
    "dd4cb82a18ada166607bca11017824783e8b1e73dc6bb6b0a30e3e19238fa4d5",
    "0964e52463d2debe17933a27316c7d0935df67c41429a40f1071941b4f14adfe",
]


@pytest.mark.parametrize(
    ("data", "target", "rule", "recipe_id"),
    [(*golden, recipe_id) for golden, recipe_id in zip(GOLDEN, GOLDEN_IDS, strict=True)],
    ids=[f"{rule} of {len(data)}" for data, _, rule in GOLDEN],
)
def test_recipes_are_the_same_for_ever(data: bytes, target: int, rule: str, recipe_id: str) -> None:
    _, recipe = hash_blob(data, target)
    assert recipe.rule == rule
    assert recipe.id().hex() == recipe_id


def test_too_many_or_too_few_bytes_are_our_own_fault() -> None:
    blob = BlobHasher(10, 1024)
    blob.update(b"123456")
    with pytest.raises(LocalProtocolError, match="10 bytes was fed 6"):
        blob.finish()
    with pytest.raises(LocalProtocolError, match="10 bytes was fed 11"):
        blob.update(b"78901")


@pytest.mark.parametrize("target", [0, 1023, 16 * MIB + 1])
def test_a_target_no_rule_can_have_is_refused(target: int) -> None:
    with pytest.raises(ValueError, match="is not within"):
        ChunkHasher(10, target)


def test_a_blob_of_more_chunks_than_a_recipe_holds_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="too many chunks"):
        ChunkHasher(2**49, MIB)
