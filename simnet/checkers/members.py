"""Members agree on who is alive, soon after the faults stop."""

import trio

from simnet.checkers.checker import Quiet, Seen, Violated


class MembersAgree(Quiet):
    """When nothing was disturbed for `settle_s`, every live node sees exactly the live others."""

    name = "members agree"

    def begin(self, seen: Seen) -> None:
        """Remember where to look."""
        self._seen = seen

    async def step(self) -> None:
        """Look whether they had time enough."""
        await trio.lowlevel.checkpoint()
        views, stage = self._seen.views, self._seen.stage
        calm_s = trio.current_time() - max(views.changed_s, stage.last_disturbed_s)
        if stage.parted or calm_s < self._seen.settle_s or views.agreement() == 1.0:
            return
        told = "; ".join(views.disagreements())
        raise Violated(self.name, f"{calm_s:.1f} s after the last change {told}")

    async def end(self) -> None:
        """Look once more."""
        await self.step()
