"""Who holds what: the newest inventory of each member, and an index from manifest to holders."""

from collections.abc import Callable, Container

from protocols.catalog.records import HoldingState, Inventory
from protocols.ids import Digest, PeerId


class Inventories:
    """At most `owners_max` inventories and `holdings_max` holdings; those of dead owners go first, oldest first."""

    def __init__(self, own: PeerId, owners_max: int, holdings_max: int) -> None:
        self._own = own
        self._owners_max = owners_max
        self._holdings_max = holdings_max
        self._by_owner: dict[PeerId, Inventory] = {}
        self._holders: dict[Digest, dict[PeerId, HoldingState]] = {}
        self.holdings = 0

    def __len__(self) -> int:
        return len(self._by_owner)

    def get(self, owner: PeerId) -> Inventory | None:
        """An owner's newest inventory."""
        return self._by_owner.get(owner)

    def owners(self) -> list[PeerId]:
        """All owners, in the order in which their newest inventories came."""
        return list(self._by_owner)

    def newer(self, owner: PeerId, sequence: int) -> bool:
        """Whether an inventory of this sequence would be news."""
        known = self._by_owner.get(owner)
        return known is None or sequence > known.sequence

    def add(self, inventory: Inventory, living: Callable[[], Container[PeerId]]) -> list[PeerId]:
        """Take in an inventory that is news; gives the owners let go for it, which may hold its own.

        `living` is asked for the live members only when there is no room for all.
        """
        self._remove(inventory.owner)
        self._by_owner[inventory.owner] = inventory
        self.holdings += len(inventory.holdings)
        for holding in inventory.holdings:
            self._holders.setdefault(holding.manifest_digest, {})[inventory.owner] = holding.state
        return self._make_room(living) if self._over(0, 0) else []

    def _make_room(self, living: Callable[[], Container[PeerId]]) -> list[PeerId]:
        # A thirty-second at a time, so that the sort is paid once in many records.
        alive = living()
        spare_owners, spare_holdings = self._owners_max // 32, self._holdings_max // 32
        others = [inventory for inventory in self._by_owner.values() if inventory.owner != self._own]
        let_go: list[PeerId] = []
        for victim in sorted(others, key=lambda i: (i.owner in alive, i.sequence, i.owner)):
            if not self._over(spare_owners, spare_holdings):
                break
            self._remove(victim.owner)
            let_go.append(victim.owner)
        return let_go

    def _over(self, spare_owners: int, spare_holdings: int) -> bool:
        return (
            len(self._by_owner) > self._owners_max - spare_owners or self.holdings > self._holdings_max - spare_holdings
        )

    def _remove(self, owner: PeerId) -> None:
        inventory = self._by_owner.pop(owner, None)
        if inventory is None:
            return
        self.holdings -= len(inventory.holdings)
        for holding in inventory.holdings:
            holders = self._holders[holding.manifest_digest]
            del holders[owner]
            if not holders:
                del self._holders[holding.manifest_digest]

    def state(self, owner: PeerId, manifest_digest: Digest) -> HoldingState | None:
        """What an owner says it has of a manifest's model."""
        return self._holders.get(manifest_digest, {}).get(owner)

    def providers(self, manifest_digest: Digest, alive: Callable[[PeerId], bool]) -> list[tuple[PeerId, HoldingState]]:
        """The living holders of a manifest's model, complete ones first, then by peer id."""
        holders = self._holders.get(manifest_digest, {})
        return sorted(
            ((peer, state) for peer, state in holders.items() if alive(peer)), key=lambda item: (item[1], item[0])
        )
