"""The settings of the catalog and of discovery: `[catalog]` and `[discovery]` of herd.toml."""

import attrs

from protocols.options import option

MEBIBYTE = 1024 * 1024


@attrs.frozen
class CatalogConfig:
    """How model records are kept and spread between members."""

    follow: str = option(
        "all",
        choices=("all", "none"),
        help="Whose records this node keeps: everybody's, or only those it publishes itself (it then asks the DHT).",
    )
    gossip_fanout: int = option(
        3, unit="peers", minimum=1, maximum=32, help="How many random live members hear of a new record each round."
    )
    gossip_interval_s: float = option(
        0.2, unit="s", minimum=0.01, maximum=60, help="Time between two rounds while there is something new to tell."
    )
    push_pull_interval_s: float = option(
        30.0, unit="s", minimum=0.5, maximum=86_400, help="How often the whole catalog is compared with one member's."
    )
    clock_drift_max_s: float = option(
        600.0, unit="s", minimum=1, maximum=86_400, help="Records dated further ahead of this host's clock are refused."
    )
    versions_max: int = option(
        100_000,
        unit="records",
        minimum=16,
        maximum=10_000_000,
        help="Most version records kept; old history goes first.",
    )
    versions_size_bytes_max: int = option(
        256 * MEBIBYTE,
        unit="bytes",
        minimum=8 * MEBIBYTE,
        help="Most memory for version records (their manifests and blob lists); old history goes first.",
    )
    owners_max: int = option(
        10_000, unit="members", minimum=16, maximum=1_000_000, help="Most members whose inventories are kept."
    )
    holdings_max: int = option(
        2_000_000, unit="holdings", minimum=100_000, help="Most holdings kept over all members' inventories."
    )
    ask_timeout_s: float = option(
        5.0,
        unit="s",
        minimum=0.1,
        maximum=120,
        help="How long one question to one member may take, connecting included.",
    )
    stream_idle_s: float = option(
        60.0, unit="s", minimum=1, maximum=86_400, help="A gossip stream unused for this long is closed."
    )
    snapshot_interval_s: float = option(
        5.0, unit="s", minimum=0.1, maximum=3600, help="Shortest time between two writes of the catalog to disk."
    )


@attrs.frozen
class DiscoveryConfig:
    """How models are announced in, and found through, the distributed hash table."""

    enabled: bool = option(True, help="Whether this node takes part in the DHT.")
    reprovide_interval_s: float = option(
        900.0, unit="s", minimum=10, maximum=86_400, help="How often everything this node holds is announced anew."
    )
    retry_interval_s: float = option(
        10.0,
        unit="s",
        minimum=0.1,
        maximum=3600,
        help="How soon an announcement that no peer took is tried again; twice as long each further time.",
    )
    call_timeout_s: float = option(
        10.0, unit="s", minimum=0.1, maximum=120, help="How long one question to the DHT may take."
    )
    lookup_timeout_s: float = option(
        20.0, unit="s", minimum=0.5, maximum=300, help="How long finding one name may take, all its checks included."
    )
    check_timeout_s: float = option(
        5.0, unit="s", minimum=0.1, maximum=120, help="How long a found provider may take to confirm what it holds."
    )
    checks_at_once_max: int = option(
        8, unit="peers", minimum=1, maximum=256, help="How many found providers are asked at the same time."
    )
