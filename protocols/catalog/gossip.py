"""How records travel: what to tell whom, what to ask for, and the comparing of two catalogs.

Rumors: Advert -> Want -> Records, to a few random members a round. Repair: Summary -> Buckets -> Keys -> Advert and
Want -> Records. Nothing is remembered of a repair between its messages, so a lost one costs nothing but time.
"""

import random
from collections.abc import Callable, Iterable, Sequence

from protocols.catalog.asked import Asked
from protocols.catalog.config import CatalogConfig
from protocols.catalog.contents import Contents, key_batches
from protocols.catalog.messages import KEYS_MAX, Advert, Buckets, InventoryKey, Keys, Summary, Want
from protocols.catalog.rumors import Rumors, rounds_for
from protocols.effects import Effect, Send, SetTimer
from protocols.ids import PeerId, VersionId

GOSSIP = "gossip"
PUSH_PULL = "push-pull"

JOIN_REPAIRS = 8
"""How many members compare catalogs with one that joins, about; and with how many of them it does so itself."""

Key = VersionId | PeerId
"""What a record is known by: a version by its id, an inventory by its owner."""


class Gossip:
    """The spreading of one catalog's contents. `alive` gives the other live members."""

    def __init__(
        self,
        config: CatalogConfig,
        peer_id: PeerId,
        rng: random.Random,
        alive: Callable[[], Sequence[PeerId]],
        contents: Contents,
    ) -> None:
        self._config = config
        self._peer_id = peer_id
        self._rng = rng
        self._alive = alive
        self._contents = contents
        self._follows = config.follow == "all"
        self._rumors: Rumors[Key] = Rumors()
        self._gossiping = False
        self._asked: Asked[Key] = Asked()

    # Rumors.

    def tell(self, key: Key) -> list[Effect]:
        """Spread the news of a record. What came by repair is told once: only where that is news it spreads on."""
        self._rumors.heat(key, 1 if self._asked.came(key) else self._full_rounds())
        return self._start()

    def _start(self) -> list[Effect]:
        if self._gossiping or not len(self._rumors):
            return []
        self._gossiping = True
        # The first round comes at a random moment, so that what is published together travels together.
        return [SetTimer(GOSSIP, self._rng.uniform(0.0, self._config.gossip_interval_s))]

    def forget(self, key: Key) -> None:
        """The record is no longer here."""
        self._rumors.forget(key)

    def round(self) -> list[Effect]:
        """One round of rumors."""
        members = [peer for peer in self._alive() if peer != self._peer_id]
        if not members:
            # Whoever comes compares catalogs first of all; there is nobody to tell now.
            self._rumors.clear()
        told = self._rumors.next_round()
        if not told:
            self._gossiping = False
            return []
        versions = tuple(VersionId(key) for key in told if isinstance(key, bytes))
        keys = [self._contents.key_of(PeerId(key)) for key in told if isinstance(key, str)]
        advert = Advert(versions, tuple(key for key in keys if key is not None))
        chosen = self._rng.sample(members, min(self._config.gossip_fanout, len(members)))
        return [*(Send(peer, advert) for peer in chosen), SetTimer(GOSSIP, self._config.gossip_interval_s)]

    def _full_rounds(self) -> int:
        return rounds_for(len(self._alive()), self._config.gossip_fanout)

    def hear_advert(self, sender: PeerId, advert: Advert, now: float) -> list[Effect]:
        """A peer has these records: ask for those that are news here."""
        return self._ask(sender, advert.versions, advert.inventories, advert.repair, now)

    def hear_want(self, sender: PeerId, want: Want) -> list[Effect]:
        """A peer asks for records. Where it does so after a rumor, the rumor is not over."""
        if not want.repair:
            for record_key in self._contents.known_keys(want.versions, want.owners):
                self._rumors.reheat(record_key)
        sent = [Send(sender, message) for message in self._contents.records(want.versions, want.owners)]
        return [*sent, *self._start()]

    def _ask(
        self,
        peer: PeerId,
        versions: Iterable[bytes],
        inventories: Iterable[InventoryKey],
        repair: bool,
        now: float,
    ) -> list[Effect]:
        mine = self._contents
        wanted = [v for v in versions if self._follows and v not in mine.versions and not mine.versions.declined(v)]
        owners = [
            key.owner
            for key in inventories
            if (self._follows or key.owner == self._peer_id) and mine.inventories.newer(key.owner, key.sequence)
        ]
        asked_versions = tuple(v for v in wanted if self._asked.ask(VersionId(v), peer, repair, now))
        asked_owners = tuple(owner for owner in owners if self._asked.ask(owner, peer, repair, now))
        if not asked_versions and not asked_owners:
            return []
        return [Send(peer, Want(asked_versions, asked_owners, repair))]

    # Repair.

    def push_pull_timer(self) -> Effect:
        """When to compare catalogs next; spread out, so that a mesh started at once does not beat in step."""
        return SetTimer(PUSH_PULL, self._config.push_pull_interval_s * self._rng.uniform(0.75, 1.25))

    def push_pull(self, now: float) -> list[Effect]:
        """Begin comparing catalogs with a random member, and forget what was asked and never came."""
        self._asked.forget_late(now)
        members = [peer for peer in self._alive() if peer != self._peer_id]
        if not members:
            return [self.push_pull_timer()]
        return [*self.open(self._rng.choice(members)), self.push_pull_timer()]

    def joined(self, peer: PeerId) -> list[Effect]:
        """A member became alive: compare catalogs with it, or leave that to others where there are many.

        To a newcomer all members become alive at once, and every one of them would tell it the same.
        """
        self._asked.forget_peer(peer)
        members = len(self._alive())
        if members > JOIN_REPAIRS and self._rng.random() * members >= JOIN_REPAIRS:
            return []
        return self.open(peer)

    def open(self, peer: PeerId) -> list[Effect]:
        """Begin comparing catalogs with a peer. A node that keeps only its own records just says which those are."""
        if self._follows:
            return [Send(peer, Summary(self._contents.keys.root()))]
        return self._offer(peer, *self._contents.all_keys())

    def hear_summary(self, sender: PeerId, summary: Summary) -> list[Effect]:
        """A peer compares: answer with bucket hashes where the catalogs differ."""
        if not self._follows:
            return self.open(sender)
        if summary.root == self._contents.keys.root():
            return []
        return [Send(sender, Buckets(self._contents.keys.hashes()))]

    def hear_buckets(self, sender: PeerId, buckets: Buckets) -> list[Effect]:
        """The peer's bucket hashes: list what is here in the differing ones, as many buckets a message as fit."""
        if not self._follows:
            return []
        keys = self._contents.keys
        effects: list[Effect] = []
        group: list[int] = []
        for bucket in keys.differing(buckets.hashes):
            if group and sum(map(keys.count, [*group, bucket])) > KEYS_MAX:
                effects.append(self._keys_message(sender, group))
                group = []
            group.append(bucket)
        return [*effects, self._keys_message(sender, group)] if group else effects

    def _keys_message(self, peer: PeerId, buckets: Sequence[int]) -> Effect:
        versions: list[VersionId] = []
        inventories: list[InventoryKey] = []
        for bucket in buckets:
            its_versions, its_inventories = self._contents.keys_in(bucket)
            versions.extend(its_versions)
            inventories.extend(its_inventories)
        # One bucket past the limit can only be somebody's grinding of ids; the rest of it waits for rumors.
        versions = versions[: KEYS_MAX - len(inventories)]
        return Send(peer, Keys(bytes(buckets), tuple(versions), tuple(inventories)))

    def hear_keys(self, sender: PeerId, keys: Keys, now: float) -> list[Effect]:
        """What the peer has in some buckets: offer what it lacks, ask for what is lacking here."""
        if not self._follows:
            return []
        its_versions = dict.fromkeys(keys.versions)
        its_sequences = {key.owner: key.sequence for key in keys.inventories}
        versions: list[VersionId] = []
        inventories: list[InventoryKey] = []
        for bucket in keys.buckets:
            mine, my_inventories = self._contents.keys_in(bucket)
            versions.extend(v for v in mine if v not in its_versions)
            inventories.extend(key for key in my_inventories if key.sequence > its_sequences.get(key.owner, -1))
        asked = self._ask(sender, keys.versions, keys.inventories, True, now)
        return [*asked, *self._offer(sender, versions, inventories)]

    def _offer(self, peer: PeerId, versions: Sequence[VersionId], inventories: Sequence[InventoryKey]) -> list[Effect]:
        return [Send(peer, Advert(*batch, repair=True)) for batch in key_batches(versions, inventories)]
