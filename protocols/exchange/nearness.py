"""How near two members are by what their labels say: the names of places, from the smallest to the largest."""

from collections.abc import Mapping, Sequence


def nearness(mine: Mapping[str, str], theirs: Mapping[str, str], near_labels: Sequence[str]) -> int:
    """0 when both name the same smallest place, one more for each larger one, `len(near_labels)` for elsewhere.

    Places of one name in larger places of different names are not the same: zone `a` of two regions is two zones.
    A member that does not name a larger place is taken at its word for the smaller one.
    """
    rank = len(near_labels)
    for place in range(len(near_labels) - 1, -1, -1):
        own, other = mine.get(near_labels[place]), theirs.get(near_labels[place])
        if own and other:
            if own != other:
                break
            rank = place
    return rank
