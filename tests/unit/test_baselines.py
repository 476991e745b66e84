"""Centralised and local training against a naive loop with torch's own optimiser."""

import dataclasses

import numpy as np
import pytest
import torch

from pluralllm_fl.baselines import centralised, federated, local_only
from pluralllm_fl.config import RunConfig
from pluralllm_fl.predictor import PreferencePredictor, initial_predictor
from pluralllm_fl.training import episodes, learning_rate_at, prediction_loss
from pluralllm_fl.workspace import Workspace
from tests.survey import CONFIG, DIMENSION, SEEN, UNSEEN, survey

pytestmark = pytest.mark.fast

PUBLISHED = dataclasses.replace(
    CONFIG, architecture="published", loss="normal-nll", learning_rate=1e-3, gradient_clip=0.0
)


def quiet(server_round: int, predictor: PreferencePredictor) -> None:
    pass


def same(one: PreferencePredictor, other: PreferencePredictor, tolerance: float = 0.0) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.allclose(a, b, rtol=0, atol=tolerance) for a, b in pairs)


@pytest.mark.parametrize("prototypes", [4, 3, 1])
def test_after_one_round_there_is_no_difference_to_the_federation(prototypes: int) -> None:
    """Only the closed-form memory moves in it."""
    config = dataclasses.replace(CONFIG, prototypes=prototypes, num_server_rounds=1)
    workspace = survey(config)
    assert same(centralised(workspace, config, quiet), federated(workspace, config, quiet), 1e-6)


def naive(workspace: Workspace, config: RunConfig) -> PreferencePredictor:
    ours = config.architecture == "pluralistic"
    predictor = initial_predictor(config, DIMENSION, "random")
    if ours:
        once = dataclasses.replace(config, num_server_rounds=1)
        predictor.load_state_dict(federated(workspace, once, quiet).state_dict())
    network = predictor.network
    weights = [network.mixing] if ours else list(network.parameters())
    optimizer = torch.optim.AdamW(weights, weight_decay=config.weight_decay)
    rng = np.random.default_rng(config.seed)
    steps = config.num_server_rounds * config.local_steps
    drawn = [episodes(workspace.table(group), config, rng, steps) for group in SEEN]
    for server_round in range(1 + ours, config.num_server_rounds + 1):
        optimizer.param_groups[0]["lr"] = learning_rate_at(config, server_round)
        for _ in range(config.local_steps):
            losses = []
            for own, stream in enumerate(drawn):
                context, targets = next(stream)
                if ours:
                    with network.without(own):
                        prediction = predictor(context, targets)
                else:
                    prediction = predictor(context, targets)
                losses.append(prediction_loss(prediction, targets, config.loss))
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            if config.gradient_clip:
                torch.nn.utils.clip_grad_norm_(weights, config.gradient_clip)
            optimizer.step()
    return predictor


@pytest.mark.parametrize("config", [CONFIG, PUBLISHED], ids=["pluralistic", "published"])
def test_centralised_training_equals_a_naive_loop(config: RunConfig) -> None:
    config = dataclasses.replace(config, num_server_rounds=3)
    workspace = survey(config)
    rounds: list[int] = []
    trained = centralised(workspace, config, lambda number, _: rounds.append(number))
    assert rounds == [1, 2, 3]
    # Not the weights: attention ignores its key bias, so AdamW moves that by rounding errors.
    table = workspace.table(UNSEEN[0])
    context, targets = table.batch(range(8)), table.batch(range(8, 20))
    start = initial_predictor(config, DIMENSION, "random").predict(context, targets)
    expected = naive(workspace, config).predict(context, targets)
    torch.testing.assert_close(trained.predict(context, targets), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(expected, start, rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", [CONFIG, PUBLISHED], ids=["pluralistic", "published"])
def test_local_training_knows_no_other_group(config: RunConfig) -> None:
    workspace = survey(config)
    trained = local_only(workspace, config, quiet)
    assert len(trained) == len(SEEN)
    fewer = dataclasses.replace(workspace, seen=SEEN[1:2])
    (alone,) = local_only(fewer, config, quiet)
    assert same(trained[1], alone)
    assert not same(trained[0], alone, 1e-3)
