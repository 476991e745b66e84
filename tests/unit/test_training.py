"""Losses against torch.distributions, learning, determinism and FedProx."""

import dataclasses
import math

import pytest
import torch

from pluralllm_fl.config import RunConfig, default_run_config
from pluralllm_fl.episodes import QuestionBatch
from pluralllm_fl.predictor import Prediction, PredictorConfig, PreferencePredictor
from pluralllm_fl.training import learning_rate_at, prediction_loss, train_group
from tests.tiny import DIMENSION, tiny_table

pytestmark = pytest.mark.fast

CONFIG = dataclasses.replace(
    RunConfig.from_run_config(default_run_config()), width=32, feed_forward=48, latent=4,
    context_max=10, target_min=5, target_max=15,
)  # fmt: skip


def build(config: RunConfig = CONFIG) -> PreferencePredictor:
    torch.manual_seed(0)
    return PreferencePredictor(PredictorConfig.from_run_config(config, DIMENSION))


def random_prediction(batch: QuestionBatch) -> Prediction:
    logits = batch.pad(torch.randn(len(batch.question)))
    log_p = logits.masked_fill(~batch.mask, -torch.inf).log_softmax(1)
    return Prediction(batch.flatten(log_p), torch.randn(len(batch.question)))


def test_losses_equal_direct_computations() -> None:
    batch = tiny_table().batch(range(12))
    prediction = random_prediction(batch)
    q, log_p = batch.distribution, prediction.log_probability
    assert q is not None
    assert prediction.log_std is not None
    cross, divergence = 0.0, 0.0
    for i in range(12):
        p_i, q_i = log_p[batch.question == i].exp(), q[batch.question == i]
        middle = (p_i + q_i) / 2
        cross += float(-(q_i * p_i.log()).sum())
        divergence += float((p_i * (p_i / middle).log() + q_i * (q_i / middle).log()).sum() / 2)
    normal = torch.distributions.Normal(log_p.exp(), prediction.log_std.exp())
    expected = {
        "cross-entropy": cross / 12,
        "jensen-shannon": divergence / 12,
        "normal-nll": float(-normal.log_prob(q).mean()),
    }
    for name, value in expected.items():
        assert prediction_loss(prediction, batch, name).item() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    ("architecture", "loss"),
    [
        ("pluralistic", "cross-entropy"),
        ("pluralistic", "jensen-shannon"),
        ("published", "cross-entropy"),
        ("published", "normal-nll"),
    ],
)
def test_training_lowers_the_loss(architecture: str, loss: str) -> None:
    config = dataclasses.replace(CONFIG, architecture=architecture, loss=loss)
    predictor, table = build(config), tiny_table()
    rounds = [
        train_group(predictor, table, config, learning_rate=3e-3, local_steps=30, seed=seed).loss
        for seed in range(6)
    ]
    assert rounds[-1] < rounds[0] - 0.05


def test_same_seed_same_bits() -> None:
    table = tiny_table()
    states = []
    for _ in range(2):
        predictor = build()
        train_group(predictor, table, CONFIG, learning_rate=1e-3, local_steps=5, seed=4)
        states.append(predictor.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


def test_training_never_reads_validation_or_test_answers() -> None:
    table = tiny_table()
    spoiled = table.distribution.copy()
    held_out = table.members("validation", "test")
    assert len(held_out)
    starts = table.size.cumsum() - table.size
    for i in held_out:
        spoiled[starts[i] : starts[i] + table.size[i]] = float("nan")
    results = []
    for distribution in (table.distribution, spoiled):
        predictor = build()
        copy = dataclasses.replace(table, distribution=distribution)
        results.append(
            train_group(predictor, copy, CONFIG, learning_rate=1e-3, local_steps=8, seed=0).loss
        )
    assert results[0] == results[1]


def test_proximal_term_keeps_the_model_near_the_global_one() -> None:
    distances = []
    for mu in (0.0, 10.0):
        predictor = build()
        start = [p.detach().clone() for p in predictor.parameters()]
        train_group(
            predictor, tiny_table(), CONFIG,
            learning_rate=1e-3, local_steps=20, seed=0, proximal_mu=mu,
        )  # fmt: skip
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
