"""One reward for everyone: many groups' rewards of a completion, inside one callable.

TRL adds several reward functions up and counts one's None as 0, so groups are aggregated here.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from pluralllm_fl.alignment.aggregate import Rewards

Reward = Callable[..., list[float | None]]  # TRL's signature: (prompts, completions, **columns)
Aggregate = Callable[[Rewards], list[float | None]]


def for_everyone(reward: Reward, groups: Sequence[str], aggregate: Aggregate) -> Reward:
    """Return a reward that asks `reward` for every group, in one call, and aggregates.

    Parameters
    ----------
    reward : callable
        It reads the column ``group``, as `PluralisticReward` does.
    groups : sequence of str
    aggregate : callable
        One of `alignment.aggregate`.
    """
    many = len(groups)

    def reward_for_everyone(
        prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        n = len(prompts)
        columns |= {"group": [group for group in groups for _ in range(n)]}
        repeated = {
            key: value * many if key != "group" and isinstance(value, list) else value
            for key, value in columns.items()
        }
        found = reward(list(prompts) * many, list(completions) * many, **repeated)
        return aggregate({g: found[i * n : (i + 1) * n] for i, g in enumerate(groups)})

    return reward_for_everyone


def as_shares(reward: Reward) -> Reward:
    """Return a reward of p where `reward` gives log p: some aggregates need values above 0."""

    def share(
        prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        found = reward(prompts, completions, **columns)
        return [None if log_p is None else math.exp(log_p) for log_p in found]

    return share
