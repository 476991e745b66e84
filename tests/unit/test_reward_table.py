"""What the rewards optimise: exact gradients by enumeration, and policies that are tables."""

import dataclasses
from collections.abc import Iterable
from itertools import product
from typing import cast

import numpy as np
import pytest

from pluralllm_fl.alignment.best_of_n import pick_distribution
from pluralllm_fl.arrays import FloatArray
from pluralllm_fl.evaluation.baselines import federated
from pluralllm_fl.evaluation.scores import context_and_targets, predict_targets
from pluralllm_fl.inference import ConditionedGroup
from pluralllm_fl.metrics import alignment
from pluralllm_fl.preferences import Question
from pluralllm_fl.reward import Mode, PluralisticReward
from tests.survey import CONFIG, UNSEEN, survey

TABLE = {
    "Tea?": np.array([0.55, 0.3, 0.15]),
    "Rain?": np.array([0.7, 0.3]),
    "Music?": np.array([0.4, 0.3, 0.15, 0.1, 0.05]),
}


class Known:
    """A group whose distributions stand in a table."""

    answers = 1

    def __init__(self, table: dict[str, FloatArray]) -> None:
        self.table = table

    def predict_log_proba(self, questions: list[Question]) -> list[FloatArray]:
        return [np.log(self.table[question.text.split("#")[0]]) for question in questions]


Table = dict[str, FloatArray]


def rewards(
    mode: Mode, prompts: list[str], completions: list[str], sizes: list[int], table: Table = TABLE
) -> FloatArray:
    group = cast(ConditionedGroup, Known(table))
    options = [[f"option {i}" for i in range(size)] for size in sizes]
    found = PluralisticReward({"A": group}, mode)(
        prompts, completions, group=["A"] * len(prompts), options=options
    )
    return np.array(found, dtype=np.float64)


def expected_gradient(policy: FloatArray, n: int, *, baseline: bool) -> FloatArray:
    """Mean of Σ (r - baseline) ∇ log policy(o) over every outcome of n completions."""
    size = len(policy)
    outcomes = list(product(range(size), repeat=n))
    prompts = [f"Tea?#{i}" for i in range(len(outcomes)) for _ in range(n)]
    said = [f"option {o}" for outcome in outcomes for o in outcome]
    r = rewards("deficit", prompts, said, [size] * len(prompts)).reshape(-1, n)
    if baseline:
        r = r - r.mean(axis=1, keepdims=True)
    taken = np.array(outcomes)
    score = np.eye(size)[taken] - policy  # ∇ log policy(o) by the logits
    chance = policy[taken].prod(axis=1)
    return np.einsum("e,en,enk->k", chance, r, score)


def test_the_deficit_is_an_unbiased_gradient_of_the_brier_score() -> None:
    target, policy, n = TABLE["Tea?"], np.array([0.2, 0.5, 0.3]), 3
    found = expected_gradient(policy, n, baseline=False)
    jacobian = np.diag(policy) - np.outer(policy, policy)
    np.testing.assert_allclose(found, n * jacobian @ (target - policy), atol=1e-12)
    assert abs(expected_gradient(target, n, baseline=False)).max() < 1e-12


def test_a_mean_baseline_moves_the_optimum_as_documented() -> None:
    target, n = TABLE["Tea?"], 4
    moved = target + (target - 1 / 3) / (n - 2)
    assert abs(expected_gradient(moved, n, baseline=True)).max() < 1e-12
    assert abs(expected_gradient(target, n, baseline=True)).max() > 0.01


def train(
    mode: Mode, *, exponent: bool = False, entropy: float = 0.0, steps: int = 400, n: int = 32,
    table: Table = TABLE,
) -> list[FloatArray]:  # fmt: skip
    """Policy gradient on a table of logits: one row a prompt, n completions a step."""
    rng = np.random.default_rng(0)
    logits = [np.zeros(len(p)) for p in table.values()]
    for step in range(steps):
        policies = [np.exp(x) / np.exp(x).sum() for x in logits]
        taken = [rng.choice(len(p), n, p=p) for p in policies]
        r = rewards(
            mode,
            [text for text in table for _ in range(n)],
            [f"option {o}" for row in taken for o in row],
            [len(p) for p in policies for _ in range(n)],
            table,
        ).reshape(len(table), n)
        if mode == "likelihood":
            r = np.exp(r) if exponent else r
            own = [np.log(p)[o] for p, o in zip(policies, taken, strict=True)]
            r = r - entropy * np.array(own)
            r = r - r.mean(axis=1, keepdims=True)
        rate = 2.0 * (1 - step / steps) if mode == "deficit" or entropy else 2.0
        for row, p in enumerate(policies):
            score = np.eye(len(p))[taken[row]] - p
            logits[row] += rate * r[row] @ score / n
    return [np.exp(x) / np.exp(x).sum() for x in logits]


def mean_alignment(policies: Iterable[FloatArray], table: Table = TABLE) -> float:
    number = np.repeat(np.arange(len(table)), [len(p) for p in table.values()])
    target = np.concatenate(list(table.values()))
    return float(alignment(np.concatenate(list(policies)), target, number).mean())


def test_the_deficit_reaches_the_distribution() -> None:
    """The distribution itself has alignment 1; the start, uniform, about 0.8."""
    assert mean_alignment([np.full(len(p), 1 / len(p)) for p in TABLE.values()]) < 0.85
    assert mean_alignment(train("deficit")) >= 0.98


@pytest.mark.parametrize("exponent", [True, False], ids=["p", "log p"])
def test_plain_likelihood_collapses_on_the_most_popular_answer(exponent: bool) -> None:
    policies = train("likelihood", exponent=exponent)
    assert min(p[0] for p in policies) > 0.9
    assert mean_alignment(policies) < 0.65


def test_likelihood_with_an_entropy_bonus_of_one_reaches_the_distribution() -> None:
    """At the optimum every reward is 0: log p and the entropy cancel."""
    assert mean_alignment(train("likelihood", entropy=1.0)) >= 0.98


@pytest.fixture(scope="module")
def predicted_and_true() -> tuple[Table, Table]:
    """What a trained predictor says of an unseen group's other answers, and these answers."""
    workspace = survey()
    table = workspace.table(UNSEEN[0])
    config = dataclasses.replace(CONFIG, num_server_rounds=10, local_steps=10)
    predictor = federated(workspace, config, lambda *_: None)
    found = predict_targets(predictor, table, *context_and_targets(table, "train", 8, 0))
    ends = np.cumsum(np.bincount(found.question))[:-1]
    texts = [table.questions[i].text for i in found.index]
    predicted, true = (
        dict(zip(texts, np.split(values, ends), strict=True))
        for values in (found.predicted, found.true)
    )
    return predicted, true


def agreement(policies: Iterable[FloatArray], true: Table) -> float:
    """Share of the group that gives the policy's answer, mean over questions."""
    return float(np.mean([p @ q for p, q in zip(policies, true.values(), strict=True)]))


@pytest.mark.parametrize("reward", ["deficit", "log p + entropy"])
def test_distribution_rewards_reach_the_predictors_own_alignment(
    reward: str, predicted_and_true: tuple[Table, Table]
) -> None:
    predicted, true = predicted_and_true
    own = mean_alignment(predicted.values(), true)
    assert mean_alignment([np.full(len(p), 1 / len(p)) for p in true.values()], true) < own - 0.02
    if reward == "deficit":
        policies = train("deficit", table=predicted, steps=120)
    else:
        policies = train("likelihood", entropy=1.0, table=predicted, steps=120)
    assert mean_alignment(policies, predicted) >= 0.95
    assert mean_alignment(policies, true) >= 0.98 * own


def test_agreement_collapses_on_the_mode_and_serves_more_of_the_group(
    predicted_and_true: tuple[Table, Table],
) -> None:
    """Best of 64 of a uniform policy: one answer for the group, far from its distribution."""
    predicted, true = predicted_and_true
    own = mean_alignment(predicted.values(), true)
    picks = [pick_distribution(np.full(len(p), 1.0), p, 64) for p in predicted.values()]
    for pick, p in zip(picks, predicted.values(), strict=True):
        assert pick[p.argmax()] > 0.99
    assert mean_alignment(picks, true) < 0.9 * own
    assert agreement(picks, true) > agreement(predicted.values(), true) + 0.02
