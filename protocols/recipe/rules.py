"""The rules that cut a blob into chunks; a recipe names the rule it was made by.

`whole-1` is one chunk, `gguf-1:N` and `safetensors-1:N` begin a chunk at each tensor, `fastcdc-1:N` lets the bytes
decide (Xia et al., FastCDC, IEEE TPDS 2020). N is the target size in bytes. A rule never changes: a better one
gets the next number, because the same bytes under the same rule must give the same recipe everywhere.
"""

import re
from collections.abc import Sequence

import attrs

from protocols.errors import RemoteProtocolError
from protocols.recipe.gguf import GgufHeader
from protocols.recipe.recipe import CHUNK_SIZE_BYTES_MAX
from protocols.recipe.safetensors import SafetensorsHeader

TARGET_SIZE_BYTES_MIN = 1024
TARGET_SIZE_BYTES_MAX = CHUNK_SIZE_BYTES_MAX
DEFAULT_TARGET_SIZE_BYTES = 4 * 1024 * 1024

WHOLE_RULE = "whole-1"
FASTCDC_AVERAGE_SIZE_BYTES_MAX = 4 * 1024 * 1024
"""With more, the largest chunk (four times the average) would be over what a recipe allows."""

_RULE = re.compile(r"(gguf-1|safetensors-1|fastcdc-1):([1-9][0-9]{0,8})")


@attrs.frozen
class FastCdcSizes:
    """The least, middle and greatest size of content-defined chunks, in bytes."""

    minimum: int
    average: int
    maximum: int


def check_target(target_size_bytes: int) -> None:
    """Raise ValueError for a target no rule can have."""
    if not TARGET_SIZE_BYTES_MIN <= target_size_bytes <= TARGET_SIZE_BYTES_MAX:
        raise ValueError(
            f"a target of {target_size_bytes} bytes is not within {TARGET_SIZE_BYTES_MIN} and {TARGET_SIZE_BYTES_MAX}"
        )


def choose_rule(size_bytes: int, target_size_bytes: int, header: GgufHeader | SafetensorsHeader | None) -> str:
    """The rule for a blob of this size whose beginning was understood as `header` (None: as nothing we know)."""
    check_target(target_size_bytes)
    if size_bytes <= target_size_bytes:
        return WHOLE_RULE
    if isinstance(header, GgufHeader):
        return f"gguf-1:{target_size_bytes}"
    if isinstance(header, SafetensorsHeader):
        return f"safetensors-1:{target_size_bytes}"
    return f"fastcdc-1:{fastcdc_sizes(target_size_bytes).average}"


def target_of_rule(rule: str, size_bytes: int) -> int:
    """The target that makes a blob of `size_bytes` come out under `rule` again: what to hash a peer's blob with.

    Raises RemoteProtocolError when the rule is unknown or cannot be the rule of a blob of this size.
    """
    if rule == WHOLE_RULE:
        if size_bytes > TARGET_SIZE_BYTES_MAX:
            raise RemoteProtocolError(f"a blob of {size_bytes} bytes is too large for the rule {rule}")
        return max(size_bytes, TARGET_SIZE_BYTES_MIN)
    match = _RULE.fullmatch(rule)
    if match is None:
        raise RemoteProtocolError(f"unknown rule {rule[:60]!r}")
    target_size_bytes = int(match.group(2))
    largest = FASTCDC_AVERAGE_SIZE_BYTES_MAX if match.group(1) == "fastcdc-1" else TARGET_SIZE_BYTES_MAX
    if not TARGET_SIZE_BYTES_MIN <= target_size_bytes <= largest or size_bytes <= target_size_bytes:
        raise RemoteProtocolError(f"a blob of {size_bytes} bytes cannot have the rule {rule}")
    return target_size_bytes


def fastcdc_sizes(target_size_bytes: int) -> FastCdcSizes:
    """The sizes `fastcdc-1` works with for a target."""
    average = min(target_size_bytes, FASTCDC_AVERAGE_SIZE_BYTES_MAX)
    return FastCdcSizes(average // 4, average, average * 4)


def boundaries_gguf(header: GgufHeader, size_bytes: int, target_size_bytes: int) -> tuple[int, ...]:
    """Where the chunks of a GGUF blob end, ascending, the last at `size_bytes`.

    The header is cut at the target. Each tensor begins a chunk, except that neighbours which fit into one target
    together share one; a tensor over the target is cut at multiples of it from its own first byte, so that it
    has the same chunks in every file that holds it. Padding belongs to the chunk before it.
    """
    extents = [(tensor.offset_bytes, tensor.offset_bytes + tensor.size_bytes) for tensor in header.tensors]
    return _boundaries(extents, size_bytes, target_size_bytes)


def boundaries_safetensors(header: SafetensorsHeader, size_bytes: int, target_size_bytes: int) -> tuple[int, ...]:
    """Where the chunks of a safetensors blob end, by the same rule as a GGUF blob's."""
    return _boundaries(header.tensors, size_bytes, target_size_bytes)


def _boundaries(extents: Sequence[tuple[int, int]], size_bytes: int, target_size_bytes: int) -> tuple[int, ...]:
    """Extents are (first byte, byte after the last), ascending and apart."""
    check_target(target_size_bytes)
    if size_bytes == 0:
        return ()
    if size_bytes <= target_size_bytes:
        return (size_bytes,)
    edges = [*(begin for begin, _ in extents), size_bytes]
    ends: list[int] = []
    group_start = edges[0]
    _cut(ends, 0, group_start, group_start, target_size_bytes)
    for (start, data_end), following in zip(extents, edges[1:], strict=True):
        # What a group holds so far lies between group_start and start and is not yet cut off.
        if following - group_start <= target_size_bytes:
            continue
        if group_start < start:
            ends.append(start)
        group_start = start
        if following - start > target_size_bytes:
            _cut(ends, start, following, data_end, target_size_bytes)
            group_start = following
    if group_start < size_bytes:
        ends.append(size_bytes)
    return tuple(ends)


def _cut(ends: list[int], start: int, end: int, data_end: int, target_size_bytes: int) -> None:
    """Cut [start, end) at multiples of the target from `start`; nothing but padding makes no chunk of its own."""
    if start == end:
        return
    cuts = [start, *range(start + target_size_bytes, end, target_size_bytes)]
    if len(cuts) > 1 and cuts[-1] >= data_end and end - cuts[-2] <= CHUNK_SIZE_BYTES_MAX:
        cuts.pop()
    ends += cuts[1:]
    ends.append(end)
