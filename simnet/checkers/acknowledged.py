"""What a node said it has, it has after any crash, until it is removed."""

from protocols.ids import digest_of
from protocols.names import ModelName
from simnet.checkers.checker import Quiet, Seen, Violated
from simnet.world import Host


class AcknowledgedKept(Quiet):
    """A pull reported verified and a model put into a store are there whole whenever the node runs."""

    name = "acknowledged state survives"

    def begin(self, seen: Seen) -> None:
        """Remember where to look."""
        self._seen = seen

    async def step(self) -> None:
        """Look at every running node's store for what it acknowledged."""
        held = dict(self._seen.workload.acknowledged)
        for number in dict.fromkeys(number for number, _ in held):
            host = self._seen.world.hosts[number]
            if host.node is not None:
                names = [name for holder, name in held if holder == number]
                await self._look(host, names)

    async def end(self) -> None:
        """Look once more, also at what each node says to others that it holds."""
        await self.step()
        for (number, name), digest in self._seen.workload.acknowledged.items():
            node = self._seen.world.hosts[number].node
            if node is None or (number in self._sick()):
                continue
            said = {holding.manifest_digest: holding.state for holding in node.services.catalog.holdings()}
            if said.get(digest) != "complete":
                raise Violated(self.name, f"h{number} has {name} and does not say so: {said.get(digest, 'nothing')}")

    async def _look(self, host: Host, names: list[str]) -> None:
        models, node = host.models, host.node
        if models is None or host.number in self._sick():
            return
        complete = {name.display(): digest_of(raw) for name, raw in (await models.complete_manifests()).items()}
        for name in names:
            # While the store was asked, the node may have died or somebody may have removed the model.
            digest = self._seen.workload.acknowledged.get((host.number, name))
            found = complete.get(ModelName.parse(name).display())
            if host.node is node and digest is not None and found != digest:
                raise Violated(self.name, f"{host.name} said that it has {name}, and now finds {found or 'nothing'}")

    def _sick(self) -> list[int]:
        return [number for number, _ in self._seen.stage.rotten]
