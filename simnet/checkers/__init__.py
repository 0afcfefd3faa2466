"""Invariants, one file each: what must hold in every world, whatever goes wrong in it."""

from simnet.checkers.checker import Checker
from simnet.checkers.wrong_bytes import WrongBytes


def all_checkers() -> list[Checker]:
    """One of each, for one run."""
    return [WrongBytes()]
