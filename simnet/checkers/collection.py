"""Garbage collection never removes what a standing manifest references."""

from simnet.checkers.checker import Quiet, Seen, Violated


class ReferencedKept(Quiet):
    """A model that was whole in a store stays whole there as long as its manifest stands."""

    name = "nothing referenced is removed"

    def __init__(self) -> None:
        self._whole: dict[tuple[int, str], None] = {}

    def begin(self, seen: Seen) -> None:
        """Remember where to look."""
        self._seen = seen

    async def step(self) -> None:
        """Look at every model of every running node."""
        for number in self._seen.world.running():
            host = self._seen.world.hosts[number]
            rotten = any(sick == number for sick, _ in self._seen.stage.rotten)
            for view in await host.models.models() if host.models is not None and not rotten else ():
                if view.state == "verified":
                    self._whole[number, view.name] = None
                elif (number, view.name) in self._whole and host.node is not None:
                    raise Violated(self.name, f"{host.name} lists {view.name}, and a blob of it is gone: {view.detail}")

    async def end(self) -> None:
        """Look once more."""
        await self.step()
