"""What an operator may set of the bulk plane: section `[bulk]`."""

import attrs

from protocols.bulk.frames import FRAME_SIZE_BYTES_MAX
from protocols.bulk.tickets import CONNECTION_BYTES_MIN
from protocols.options import option


@attrs.frozen
class BulkConfig:
    """The plain TCP connections that carry chunks, sealed."""

    enabled: bool = option(True, help="Whether chunks travel over connections of their own; false: control streams.")
    port: int = option(
        0,
        minimum=0,
        maximum=65535,
        help="TCP port of the bulk plane; 0 takes the one after the node's own where that is free.",
    )
    frame_size_bytes: int = option(
        1024 * 1024,
        unit="bytes",
        minimum=256 * 1024,
        maximum=FRAME_SIZE_BYTES_MAX,
        help="How much of a chunk is sealed and sent at a time.",
    )
    connections_per_peer_max: int = option(
        4,
        unit="connections",
        minimum=1,
        maximum=32,
        help="How many connections one peer may be read from; a further one is kept only if it brings more.",
    )
    connect_timeout_s: float = option(
        2.0,
        unit="seconds",
        minimum=0.1,
        maximum=60.0,
        help="How long reaching a peer's bulk port may take before its chunks come over control streams.",
    )
    retry_s: float = option(
        60.0,
        unit="seconds",
        minimum=1.0,
        maximum=86400.0,
        help="How long a bulk port that could not be reached is left alone.",
    )
    ticket_valid_s: float = option(
        10.0, unit="seconds", minimum=0.5, maximum=300.0, help="How long a ticket for a connection may be used."
    )
    connection_bytes_max: int = option(
        1024**4,
        unit="bytes",
        minimum=CONNECTION_BYTES_MIN,
        maximum=1 << 50,
        help="How much one connection carries before it is replaced by one with a fresh key.",
    )
    openings_max: int = option(
        64,
        unit="connections",
        minimum=1,
        maximum=4096,
        help="Connections at once that did not show a ticket yet; a quarter of them from one address.",
    )
    opening_timeout_s: float = option(
        5.0, unit="seconds", minimum=0.1, maximum=60.0, help="How long a connection may take to show its ticket."
    )
    congestion_control: str = option(
        "", help="TCP congestion control of the bulk plane, such as bbr; empty: the system's own."
    )
