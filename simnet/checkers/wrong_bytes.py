"""No wrong byte is ever served, but by a host that lies or whose disk flipped it; none is ever linked into a store."""

from protocols.ids import Digest
from simnet.audit import wrong_bytes
from simnet.checkers.checker import Quiet, Seen, Violated
from simnet.world import Host


class WrongBytes(Quiet):
    """Watches each chunk a node reads to serve, and looks at each blob when it is new in a store."""

    name = "no wrong byte"

    def __init__(self) -> None:
        self._right: dict[tuple[int, Digest], None] = {}

    def begin(self, seen: Seen) -> None:
        """Remember where to look."""
        self._seen = seen

    def served(self, host: Host, digest: Digest, index: int, chunk: bytes) -> None:
        """Compare a chunk with the true bytes, unless the host was made to lie or to rot."""
        truth = self._seen.workload.truth.get(digest)
        held = self._seen.stage
        if truth is None or host.number in held.lying or (host.number, digest) in held.rotten:
            return
        offset = index * host.blobs.chunk_size_bytes
        if chunk != truth[offset : offset + len(chunk)]:
            raise Violated(self.name, f"{host.name} served chunk {index} of {digest} with wrong bytes")

    async def step(self) -> None:
        """Look at the blobs that are new since the last look."""
        for host in self._seen.world.hosts.values():
            for digest in host.blobs.digests():
                if (host.number, digest) not in self._right:
                    self._compare(host, digest)
                    self._right[host.number, digest] = None

    async def end(self) -> None:
        """Look at every blob once more, and at each chunk of those that still come in."""
        for host in self._seen.world.hosts.values():
            for digest in host.blobs.digests():
                self._compare(host, digest)
            if host.node is not None and (wrong := wrong_bytes(host.blobs)):
                raise Violated(self.name, f"in the store of {host.name} {wrong[0]}")

    def _compare(self, host: Host, digest: Digest) -> None:
        truth = self._seen.workload.truth.get(digest)
        if truth is None or (host.number, digest) in self._seen.stage.rotten:
            return
        if host.blobs.whole(digest) != truth:
            raise Violated(self.name, f"{host.name} has {digest} in its store with wrong bytes")
