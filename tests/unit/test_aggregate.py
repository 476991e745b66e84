"""Rewards of many groups into one, each by a case worked out by hand."""

import math

import pytest

from pluralllm_fl.alignment.aggregate import (
    FairnessSwitch,
    HistoryWeights,
    log_mean,
    log_mean_exp,
    maximum,
    mean,
    minimum,
)
from pluralllm_fl.errors import ConfigError

REWARDS = {"A": [0.8, 0.2, None, None], "B": [0.2, 0.05, 0.4, None], "C": [0.5, None, None, None]}


def approx(values: list[float | None]) -> list[object]:
    return [None if value is None else pytest.approx(value) for value in values]


def test_the_plain_ones() -> None:
    assert mean(REWARDS) == approx([0.5, 0.125, 0.4, None])
    assert minimum(REWARDS) == approx([0.2, 0.05, 0.4, None])
    assert maximum(REWARDS) == approx([0.8, 0.2, 0.4, None])


def test_the_log_mean_is_the_logarithm_of_the_geometric_mean() -> None:
    """0.8 x 0.2 x 0.5 = 0.08; 0.2 x 0.05 = 0.1²."""
    found = log_mean(REWARDS)
    assert found == approx([math.log(0.08) / 3, math.log(0.1), math.log(0.4), None])
    with pytest.raises(ConfigError, match="above 0; B gives -1"):
        log_mean({"A": [0.5], "B": [-1.0]})


def test_log_mean_exp() -> None:
    """Of 0 and log 3: log((1 + 3) / 2) = log 2; with alpha -1: -log((1 + 1/3) / 2) = log 1.5."""
    rewards = {"A": [0.0, None], "B": [math.log(3), None]}
    assert log_mean_exp(rewards) == approx([math.log(2), None])
    assert log_mean_exp(rewards, -1.0) == approx([math.log(1.5), None])
    assert log_mean_exp({"A": [-900.0], "B": [900.0]}) == approx([900 - math.log(2)])
    assert log_mean_exp(rewards, 1e-6) == approx([math.log(3) / 2, None])
    with pytest.raises(ConfigError, match="0 would be the mean"):
        log_mean_exp(rewards, 0.0)


def test_history_weights() -> None:
    """h = 0.8 and 0.3, temperature 0.5 / log 3: B weighs 3 times as much as A."""
    aggregate = HistoryWeights(memory=0.5, temperature=0.5 / math.log(3))
    assert aggregate({"A": [0.6, 1.0], "B": [0.2, 0.4]}) == approx([0.4, 0.7])  # nothing known
    assert aggregate.history == {"A": pytest.approx(0.8), "B": pytest.approx(0.3)}
    assert aggregate({"A": [0.4, None], "B": [0.8, 0.8]}) == approx([0.7, 0.8])
    assert aggregate.history == {"A": pytest.approx(0.6), "B": pytest.approx(0.55)}


def test_a_group_without_a_history_counts_as_the_mean_of_the_others() -> None:
    """h = 0, 1 and 0.5 for C: weights 9, 1 and 3 of 13."""
    aggregate = HistoryWeights(temperature=0.5 / math.log(3), history={"A": 0.0, "B": 1.0})
    found = aggregate({"A": [0.13], "B": [1.3], "C": [0.26]})
    assert found == approx([(9 * 0.13 + 1.3 + 3 * 0.26) / 13])
    assert aggregate.history["C"] == pytest.approx(0.26)


def test_the_switch() -> None:
    """h = 0.9 and 0.3: mean 0.6, standard deviation 0.3, CoV 0.5, index 1 / 1.5."""
    rewards: dict[str, list[float | None]] = {"A": [0.0], "B": [math.log(3)]}
    uneven = {"A": 0.9, "B": 0.3}
    switched = FairnessSwitch(threshold=0.67, history=dict(uneven))
    assert switched.fairness_index == pytest.approx(2 / 3)
    assert switched(rewards) == approx([math.log(2)])
    assert FairnessSwitch(threshold=0.66, history=dict(uneven))(rewards) == mean(rewards)
    assert FairnessSwitch(threshold=1.0)(rewards) == mean(rewards)  # nothing known
    worst = FairnessSwitch(threshold=0.67, alpha=-1.0, history=dict(uneven))
    assert worst(rewards) == approx([math.log(1.5)])


def test_what_cannot_be_aggregated() -> None:
    with pytest.raises(ConfigError, match=r"every completion: lengths are \[1, 2\]"):
        mean({"A": [0.1], "B": [0.1, 0.2]})
    with pytest.raises(ConfigError, match="B gives the reward nan"):
        mean({"A": [0.1], "B": [math.nan]})
    with pytest.raises(ConfigError, match="every completion"):
        mean({})
    with pytest.raises(ConfigError, match="Fairness needs rewards above 0"):
        FairnessSwitch(history={"A": -1.0, "B": -2.0})(REWARDS)
    for wrong in ({"memory": 1.0}, {"temperature": 0.0}):
        with pytest.raises(ConfigError, match="must be"):
            HistoryWeights(**wrong)
