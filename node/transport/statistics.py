"""What the stream transport counts."""

import attrs


@attrs.define
class Counters:
    """Running totals since the node started; the network raises them."""

    connections_dialed: int = 0
    connections_offered: int = 0
    connections_accepted: int = 0
    connections_turned_away: int = 0
    dials_failed: int = 0
    dials_refused: int = 0
    handshakes_failed: int = 0
    admissions_refused: int = 0
    streams_opened: int = 0
    streams_accepted: int = 0
    violations: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


@attrs.frozen
class TransportStatistics:
    """What is open now, and totals since the node started.

    Turned away means without a handshake, for want of room; refused means the mesh keys differ; failed includes both
    refused and broken off; violations are broken rules of the multiplexer by admitted peers.
    """

    connections: int
    handshakes: int
    streams: int
    connections_dialed: int
    connections_offered: int
    connections_accepted: int
    connections_turned_away: int
    dials_failed: int
    dials_refused: int
    handshakes_failed: int
    admissions_refused: int
    streams_opened: int
    streams_accepted: int
    violations: int
    sent_bytes: int
    received_bytes: int
