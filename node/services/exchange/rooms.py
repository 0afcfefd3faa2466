"""What every transfer of a node works with."""

from random import Random

import attrs

from node.blame import BlameLedger
from node.ports import Blobs
from node.services.exchange.asking import AskingSide
from node.services.exchange.giving import GivingSide
from node.services.exchange.reports import TransferCounters
from protocols.exchange.acquaintances import Acquaintances
from protocols.exchange.config import ExchangeConfig
from protocols.ids import PeerId


@attrs.frozen
class Rooms:
    """What a transfer works with."""

    asking: AskingSide
    giving: GivingSide
    blobs: Blobs
    blame: BlameLedger
    known: Acquaintances
    config: ExchangeConfig
    me: PeerId
    rng: Random
    counters: TransferCounters = attrs.field(factory=TransferCounters)
