"""Local training: learning, determinism, what is read, FedProx and the schedule."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from pluralllm_fl.config import RunConfig
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.predictor.episodes import GroupTable
from pluralllm_fl.predictor.model import PredictorConfig, PreferencePredictor
from pluralllm_fl.predictor.training import TrainingResult, learning_rate_at, train_group
from tests.tiny import DIMENSION, tiny_table

CONFIG = dataclasses.replace(
    RunConfig.default(), width=32, layers=2, feed_forward=48,
    embedding_template="{question} {option}", question_features=64, factors=3, batch_questions=16,
    context_max=10, target_min=5, target_max=15,
)  # fmt: skip
PUBLISHED = dataclasses.replace(CONFIG, architecture="published")
both = pytest.mark.parametrize("config", [CONFIG, PUBLISHED], ids=["transformer", "published"])


def build(config: RunConfig = CONFIG) -> PreferencePredictor:
    torch.manual_seed(0)
    return PreferencePredictor(PredictorConfig.from_run_config(config, DIMENSION))


def train(
    predictor: PreferencePredictor, config: RunConfig = CONFIG, table: GroupTable | None = None,
    **changes: float,
) -> TrainingResult:  # fmt: skip
    given = {"server_round": 3, "learning_rate": 1e-3, "local_steps": 5, "seed": 4} | changes
    return train_group(predictor, table or tiny_table(), config, **given)  # type: ignore[arg-type]


def same(one: PreferencePredictor, other: PreferencePredictor) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("config", "loss"),
    [
        (CONFIG, "cross-entropy"),
        (CONFIG, "alignment"),
        (PUBLISHED, "cross-entropy"),
        (PUBLISHED, "alignment"),
        (PUBLISHED, "normal-nll"),
    ],
    ids=lambda value: getattr(value, "architecture", value),
)
def test_training_lowers_the_loss(config: RunConfig, loss: str) -> None:
    config = dataclasses.replace(config, loss=loss)
    predictor = build(config)
    rounds = [
        train(predictor, config, learning_rate=3e-3, local_steps=20, seed=seed).loss
        for seed in range(6)
    ]
    assert rounds[-1] < rounds[0] - 0.02


def test_the_reported_loss_is_the_predictions_in_every_round() -> None:
    """A round with more terms to minimise must not look like one that diverged."""
    config = dataclasses.replace(CONFIG, dropout=0.0, batch_questions=1000)
    first = train(build(config), config, server_round=1, learning_rate=0.0).loss
    second = train(build(config), config, server_round=2, learning_rate=0.0).loss
    assert second == pytest.approx(first, rel=1e-6)


@both
def test_same_seed_same_bits_whatever_was_drawn_before(config: RunConfig) -> None:
    """And what is drawn afterwards does not depend on the training."""
    predictors, after = [build(config), build(config)], []
    for state, predictor in enumerate(predictors):
        torch.manual_seed(state)
        expected = torch.random.get_rng_state()
        train(predictor, config)
        after.append(torch.equal(torch.random.get_rng_state(), expected))
    assert same(*predictors)
    assert all(after)
    other = build(config)
    train(other, config, seed=5)
    assert not same(other, predictors[0])


def test_dropout_is_seeded_and_off_in_a_trained_predictor() -> None:
    none, some = (dataclasses.replace(CONFIG, dropout=p) for p in (0.0, 0.5))
    trained = []
    for config in (none, some):
        predictor = build(config)
        train(predictor, config)
        trained.append(predictor.eval())
    assert not same(*trained)
    targets = tiny_table().batch(range(10))
    assert torch.equal(trained[1].predict(None, targets), trained[1].predict(None, targets))


def test_the_first_round_leaves_factors_and_covariance_alone() -> None:
    first, later, start = build(), build(), build()
    config = dataclasses.replace(CONFIG, weight_decay=0.0)
    train(first, config, server_round=1)
    train(later, config, server_round=2)
    for name in ("factors.head.weight", "covariance"):
        at_first, at_last, before = (
            p.network.get_parameter(name).detach() for p in (first, later, start)
        )
        assert torch.equal(at_first, before)
        assert not torch.equal(at_last, before)


@both
def test_training_never_reads_validation_or_test_answers(config: RunConfig) -> None:
    table = tiny_table()
    spoiled = table.distribution.copy()
    held_out = np.isin(table.split, ["validation", "test"])
    assert held_out.any()
    spoiled[np.repeat(held_out, table.size)] = np.nan
    predictors = [build(config), build(config)]
    for predictor, distribution in zip(predictors, (table.distribution, spoiled), strict=True):
        train(predictor, config, dataclasses.replace(table, distribution=distribution))
    assert same(*predictors)


def group_of(questions: int, name: str) -> GroupTable:
    """Return a group with so many training questions and nothing else."""
    table = dataclasses.replace(tiny_table(questions), group=name)
    return dataclasses.replace(table, split=np.full(questions, "train"))


@pytest.mark.parametrize(
    ("config", "questions"),
    [(CONFIG, 1), (CONFIG, 2), (CONFIG, 3), (PUBLISHED, 1), (PUBLISHED, 2)],
)
def test_a_group_with_hardly_any_question_trains(config: RunConfig, questions: int) -> None:
    """Whichever of its questions the Gaussian process is tried on: groups fold differently."""
    for name in map(str, range(12)):
        predictor, start = build(config), build(config)
        result = train(predictor, config, group_of(questions, name), local_steps=2)
        assert result.questions == questions
        assert math.isfinite(result.loss)
        assert all(bool(p.isfinite().all()) for p in predictor.parameters())
        assert not same(predictor, start)


def test_a_group_without_training_questions_is_told_what_to_do() -> None:
    table = dataclasses.replace(group_of(5, "Northland"), split=np.full(5, "test"))
    with pytest.raises(ConfigError, match="'Northland' has no training questions: lower"):
        train(build(), table=table)


@both
def test_the_proximal_term_keeps_the_model_near_the_global_one(config: RunConfig) -> None:
    distances = []
    for mu in (0.0, 10.0):
        predictor = build(config)
        start = [p.detach().clone() for p in predictor.parameters()]
        train(predictor, config, local_steps=20, proximal_mu=mu)
        moved = zip(predictor.parameters(), start, strict=True)
        distances.append(math.sqrt(sum(float((p - s).detach().square().sum()) for p, s in moved)))
    assert distances[1] < 0.6 * distances[0]


def test_learning_rate_schedule() -> None:
    config = dataclasses.replace(CONFIG, num_server_rounds=10, learning_rate=1.0)
    rates = [learning_rate_at(config, r) for r in range(1, 11)]
    assert rates[0] == 0.5
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[5] == pytest.approx(0.5)  # half of the way down the cosine
    assert 0 < rates[-1] < 0.03
    constant = dataclasses.replace(config, learning_rate_schedule="constant")
    assert {learning_rate_at(constant, r) for r in range(1, 11)} == {1.0}


def test_contexts_may_be_empty() -> None:
    config = dataclasses.replace(CONFIG, context_min=0, context_max=0)
    predictor = build(config)
    assert math.isfinite(train(predictor, config, server_round=2).loss)
