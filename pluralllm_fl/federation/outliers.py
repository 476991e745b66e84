"""Which updates lie far outside the round's own norms, array by array.

One optimiser with one learning rate makes updates of much the same length at every honest node. An
update ten times as long is an error or an attack. A part of a few numbers (the covariance of the
default model has five) would vanish in the norm of the whole, so every array is judged for itself.
"""

import math
from collections.abc import Mapping
from statistics import median

# L2 norm of an update by name of the array.
Norms = Mapping[str, float]

# With two updates nobody can say which one is odd.
FEWEST = 3


def far_from_others(
    norms: Mapping[str, Norms], sizes: Mapping[str, int], ratio: float
) -> dict[str, str]:
    """Find updates that are too long in an array or as a whole.

    Parameters
    ----------
    norms : mapping of str to Norms
        Of every group's update.
    sizes : mapping of str to int
        Number of values of every array.
    ratio : float
        Longest allowed multiple of the groups' median norm. An array that most groups hardly
        moved is measured by the typical move of a single value anywhere in the model instead.

    Returns
    -------
    dict of str to str
        A reason by group; empty with fewer than `FEWEST` updates.
    """
    if len(norms) < FEWEST:
        return {}
    whole = {group: _length(parts) for group, parts in norms.items()}
    usual = median(whole.values())
    typical = usual / math.sqrt(max(sum(sizes.values()), 1))
    limits = {
        name: ratio
        * max(median(parts[name] for parts in norms.values()), typical * math.sqrt(size))
        for name, size in sizes.items()
    }
    found = {}
    for group, parts in norms.items():
        if whole[group] > ratio * usual:
            found[group] = _reason("", whole[group], ratio * usual, ratio)
        elif long := [name for name, limit in limits.items() if parts[name] > limit]:
            found[group] = _reason(f" of {long[0]}", parts[long[0]], limits[long[0]], ratio)
    return found


def _length(parts: Norms) -> float:
    return math.hypot(*parts.values())


def _reason(part: str, norm: float, limit: float, ratio: float) -> str:
    return (
        f"update norm{part} {norm:.3g} exceeds {limit:.3g}, max-update-ratio = {ratio:g} times "
        "what is usual in this round"
    )
