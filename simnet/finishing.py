"""When each host had what it wanted, against T*: no schedule in whole chunks ends sooner."""

import math
from collections import Counter

from simnet.report import Finish
from simnet.scenario import Surface
from simnet.workload import MadeModel, Workload


def finishes_of(workload: Workload, surface: Surface) -> tuple[Finish, ...]:
    """One a fulfilled wish, in the order in which they were."""
    takers = Counter(pulled.model for pulled in workload.pulls)
    done = [(pulled.done_s, pulled) for pulled in workload.pulls if pulled.done_s is not None]
    return tuple(
        Finish(
            f"h{pulled.host}",
            pulled.model,
            done_s - pulled.asked_s,
            ideal_s(workload.models[pulled.model], surface, takers[pulled.model]),
        )
        for done_s, pulled in sorted(done, key=lambda each: (each[0], each[1].host))
    )


def ideal_s(model: MadeModel, surface: Surface, takers: int) -> float | None:
    """T* = (S / B)(1 + floor(log2 n) / k) for n takers of k chunks from one holder; None without a bound."""
    if not surface.rate_mbit_per_s or not takers or len(model.holders) != 1:
        return None
    one_copy_s = model.size_bytes * 8 / (surface.rate_mbit_per_s * 1e6)
    chunks = sum(math.ceil(len(layer) * surface.bytes_scale / surface.chunk_size_bytes) for layer in model.layers)
    return one_copy_s * (1 + math.floor(math.log2(takers)) / chunks)
