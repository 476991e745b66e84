"""Losses against torch.distributions, learning, determinism and FedProx."""

import dataclasses
import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon

from pluralllm_fl.config import RunConfig, default_run_config
from pluralllm_fl.episodes import QuestionBatch
from pluralllm_fl.predictor import Prediction, PredictorConfig, PreferencePredictor
from pluralllm_fl.training import learning_rate_at, prediction_loss, train_group
from tests.tiny import DIMENSION, tiny_table

pytestmark = pytest.mark.fast

CONFIG = dataclasses.replace(
    RunConfig.from_run_config(default_run_config()), width=32, layers=2, feed_forward=48,
    prototypes=2, coverage_features=64, context_max=10, target_min=5, target_max=15,
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
    cross, divergence, distance = 0.0, 0.0, 0.0
    for i in range(12):
        p_i, q_i = log_p[batch.question == i].exp(), q[batch.question == i]
        middle = (p_i + q_i) / 2
        cross += float(-(q_i * p_i.log()).sum())
        divergence += float((p_i * (p_i / middle).log() + q_i * (q_i / middle).log()).sum() / 2)
        distance += jensenshannon(p_i.numpy(), q_i.numpy())
    normal = torch.distributions.Normal(log_p.exp(), prediction.log_std.exp())
    expected = {
        "cross-entropy": cross / 12,
        "jensen-shannon": divergence / 12,
        "alignment": distance / 12,
        "normal-nll": float(-normal.log_prob(q).mean()),
    }
    for name, value in expected.items():
        assert prediction_loss(prediction, batch, name).item() == pytest.approx(value, abs=2e-5)


@pytest.mark.parametrize("loss", ["cross-entropy", "jensen-shannon", "alignment", "normal-nll"])
def test_training_the_published_network_lowers_the_loss(loss: str) -> None:
    config = dataclasses.replace(CONFIG, architecture="published", loss=loss)
    predictor, table = build(config), tiny_table()
    rounds = [
        train_group(predictor, table, config, learning_rate=3e-3, local_steps=30, seed=seed).loss
        for seed in range(6)
    ]
    assert rounds[-1] < rounds[0] - 0.02


def test_our_network_learns_to_mix_what_others_remember() -> None:
    """One group like ours and a stranger: trusting the one that agrees with the context pays."""
    config = dataclasses.replace(CONFIG, prototypes=3, context_min=5)
    predictor, own, stranger = build(config), tiny_table(), tiny_table(seed=5)
    for index, table in enumerate((own, stranger)):
        train_group(
            predictor, table, config, learning_rate=0.01, local_steps=1, seed=0,
            prototype=index,
        )  # fmt: skip
    remembered = predictor.state_dict()["network.memory"].clone()
    predictor.network.mixing.data.fill_(-3.0)  # believe nobody
    losses = []
    for seed in range(4):
        result = train_group(
            predictor, own, config, learning_rate=0.05, local_steps=40, seed=seed,
            prototype=2,
        )  # fmt: skip
        losses.append(result.loss)
    assert losses[-1] < losses[0] - 0.05
    assert torch.equal(predictor.state_dict()["network.memory"][:2], remembered[:2])


def test_same_seed_same_bits() -> None:
    table = tiny_table()
    states = []
    for _ in range(2):
        predictor = build()
        for prototype in (1, 0):
            train_group(
                predictor, table, CONFIG, learning_rate=1e-3, local_steps=5, seed=4,
                prototype=prototype,
            )  # fmt: skip
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
        train_group(predictor, copy, CONFIG, learning_rate=1e-3, local_steps=8, seed=0)
        results.append(predictor.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(r.values() for r in results), strict=True))


def test_proximal_term_keeps_the_model_near_the_global_one() -> None:
    distances = []
    config = dataclasses.replace(CONFIG, architecture="published", loss="cross-entropy")
    for mu in (0.0, 10.0):
        predictor = build(config)
        start = [p.detach().clone() for p in predictor.parameters()]
        train_group(
            predictor, tiny_table(), config,
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
