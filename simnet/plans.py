"""Fault plans drawn from a seed."""

import random
from collections.abc import Sequence

from simnet.determinism import part_rng
from simnet.stage import Fault, Plan

SWIZZLE = "swizzle"
SHORTEST_S, LONGEST_S = 2.0, 30.0
LOSSES = (0.05, 0.1, 0.3)


def draw(
    seed: int, hosts: Sequence[int], from_s: float, until_s: float, kinds: Sequence[str], per_minute: float
) -> Plan:
    """Faults of these kinds, about so many a minute, all over by `until_s`; the same for the same arguments.

    The first host is a landmark: it is cut off and slowed as others are, but it does not die. `swizzle` stops a
    random part of the hosts one after the other and brings them back in another order.
    """
    rng = part_rng(seed, "plan")
    count = max(1, round(per_minute * (until_s - from_s) / 60))
    drawn: list[Fault] = []
    for _ in range(count):
        kind = rng.choice(list(kinds))
        at_s = round(rng.uniform(from_s, until_s - (until_s - from_s) / 10), 1)
        room_s = until_s - at_s
        for_s = round(min(room_s, rng.uniform(SHORTEST_S, LONGEST_S)), 1)
        drawn += _swizzle(rng, hosts, at_s, room_s) if kind == SWIZZLE else [_one(rng, kind, hosts, at_s, for_s)]
    return tuple(sorted(drawn, key=lambda fault: (fault.at_s, fault.kind, fault.hosts)))


def _one(rng: random.Random, kind: str, hosts: Sequence[int], at_s: float, for_s: float) -> Fault:
    part = _part_of(rng, hosts)
    match kind:
        case "loss":
            return Fault(at_s, kind, (), for_s, rng.choice(LOSSES))
        case "join":
            return Fault(at_s, kind, (), 0.0, 1.0)
        case "bit_rot":
            return Fault(at_s, kind, part, 0.0, 1.0)
        case _:
            return Fault(at_s, kind, part, for_s)


def _swizzle(rng: random.Random, hosts: Sequence[int], at_s: float, room_s: float) -> list[Fault]:
    stopped = _part_of(rng, hosts, share_max=0.9)
    down = sorted(rng.uniform(0, room_s / 3) for _ in stopped)
    back = [rng.uniform(room_s / 2, room_s) for _ in stopped]
    order = rng.sample(stopped, len(stopped))
    return [
        Fault(round(at_s + stop_s, 1), "crash", (number,), round(back_s - stop_s, 1))
        for number, stop_s, back_s in zip(order, down, back, strict=True)
    ]


def _part_of(rng: random.Random, hosts: Sequence[int], share_max: float = 0.5) -> tuple[int, ...]:
    others = list(hosts)[1:] or list(hosts)
    return tuple(sorted(rng.sample(others, rng.randint(1, max(1, int(len(others) * share_max))))))
