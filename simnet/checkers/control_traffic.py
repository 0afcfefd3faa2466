"""What a node sends besides chunks stays bounded, whatever happens around it."""

from collections import deque

import trio

from simnet.checkers.checker import Quiet, Seen, Violated

WINDOW_S = 10


class ControlTrafficBounded(Quiet):
    """Over any ten seconds, no host sends more control bytes a second than the scenario allows."""

    name = "control traffic is bounded"

    def __init__(self) -> None:
        self._sent: dict[int, deque[int]] = {}

    def begin(self, seen: Seen) -> None:
        """Remember where to look."""
        self._seen = seen

    async def step(self) -> None:
        """Take another sample of each host."""
        await trio.lowlevel.checkpoint()
        for number, host in self._seen.world.hosts.items():
            window = self._sent.setdefault(number, deque(maxlen=WINDOW_S + 1))
            window.append(self._seen.traffic.control_sent_bytes(host))
            rate = (window[-1] - window[0]) / WINDOW_S
            if rate > self._seen.control_bytes_per_s_max:
                wanted = f"at most {self._seen.control_bytes_per_s_max:g}"
                raise Violated(self.name, f"{host.name} sent {rate:.0f} control bytes/s for {WINDOW_S} s; {wanted}")

    async def end(self) -> None:
        """Nothing more to see."""
        await trio.lowlevel.checkpoint()
