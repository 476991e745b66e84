"""Rewards of many groups -> one reward a completion.

>>> rewards = {"Spain": [0.9, 0.2, None], "Chile": [0.3, 0.2, None]}
>>> mean(rewards)
[0.6, 0.2, None]
>>> minimum(rewards)
[0.3, 0.2, None]

A group's None (it has no answers, or the completion is no answer) is left out; where every group
says None, the aggregate is None. Rewards of different groups are compared as they are: give all of
them in one unit, such as probabilities.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pluralllm_fl.arrays import FloatArray
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.metrics import fairness

Rewards = Mapping[str, Sequence[float | None]]  # group -> one reward a completion
# The rewards of one completion, (groups,), and the groups that gave them -> one reward.
Combine = Callable[[FloatArray, Sequence[str]], float]


def mean(rewards: Rewards) -> list[float | None]:
    """Average: every group counts the same, however badly it is served."""
    return _each(rewards, lambda values, _: float(values.mean()))


def minimum(rewards: Rewards) -> list[float | None]:
    """Take the worst group's reward."""
    return _each(rewards, lambda values, _: float(values.min()))


def maximum(rewards: Rewards) -> list[float | None]:
    """Take the best group's reward."""
    return _each(rewards, lambda values, _: float(values.max()))


def log_mean(rewards: Rewards) -> list[float | None]:
    """Average the logarithms (Nash welfare): a group near 0 outweighs many that are well off.

    Raises
    ------
    ConfigError
        For a reward that is not above 0: give probabilities, not their logarithms.
    """

    def combine(values: FloatArray, groups: Sequence[str]) -> float:
        low = int(values.argmin())
        if values[low] <= 0:
            raise ConfigError(
                f"The log-mean needs rewards above 0; {groups[low]} gives {values[low]:g}."
            )
        return float(np.log(values).mean())

    return _each(rewards, combine)


def log_mean_exp(rewards: Rewards, alpha: float = 1.0) -> list[float | None]:
    """Return ``log(mean(exp(alpha r))) / alpha``.

    It is near the mean for an `alpha` near 0, the maximum for a large one, the minimum for a large
    negative one.
    """
    if not alpha or not np.isfinite(alpha):
        raise ConfigError(f"alpha must be finite and not 0, not {alpha}: 0 would be the mean.")

    def combine(values: FloatArray, _: Sequence[str]) -> float:
        return float((np.logaddexp.reduce(alpha * values) - np.log(len(values))) / alpha)

    return _each(rewards, combine)


@dataclass
class History:
    """How well each group was served so far: a running mean h of its rewards, by group.

    Parameters
    ----------
    memory : float in [0, 1)
        Share of the old h that each batch leaves: ``h = memory h + (1 - memory) batch mean``. A
        group starts with the mean of its first batch.
    """

    memory: float = 0.9
    history: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.memory < 1:
            raise ConfigError(f"memory must be from 0 to below 1, not {self.memory}.")

    def remember(self, rewards: Rewards) -> None:
        """Take a batch into the history."""
        for group, given in rewards.items():
            if values := [value for value in given if value is not None]:
                new = float(np.mean(values))
                old = self.history.get(group, new)
                self.history[group] = self.memory * old + (1 - self.memory) * new


@dataclass
class HistoryWeights(History):
    """Adaptive, by weights: ``Σ w r`` with ``w = softmax((1 - h) / temperature)``.

    Groups that were served badly weigh more (arXiv 2512.08786). The weights of a batch come from
    the batches before it, over the groups that give a reward; a group without a history counts as
    the mean of the others, so that the first batch gets the plain mean. Give rewards in 0..1.
    """

    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be above 0, not {self.temperature}.")

    def __call__(self, rewards: Rewards) -> list[float | None]:
        """Aggregate a batch, then take it into the history."""
        usual = float(np.mean(list(self.history.values()))) if self.history else 0.0

        def combine(values: FloatArray, groups: Sequence[str]) -> float:
            h = np.array([self.history.get(group, usual) for group in groups])
            weights = np.exp((h.min() - h) / self.temperature)
            return float(weights @ values / weights.sum())

        found = _each(rewards, combine)
        self.remember(rewards)
        return found


@dataclass
class FairnessSwitch(History):
    """Adaptive, by a switch: the mean while the groups are served evenly, else `log_mean_exp`.

    Evenly: the fairness index ``1 / (1 + CoV)`` of the histories is at least `threshold`
    (arXiv 2604.04261). A positive `alpha` leans towards the best served group of a completion, a
    negative one towards the worst.
    """

    threshold: float = 0.9
    alpha: float = 1.0

    def __call__(self, rewards: Rewards) -> list[float | None]:
        """Aggregate a batch, then take it into the history."""
        even = len(self.history) < 2 or self.fairness_index >= self.threshold
        found = mean(rewards) if even else log_mean_exp(rewards, self.alpha)
        self.remember(rewards)
        return found

    @property
    def fairness_index(self) -> float:
        """1 / (1 + CoV) of the histories, which need a mean above 0."""
        held = list(self.history.values())
        if np.mean(held) <= 0:
            raise ConfigError(
                f"Fairness needs rewards above 0; the histories have the mean {np.mean(held):g}. "
                "Give probabilities, not their logarithms."
            )
        return fairness(held)["fairness_index_cov"]


def _each(rewards: Rewards, combine: Combine) -> list[float | None]:
    """Combine the rewards that each completion got."""
    if len(lengths := {len(given) for given in rewards.values()}) != 1:
        raise ConfigError(
            f"Every group must reward every completion: lengths are {sorted(lengths)}."
        )
    for group, given in rewards.items():
        if wrong := [value for value in given if value is not None and not np.isfinite(value)]:
            raise ConfigError(f"{group} gives the reward {wrong[0]}. Leave it out with None.")
    found: list[float | None] = []
    for column in zip(*rewards.values(), strict=True):
        held = {group: x for group, x in zip(rewards, column, strict=True) if x is not None}
        found.append(combine(np.array([*held.values()]), [*held]) if held else None)
    return found
