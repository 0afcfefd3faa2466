"""Which recipe a blob is received under, and whose: a claim until the whole blob's SHA-256 was seen."""

import attrs
import trio

from node.blame import BlameLedger
from node.ports import BlobMissing, Blobs
from node.services.exchange.asking import AskingSide
from node.services.exchange.sources import Sources
from protocols.bits import Bits
from protocols.errors import RemoteProtocolError
from protocols.exchange.asking_words import (
    BlobHeld,
    FetchRecipe,
)
from protocols.exchange.config import ExchangeConfig
from protocols.exchange.partners import Standing, standing_of
from protocols.ids import Digest, PeerId, RecipeId
from protocols.recipe.recipe import Recipe


@attrs.frozen
class ChosenRecipe:
    """A recipe, its id, and who gave it; None when it was here."""

    recipe: Recipe
    id: RecipeId
    giver: PeerId | None


class Recipes:
    """The offers of one transfer. `wanted_id` is the only recipe to accept, when the caller knows it."""

    def __init__(
        self,
        digest: Digest,
        size_bytes: int,
        wanted_id: RecipeId | None,
        sources: Sources,
        asking: AskingSide,
        blame: BlameLedger,
        config: ExchangeConfig,
    ) -> None:
        self._digest = digest
        self._size_bytes = size_bytes
        self._wanted_id = wanted_id
        self._sources = sources
        self._asking = asking
        self._blame = blame
        self._config = config
        self._refused: dict[RecipeId, None] = {}
        self._offers: dict[PeerId, BlobHeld] = {}
        self._changed = trio.Event()
        self._page = trio.Event()
        self._page_giver: PeerId | None = None
        self._data: bytes | None = None

    def offered(self, peer: PeerId, offer: BlobHeld) -> bool:
        """A giver holds the blob under this recipe; whether that is one to accept."""
        if not self.acceptable(offer.recipe_id):
            self.withdrawn(peer)
            return False
        self._offers[peer] = offer
        self._wake()
        return True

    def withdrawn(self, peer: PeerId) -> None:
        """A giver has nothing any more, or is gone."""
        self._offers.pop(peer, None)
        self._wake()

    def gained(self, peer: PeerId, indices: tuple[int, ...]) -> None:
        """A giver holds more than it offered at first."""
        offer = self._offers.get(peer)
        if offer is not None:
            for index in indices:
                offer.bits.add(index)

    def came(self, peer: PeerId, data: bytes | None) -> None:
        """A page of a recipe, and with the last page the whole."""
        if peer == self._page_giver:
            self._data = data
            self._page.set()

    def acceptable(self, recipe_id: RecipeId) -> bool:
        """Whether chunks cut by this recipe are of use."""
        return recipe_id not in self._refused and self._wanted_id in (None, recipe_id)

    def offers(self) -> dict[PeerId, BlobHeld]:
        """The acceptable offers that stand."""
        return {peer: offer for peer, offer in self._offers.items() if self.acceptable(offer.recipe_id)}

    def standing(self, received: tuple[RecipeId, Bits] | None) -> Standing:
        """Who has what is missing; `received` is the recipe in use and what is held under it, once there is one."""
        offers = self.offers()
        if received is None:
            return Standing([peer for peer, offer in offers.items() if len(offer.bits) or not offer.bits.count])
        recipe_id, held = received
        return standing_of(held, {peer: offer.bits for peer, offer in offers.items() if offer.recipe_id == recipe_id})

    def refuse(self, recipe_id: RecipeId) -> None:
        """This recipe does not make the blob."""
        self._refused[recipe_id] = None

    def hopeless(self) -> bool:
        """Whether the one recipe to accept was refused."""
        return self._wanted_id is not None and self._wanted_id in self._refused

    async def resumed(self, blobs: Blobs) -> ChosenRecipe | None:
        """The recipe under which the blob is here already: any that is acceptable, or whatever the whole has."""
        held = blobs.held(self._digest)
        if held is None:
            return None
        try:
            recipe = await blobs.recipe(self._digest)
        except BlobMissing:
            return None
        chosen = ChosenRecipe(recipe, recipe.id(), None)
        # Nothing has to come of what is here whole, so no holder has to cut it alike.
        of_use = self.acceptable(chosen.id) or (held.complete() and chosen.id not in self._refused)
        return chosen if recipe.size_bytes == self._size_bytes and of_use else None

    async def choose(self) -> ChosenRecipe:
        """Wait for offers and get the recipe that most givers have, from one of them."""
        while True:
            offers = self.offers()
            if not offers:
                await self._wait()
                continue
            with trio.move_on_after(self._config.recipe_wait_s):
                while self._wanted_id is None and self._sources.waiting_for():
                    await self._wait()
            holders: dict[RecipeId, list[PeerId]] = {}
            for peer, offer in self.offers().items():
                holders.setdefault(offer.recipe_id, []).append(peer)
            for recipe_id in sorted(holders, key=lambda known: (-len(holders[known]), known)):
                for giver in holders[recipe_id]:
                    chosen = await self._get(giver, recipe_id)
                    if chosen is not None:
                        return chosen
            await trio.lowlevel.checkpoint()

    async def _get(self, giver: PeerId, recipe_id: RecipeId) -> ChosenRecipe | None:
        offer = self._offers.get(giver)
        if offer is None or offer.recipe_id != recipe_id:
            return None
        data = offer.recipe or await self._fetch(giver, offer)
        if data is None or self._blame.banned(giver):
            self.withdrawn(giver)
            return None
        try:
            return ChosenRecipe(self._checked(data, offer), recipe_id, giver)
        except RemoteProtocolError as error:
            self._blame.blame(giver, "recipe", f"the recipe of {self._digest}: {error}", ban=True)
            self._sources.wrong(giver, f"sent a wrong recipe ({error})")
            self._asking.drop(giver, "it sent a wrong recipe")
            return None

    async def _fetch(self, giver: PeerId, offer: BlobHeld) -> bytes | None:
        self._page_giver, self._data = giver, None
        try:
            self._page = trio.Event()
            self._asking.command(giver, FetchRecipe(self._digest))
            while self._offers.get(giver) is offer:
                with trio.move_on_after(self._config.answer_timeout_s) as waiting:
                    await self._page.wait()
                if self._data is not None:
                    return self._data
                if waiting.cancelled_caught:
                    self._sources.answered(giver, "gave no recipe")
                    self.withdrawn(giver)
                self._page = trio.Event()
            return None
        finally:
            self._page_giver = None

    def _checked(self, data: bytes, offer: BlobHeld) -> Recipe:
        recipe = Recipe.from_bytes(data)
        if recipe.id() != offer.recipe_id:
            raise RemoteProtocolError("it is not the one that was offered")
        if recipe.digest != self._digest or len(recipe) != offer.bits.count:
            raise RemoteProtocolError("it is that of another blob")
        if recipe.size_bytes != self._size_bytes:
            raise RemoteProtocolError(f"it makes {recipe.size_bytes} bytes of {self._size_bytes}")
        return recipe

    async def _wait(self) -> None:
        self._changed = trio.Event()
        await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._page.set()
