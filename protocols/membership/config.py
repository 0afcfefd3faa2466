"""`[membership]` of herd.toml: how members probe each other, in the words of the SWIM and Lifeguard papers."""

import attrs

from protocols.options import option


@attrs.frozen
class MembershipConfig:
    """One member's failure detector and dissemination; defaults suit a LAN or a region.

    Raises ValueError naming the field when a value is outside its limits.
    """

    probe_interval_s: float = option(
        1.0,
        unit="s",
        minimum=0.05,
        maximum=60,
        help="SWIM's protocol period T': one member is probed a period; stretched by the local health multiplier",
    )
    probe_timeout_s: float = option(
        0.5,
        unit="s",
        minimum=0.01,
        maximum=30,
        help="how long a direct ping may take before k others and a control stream are asked to try;"
        " stretched by the local health multiplier; must be under probe_interval_s",
    )
    indirect_probe_count: int = option(
        3, minimum=0, maximum=16, help="SWIM's k: how many members are asked to ping for us when a ping got no answer"
    )
    suspicion_multiplier: float = option(
        4.0,
        minimum=1,
        maximum=20,
        help="Lifeguard's alpha: the shortest suspicion lasts alpha * max(1, log10(n)) protocol periods",
    )
    suspicion_max_multiplier: float = option(
        6.0,
        minimum=1,
        maximum=20,
        help="Lifeguard's beta: a suspicion nobody else confirmed lasts beta times the shortest one",
    )
    local_health_max: int = option(
        8,
        minimum=1,
        maximum=32,
        help="Lifeguard's S + 1: the local health multiplier stays below this and periods stretch at most by it",
    )
    retransmit_multiplier: int = option(
        4,
        minimum=1,
        maximum=16,
        help="SWIM's lambda: an update is piggybacked at most lambda * ceil(log10(n + 1)) times",
    )
    gossip_interval_s: float = option(
        0.2,
        unit="s",
        minimum=0.02,
        maximum=60,
        help="while updates wait to be spread they are also sent by themselves this often",
    )
    gossip_fanout: int = option(3, minimum=0, maximum=16, help="to how many random members such gossip goes each time")
    gossip_to_dead_s: float = option(
        30.0,
        unit="s",
        minimum=0,
        maximum=3600,
        help="for so long after a death gossip still goes to the dead member too, so that a live one can refute",
    )
    push_pull_interval_s: float = option(
        30.0,
        unit="s",
        minimum=0.2,
        maximum=3600,
        help="how often the whole member table is exchanged with a random member (stretched in large meshes)",
    )
    reconnect_interval_s: float = option(
        20.0,
        unit="s",
        minimum=0.2,
        maximum=3600,
        help="how often one random dead member is contacted again, so that a healed partition grows together",
    )
    forget_after_s: float = option(
        86_400.0,
        unit="s",
        minimum=1,
        maximum=2_592_000,
        help="how long a dead or left member is remembered; until then stale news cannot bring it back",
    )
    stream_timeout_s: float = option(
        5.0, unit="s", minimum=0.1, maximum=60, help="how long one exchange over a control stream may take"
    )
    join_retry_s: float = option(
        1.0,
        unit="s",
        minimum=0.05,
        maximum=60,
        help="how long to wait before a bootstrap peer that did not answer is tried again; doubled each time",
    )
    join_retry_max_s: float = option(
        30.0, unit="s", minimum=0.05, maximum=3600, help="the longest wait between two tries of a bootstrap peer"
    )
    join_attempts: int = option(
        3,
        minimum=1,
        maximum=100,
        help="how many rounds over all bootstrap peers a starting node waits for; later ones run in the background",
    )
    members_max: int = option(
        4096, minimum=2, maximum=65_536, help="how many members (dead ones included) are kept; further ones are refused"
    )
    remembered_members_max: int = option(
        64, minimum=0, maximum=4096, help="how many members members.json keeps for the next start"
    )
    refresh_interval_s: float = option(
        60.0,
        unit="s",
        minimum=1,
        maximum=3600,
        help="how often free disk space is looked at; it is announced when it changed by more than 1 %",
    )

    def __attrs_post_init__(self) -> None:
        if self.probe_timeout_s >= self.probe_interval_s:
            raise ValueError(
                f"probe_timeout_s: {self.probe_timeout_s:g} is not allowed: under probe_interval_s"
                f" ({self.probe_interval_s:g}), or indirect probes have no time left"
            )
