"""Federated, centralised and local training against naive loops and torch's own optimiser."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch

from pluralllm_fl.config import RunConfig
from pluralllm_fl.evaluation.baselines import centralised, drawn_groups, federated, local_only
from pluralllm_fl.predictor.model import PreferencePredictor, initial_predictor
from pluralllm_fl.predictor.training import learning_rate_at, round_seed, train_group
from pluralllm_fl.workspace import Workspace
from tests.survey import CONFIG, DIMENSION, SEEN, UNSEEN, survey

PUBLISHED = dataclasses.replace(
    CONFIG, architecture="published", loss="normal-nll", learning_rate=1e-3
)
# Dropout draws from the global generator, in an order that a naive loop need not share.
STILL = dataclasses.replace(CONFIG, dropout=0.0)
both = pytest.mark.parametrize("config", [STILL, PUBLISHED], ids=["transformer", "published"])


def quiet(server_round: int, predictor: PreferencePredictor) -> None:
    pass


def sampling(fraction: float, rounds: int = 2) -> RunConfig:
    arguments = json.dumps({"fraction_train": fraction})
    return dataclasses.replace(STILL, strategy_args=arguments, num_server_rounds=rounds)


def same(one: PreferencePredictor, other: PreferencePredictor, tolerance: float = 0.0) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.allclose(a, b, rtol=0, atol=tolerance) for a, b in pairs)


def share(workspace: Workspace, config: RunConfig, groups: tuple[str, ...]) -> dict[str, float]:
    """Return the groups' weights: by their training answers, or equal."""
    count = {g: int((workspace.table(g).split == "train").sum()) for g in groups}
    if config.client_weight == "uniform":
        count = dict.fromkeys(groups, 1)
    return {g: n / sum(count.values()) for g, n in count.items()}


@pytest.mark.parametrize("weight", ["answers", "uniform"])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_a_round_is_the_weighted_average_of_the_drawn_groups_training(
    weight: str, fraction: float
) -> None:
    config = dataclasses.replace(sampling(fraction), client_weight=weight)
    workspace = survey(config)
    received = initial_predictor(config, DIMENSION, "random").state_dict()
    averaged = []
    federated(workspace, config, lambda _, p: averaged.append(copy.deepcopy(p.state_dict())))
    for server_round, found in enumerate(averaged, start=1):
        groups = drawn_groups(SEEN, config, server_round)
        assert len(groups) == fraction * len(SEEN)
        total = {name: np.zeros(tuple(value.shape)) for name, value in received.items()}
        for group, part in share(workspace, config, groups).items():
            node = initial_predictor(config, DIMENSION, "random")
            node.load_state_dict(received)
            train_group(
                node, workspace.table(group), config, server_round=server_round,
                learning_rate=learning_rate_at(config, server_round), local_steps=2,
                seed=round_seed(config.seed, server_round, group),
            )  # fmt: skip
            for name, value in node.state_dict().items():
                total[name] += part * value.double().numpy()
        for name, value in found.items():
            np.testing.assert_allclose(value.numpy(), total[name], rtol=0, atol=1e-6)
        received = found
    assert len(averaged) == config.num_server_rounds


def test_groups_are_drawn_by_seed_and_round_and_all_get_their_turn() -> None:
    config, groups = sampling(0.25), tuple("abcdefgh")
    drawn = [drawn_groups(groups, config, server_round) for server_round in range(1, 31)]
    assert {len(chosen) for chosen in drawn} == {2}
    assert set().union(*drawn) == set(groups)
    assert drawn == [drawn_groups(groups, config, r) for r in range(1, 31)]
    other = dataclasses.replace(config, seed=1)
    assert drawn != [drawn_groups(groups, other, r) for r in range(1, 31)]
    assert drawn_groups(groups, sampling(0.01), 1)  # never nobody
    assert drawn_groups(groups, STILL, 1) == groups


def naive(workspace: Workspace, config: RunConfig) -> PreferencePredictor:
    predictor = initial_predictor(config, DIMENSION, "random")
    weights = list(predictor.parameters())
    optimizer = torch.optim.AdamW(weights, weight_decay=config.weight_decay)
    rng = np.random.default_rng(config.seed)
    shares = share(workspace, config, SEEN)
    for server_round in range(1, config.num_server_rounds + 1):
        optimizer.param_groups[0]["lr"] = learning_rate_at(config, server_round)
        network = predictor.network
        steps = [network.objective(workspace.table(g), config, rng, server_round) for g in SEEN]
        for _ in range(config.local_steps):
            losses = torch.stack([torch.stack(step()).sum() for step in steps])
            optimizer.zero_grad(set_to_none=False)
            (torch.tensor(list(shares.values())) @ losses).backward()
            # A parameter that no loss reached yet decays all the same.
            for parameter in weights:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            if config.gradient_clip:
                torch.nn.utils.clip_grad_norm_(weights, config.gradient_clip)
            optimizer.step()
    return predictor.eval()


@both
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_centralised_training_equals_a_naive_loop(config: RunConfig, clip: float) -> None:
    config = dataclasses.replace(config, num_server_rounds=3, gradient_clip=clip)
    workspace = survey(config)
    rounds: list[int] = []
    trained = centralised(workspace, config, lambda number, _: rounds.append(number))
    assert rounds == [1, 2, 3]
    # Not the weights: attention ignores its key bias, so AdamW moves that by rounding errors.
    table = workspace.table(UNSEEN[0])
    context, targets = table.batch(range(8)), table.batch(range(8, 20))
    start = initial_predictor(config, DIMENSION, "random").eval().predict(context, targets)
    expected = naive(workspace, config).predict(context, targets)
    torch.testing.assert_close(trained.predict(context, targets), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(expected, start, rtol=0, atol=1e-4)


@both
def test_local_training_knows_no_other_group(config: RunConfig) -> None:
    workspace = survey(config)
    trained = local_only(workspace, config, quiet)
    assert len(trained) == len(SEEN)
    fewer = dataclasses.replace(workspace, seen=SEEN[1:2])
    (alone,) = local_only(fewer, config, quiet)
    assert same(trained[1], alone)
    assert not same(trained[0], alone, 1e-3)
