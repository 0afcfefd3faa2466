"""Catalogs converge: every live node sees the same heads of the same names, and the same whole holders."""

import trio

from protocols.ids import Digest
from simnet.checkers.checker import Quiet, Seen, Violated
from simnet.world import Node


class CatalogsConverge(Quiet):
    """Looks at the end, when the mesh had time to settle.

    Left out are a node that follows nobody, and one that others ban now: they neither hear nor tell it everything.
    """

    name = "catalogs converge"

    def begin(self, seen: Seen) -> None:
        """Remember where to look."""
        self._seen = seen

    async def end(self) -> None:
        """Compare every node's catalog with the first one's."""
        await trio.lowlevel.checkpoint()
        world = self._seen.world
        if self._seen.stage.parted or world.options.config.catalog.follow != "all":
            return
        known = {
            host.name: _catalog(host.node, self._digests())
            for host in world.hosts.values()
            if host.node is not None and not any(other.blame.banned(host.peer) for other in world.running().values())
        }
        if not known:
            return
        first, wanted = next(iter(known.items()))
        for name, catalog in known.items():
            for key in {**wanted, **catalog}:
                mine, theirs = catalog.get(key, "nothing"), wanted.get(key, "nothing")
                if mine != theirs:
                    raise Violated(self.name, f"of {key} {name} knows {mine}, {first} knows {theirs}")

    def _digests(self) -> list[Digest]:
        return [model.digest for model in self._seen.workload.models.values()]


def _catalog(node: Node, digests: list[Digest]) -> dict[str, str]:
    catalog = node.services.catalog
    heads = {name: ", ".join(sorted(head.id().hex()[:12] for head in catalog.heads(name))) for name in catalog.names()}
    holders = {
        # Who holds a part says so while it pulls, and no longer.
        f"the holders of {digest}": ", ".join(
            peer[-6:] for peer, state in catalog.providers(digest) if state == "complete"
        )
        for digest in digests
    }
    return {**heads, **holders}
