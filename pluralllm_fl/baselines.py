"""What a federation is compared with, by the same training code and without Flower."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch

from pluralllm_fl.config import RunConfig
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.memory import OWNED, undiluted
from pluralllm_fl.optimizer import FlatAdamW
from pluralllm_fl.predictor import PreferencePredictor, initial_predictor
from pluralllm_fl.training import (
    episodes,
    learning_rate_at,
    prediction_loss,
    round_seed,
    train_group,
)
from pluralllm_fl.workspace import Workspace

OnRound = Callable[[int, PreferencePredictor], None]


def federated(workspace: Workspace, config: RunConfig, on_round: OnRound) -> PreferencePredictor:
    """Average the seen groups' local training with equal weights, in this process.

    The same as a federation with FedAvg and equal weights, up to rounding: for measuring training
    alone.
    """
    predictor = _start(workspace, config)
    groups = workspace.seen
    prototypes = [index % config.prototypes for index in range(len(groups))]
    owners = Counter(prototypes)
    for server_round in range(1, config.num_server_rounds + 1):
        received = {name: value.clone() for name, value in predictor.state_dict().items()}
        total = {name: torch.zeros_like(value) for name, value in received.items()}
        factors = undiluted(prototypes, [1.0] * len(groups), owners, server_round)
        for group, prototype, factor in zip(groups, prototypes, factors, strict=True):
            predictor.load_state_dict(received)
            train_group(
                predictor, workspace.table(group), config,
                learning_rate=learning_rate_at(config, server_round),
                local_steps=config.local_steps, seed=round_seed(config.seed, server_round, group),
                prototype=prototype,
            )  # fmt: skip
            for name, value in predictor.state_dict().items():
                step = factor if name in OWNED else 1.0
                total[name] += torch.lerp(received[name], value, step) / len(groups)
        predictor.load_state_dict(total)
        on_round(server_round, predictor)
    return predictor


def centralised(workspace: Workspace, config: RunConfig, on_round: OnRound) -> PreferencePredictor:
    """Train on the pooled episodes of all seen groups: one optimiser, no averaging.

    A round is ``local-steps`` steps, each on one episode of every group: the steps and the data of
    a federated round. Only for the published architecture, whose every weight is trained by
    gradients.

    Raises
    ------
    ConfigError
        For another architecture.
    """
    if config.architecture != "published":
        raise ConfigError("Centralised training is for architecture = 'published'.")
    predictor = _start(workspace, config)
    optimizer = FlatAdamW(list(predictor.parameters()), config.learning_rate, config.weight_decay)
    rng = np.random.default_rng(config.seed)
    steps = config.num_server_rounds * config.local_steps
    drawn = [episodes(workspace.table(group), config, rng, steps) for group in workspace.seen]
    for server_round in range(1, config.num_server_rounds + 1):
        optimizer.learning_rate = learning_rate_at(config, server_round)
        for _ in range(config.local_steps):
            for context, targets in map(next, drawn):
                loss = prediction_loss(predictor(context, targets), targets, config.loss)
                (loss / len(drawn)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        on_round(server_round, predictor)
    return predictor


def _start(workspace: Workspace, config: RunConfig) -> PreferencePredictor:
    predictor = initial_predictor(
        config, workspace.vectors.shape[1], workspace.embedding_fingerprint
    )
    return predictor.to(workspace.vectors.device)
