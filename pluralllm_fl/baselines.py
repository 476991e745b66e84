"""What a federation is compared with, by the same training code and without Flower."""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from pluralllm_fl.config import RunConfig
from pluralllm_fl.memory import OWNED, undiluted
from pluralllm_fl.optimizer import FlatAdamW
from pluralllm_fl.pluralistic import PluralisticNetwork
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
    groups, prototypes = workspace.seen, _prototypes(workspace, config)
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
    a federated round. Ours starts from all groups' prototypes and trains the mixing coefficients,
    with each group's own prototype hidden unless it is the only one. In its first round it takes no
    step, as in a federation, where there is nothing to mix before the first aggregate.
    """
    predictor = _start(workspace, config)
    network, own = predictor.network, _prototypes(workspace, config)
    trained = list(network.parameters())
    if ours := isinstance(network, PluralisticNetwork):
        _remember_all(predictor, workspace, config)
        trained = [network.mixing]
    optimizer = FlatAdamW(trained, config.learning_rate, config.weight_decay)
    rng = np.random.default_rng(config.seed)
    steps = config.num_server_rounds * config.local_steps
    drawn = [episodes(workspace.table(group), config, rng, steps) for group in workspace.seen]
    for server_round in range(1, config.num_server_rounds + 1):
        optimizer.learning_rate = learning_rate_at(config, server_round)
        for _ in range(0 if ours and server_round == 1 else config.local_steps):
            for prototype, (context, targets) in zip(own, map(next, drawn), strict=True):
                with _hidden(network, prototype if config.prototypes > 1 else None):
                    loss = prediction_loss(predictor(context, targets), targets, config.loss)
                (loss / len(drawn)).backward()  # type: ignore[no-untyped-call]
            if config.gradient_clip:
                optimizer.clip(config.gradient_clip)
            optimizer.step()
        on_round(server_round, predictor)
    return predictor


def local_only(
    workspace: Workspace, config: RunConfig, on_round: OnRound
) -> list[PreferencePredictor]:
    """Train every seen group alone, for as many rounds and steps as in the federation.

    Ours has one prototype then, the group's own, which it cannot hide from itself. One predictor
    a seen group; they are scored by the mean over predictors.
    """
    alone = replace(config, prototypes=1)
    return [
        federated(replace(workspace, seen=(group,)), alone, on_round) for group in workspace.seen
    ]


def _prototypes(workspace: Workspace, config: RunConfig) -> list[int]:
    return [index % config.prototypes for index in range(len(workspace.seen))]


def _remember_all(predictor: PreferencePredictor, workspace: Workspace, config: RunConfig) -> None:
    """Take the prototypes that one federated round gives: closed-form, each its groups' mean."""
    once = replace(config, num_server_rounds=1, local_steps=1)
    fitted = federated(workspace, once, lambda *_: None).state_dict()
    predictor.load_state_dict({name: fitted[name] for name in OWNED}, strict=False)


def _hidden(network: nn.Module, prototype: int | None) -> AbstractContextManager[None]:
    """Hide a group's prototype where the architecture has any."""
    return network.without(prototype) if isinstance(network, PluralisticNetwork) else nullcontext()


def _start(workspace: Workspace, config: RunConfig) -> PreferencePredictor:
    predictor = initial_predictor(
        config, workspace.vectors.shape[1], workspace.embedding_fingerprint
    )
    return predictor.to(workspace.vectors.device)
