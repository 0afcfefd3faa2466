"""Which hosts a scenario means: `all`, `first`, `last`, `others`, `half`, `10%`, `random 3`, `region 2`, `3`, `2-5`,
and several of these with commas. Shares and random choices are drawn from the seed and never take the first host."""

import math
import random
import re
from collections.abc import Sequence

from node.config_values import Origin, refuse
from node.errors import UsageError

_WORDS = ("all", "first", "last", "others", "half")
_TERM = re.compile(r"(\d+)%|random (\d+)|region (\d+)|(\d+)(?:-(\d+))?")
ALLOWED = "hosts such as all, first, last, others, half, 10%, random 3, region 2, 3, 2-5, or several with commas"


def check_selector(origin: Origin, key: str, text: str) -> None:
    """UsageError when the text names no hosts."""
    for term in text.split(","):
        if term.strip() not in _WORDS and _TERM.fullmatch(term.strip()) is None:
            raise refuse(origin, key, text, ALLOWED)


def select(text: str, hosts: int, regions: int, rng: random.Random) -> tuple[int, ...]:
    """The numbers of the hosts meant, in their order. UsageError for a number that there is no host of."""
    chosen: dict[int, None] = {}
    for term in text.split(","):
        chosen.update(dict.fromkeys(_term(term.strip(), hosts, regions, rng)))
    return tuple(sorted(chosen))


def _term(term: str, hosts: int, regions: int, rng: random.Random) -> Sequence[int]:
    everyone = range(1, hosts + 1)
    match term:
        case "all":
            return everyone
        case "first":
            return everyone[:1]
        case "last":
            return everyone[-1:]
        case "others":
            return everyone[1:]
        case "half":
            term = "50%"
    found = _TERM.fullmatch(term)
    if found is None:
        raise UsageError(f"hosts = {term!r} is not allowed: {ALLOWED}")
    percent, count, region, first, last = (int(part) if part else None for part in found.groups())
    if percent is not None:
        count = min(hosts - 1, math.ceil(hosts * percent / 100))
    if count is not None:
        return rng.sample(everyone[1:], min(count, hosts - 1))
    if region is not None:
        return [number for number in everyone if region_of(number, regions) == region]
    begin, end = first or 0, last or first or 0
    if not 1 <= begin <= end <= hosts:
        raise UsageError(f"hosts = {term!r} is not allowed: there are hosts 1 to {hosts}; --nodes makes more")
    return range(begin, end + 1)


def region_of(number: int, regions: int) -> int:
    """The region a host stands in, from 1."""
    return 1 + (number - 1) % regions
