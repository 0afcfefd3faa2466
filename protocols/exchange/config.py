"""What an operator may set of the exchange: section `[exchange]`."""

import attrs

from protocols.exchange.messages import OPEN_BLOBS_MAX, WANTS_MAX
from protocols.options import option
from protocols.recipe.recipe import CHUNK_SIZE_BYTES_MAX

_MIB = 1024 * 1024


@attrs.frozen
class ExchangeConfig:
    """How chunks are asked for and served. Every buffer of the exchange is bounded by a field here."""

    outstanding_start_bytes: int = option(
        8 * _MIB,
        unit="bytes",
        minimum=_MIB // 16,
        maximum=1024 * _MIB,
        help="How much is asked of a peer before its first chunk has come; then it follows bandwidth x delay.",
    )
    outstanding_bytes_max: int = option(
        32 * _MIB,
        unit="bytes",
        minimum=_MIB // 16,
        maximum=1024 * _MIB,
        help="How much may be asked of one peer and not yet be stored. One chunk may always be asked.",
    )
    outstanding_chunks_max: int = option(
        256,
        unit="chunks",
        minimum=1,
        maximum=WANTS_MAX,
        help="How many chunks may be asked of one peer and not yet be stored.",
    )
    receive_buffer_bytes: int = option(
        256 * _MIB,
        unit="bytes",
        minimum=CHUNK_SIZE_BYTES_MAX,
        maximum=65536 * _MIB,
        help="How much may be asked of all peers together: the most memory that chunks on their way in can take.",
    )
    serve_buffer_bytes: int = option(
        64 * _MIB,
        unit="bytes",
        minimum=CHUNK_SIZE_BYTES_MAX,
        maximum=65536 * _MIB,
        help="The most memory that chunks on their way out take, over all peers.",
    )
    serve_sends_max: int = option(
        64,
        unit="chunks",
        minimum=1,
        maximum=4096,
        help="How many chunks are sent at a time at most; it begins with one and adds while that brings more in all.",
    )
    serve_timeout_s: float = option(
        30.0,
        unit="seconds",
        minimum=0.1,
        maximum=3600.0,
        help="A peer that does not take a chunk within this time loses its session.",
    )
    open_blobs_max: int = option(
        256,
        unit="blobs",
        minimum=1,
        maximum=OPEN_BLOBS_MAX,
        help="How many blobs this node has open with one peer at a time; more wait for their turn.",
    )
    partners_max: int = option(
        12, unit="peers", minimum=1, maximum=256, help="How many holders one blob is fetched from at a time."
    )
    far_partners: int = option(
        2,
        unit="peers",
        minimum=0,
        maximum=256,
        help="How many of them are chosen by chance from those that are not among the nearest.",
    )
    partners_interval_s: float = option(
        10.0,
        unit="seconds",
        minimum=0.5,
        maximum=3600.0,
        help="How often the least useful partner of a blob gives way to another holder, as long as some wait.",
    )
    near_labels: tuple[str, ...] = option(
        ("zone", "region"), help="Labels that name where a member is, from the smallest place to the largest."
    )
    writes_max: int = option(
        3, unit="chunks", minimum=1, maximum=64, help="How many chunks of one blob are checked and written at a time."
    )
    have_interval_s: float = option(
        0.05,
        unit="seconds",
        minimum=0.0,
        maximum=10.0,
        help="A chunk that arrived is announced at once; those within this time after it are announced together.",
    )
    open_timeout_s: float = option(
        5.0, unit="seconds", minimum=0.1, maximum=300.0, help="How long reaching a holder may take."
    )
    idle_timeout_s: float = option(
        60.0, unit="seconds", minimum=1.0, maximum=86400.0, help="A session nothing is open in is closed after this."
    )
    sources_interval_s: float = option(
        0.25, unit="seconds", minimum=0.05, maximum=60.0, help="How often a transfer looks for new and lost holders."
    )
    sources_grace_s: float = option(
        2.0, unit="seconds", minimum=0.0, maximum=3600.0, help="How long a transfer goes on with no holder known."
    )
    stall_timeout_s: float = option(
        30.0, unit="seconds", minimum=0.5, maximum=86400.0, help="A transfer fails after this long without progress."
    )
    straggler_first_s: float = option(
        10.0,
        unit="seconds",
        minimum=0.1,
        maximum=3600.0,
        help="How long a peer may take for its first chunk before others that hold the same are asked.",
    )
    straggler_min_s: float = option(
        2.0,
        unit="seconds",
        minimum=0.05,
        maximum=3600.0,
        help="How long a peer may pause, however fast it was, before others are asked.",
    )
    straggler_factor: float = option(
        8.0,
        minimum=1.5,
        maximum=1000.0,
        help="A peer is late when a chunk takes this many times as long as its rate so far promises.",
    )
    recipe_wait_s: float = option(
        0.25,
        unit="seconds",
        minimum=0.0,
        maximum=60.0,
        help="How long to hear further holders before choosing the recipe that most of them have.",
    )
    answer_timeout_s: float = option(
        10.0,
        unit="seconds",
        minimum=0.1,
        maximum=600.0,
        help="A holder that owes an answer, other than a chunk, for this long loses its session.",
    )
