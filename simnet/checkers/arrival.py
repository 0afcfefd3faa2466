"""Every wanted chunk arrives, as long as a copy of each chunk survives on a live, honest host.

A host that lied is banned for a while by those it lied to: to them its copies are none.
"""

import trio

from protocols.ids import digest_of
from simnet.checkers.checker import Quiet, Seen, Violated
from simnet.workload import MadeModel, Pulled
from simnet.world import Node


class WantedArrives(Quiet):
    """Looks at the end: who still waits for a model that the live hosts together hold?"""

    name = "every wanted chunk arrives"

    def begin(self, seen: Seen) -> None:
        """Remember where to look."""
        self._seen = seen

    async def end(self) -> None:
        """Look at every wish that is not fulfilled."""
        await trio.lowlevel.checkpoint()
        if self._seen.stage.parted:
            return
        for wish in self._seen.workload.pulls:
            host = self._seen.world.hosts[wish.host]
            model = self._seen.workload.models[wish.model]
            if wish.done_s is None and host.node is not None and self._survives(host.node, model, wish):
                why = f"; last: {wish.failures[-1]}" if wish.failures else ""
                waited_s = trio.current_time() - wish.asked_s
                raise Violated(self.name, f"{host.name} waits for {wish.model} since {waited_s:.1f} s{why}")

    def _survives(self, node: Node, model: MadeModel, wish: Pulled) -> bool:
        return wish.host not in self._seen.stage.full and all(self._held(node, layer) for layer in model.layers)

    def _held(self, node: Node, layer: bytes) -> bool:
        digest, stage, world = digest_of(layer), self._seen.stage, self._seen.world
        held: set[int] = set()
        for number in world.running():
            host = world.hosts[number]
            bits = host.blobs.held(digest)
            honest = number not in stage.lying and (number, digest) not in stage.rotten
            if bits is not None and honest and not node.blame.banned(host.peer):
                held.update(bits)
        return len(held) == -(-len(layer) // world.options.chunk_size_bytes)
