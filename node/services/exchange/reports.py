"""What a fetch says of one blob: how far it is, and at the end where its bytes came from."""

import attrs

from protocols.ids import PeerId


@attrs.frozen
class FetchProgress:
    """How far a blob is. Bytes count when checked and stored.

    `resumed_bytes` of them were here before, `copied_bytes` were copied now from other blobs here. `verifying` when
    nothing is left but the check of the whole, which is `verified_bytes` far.
    """

    held_bytes: int
    size_bytes: int
    sources: dict[PeerId, int]
    resumed_bytes: int
    copied_bytes: int = 0
    verifying: bool = False
    verified_bytes: int = 0


@attrs.frozen
class FetchReport:
    """A verified blob: `fetched_bytes` is the sum of `sources`, and with `resumed_bytes` and `copied_bytes` the blob.

    What was copied came from other blobs of this host.

    Beside them travelled `duplicate_bytes` (good or unneeded copies of what was stored from another) and
    `refused_bytes` (wrong chunks, `refused_chunks` of them, and all that came under a recipe that was a lie).
    """

    fetched_bytes: int
    resumed_bytes: int
    sources: dict[PeerId, int]
    refused_chunks: int
    duplicate_bytes: int
    seconds: float
    refused_bytes: int = 0
    copied_bytes: int = 0


@attrs.define
class TransferCounters:
    """What became of the bytes that came in, over all transfers."""

    stored_bytes: int = 0
    duplicate_bytes: int = 0
    refused_bytes: int = 0
    refused_chunks: int = 0
