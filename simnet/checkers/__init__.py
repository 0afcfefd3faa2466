"""Invariants, one file each: what must hold in every world, whatever goes wrong in it."""

from simnet.checkers.acknowledged import AcknowledgedKept
from simnet.checkers.arrival import WantedArrives
from simnet.checkers.catalogs import CatalogsConverge
from simnet.checkers.checker import Checker
from simnet.checkers.collection import ReferencedKept
from simnet.checkers.control_traffic import ControlTrafficBounded
from simnet.checkers.leaks import NothingLeaks
from simnet.checkers.members import MembersAgree
from simnet.checkers.wrong_bytes import WrongBytes


def all_checkers() -> list[Checker]:
    """One of each, for one run. The last one lets time go by at its end."""
    return [
        WrongBytes(),
        ReferencedKept(),
        AcknowledgedKept(),
        MembersAgree(),
        CatalogsConverge(),
        WantedArrives(),
        ControlTrafficBounded(),
        NothingLeaks(),
    ]
