"""What a federation is compared with, by the same training code and without Flower."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from pluralllm_fl.arrays import FloatArray
from pluralllm_fl.config import RunConfig
from pluralllm_fl.predictor.model import PreferencePredictor, initial_predictor
from pluralllm_fl.predictor.optimizer import FlatAdamW
from pluralllm_fl.predictor.training import learning_rate_at, round_seed, train_group
from pluralllm_fl.workspace import Workspace

RANDOM_DEVIATION = 0.15  # length of an option's deviation beside its question's, as in raw MiniLM

OnRound = Callable[[int, PreferencePredictor], None]


def federated(workspace: Workspace, config: RunConfig, on_round: OnRound) -> PreferencePredictor:
    """Average the seen groups' local training by ``client-weight``, in this process.

    The same as a federation with FedAvg, up to rounding: for measuring training alone. Where
    ``strategy-args`` holds ``fraction_train``, a round draws that share of the groups.
    """
    predictor = untrained(workspace, config)
    for server_round in range(1, config.num_server_rounds + 1):
        received = {name: value.clone() for name, value in predictor.state_dict().items()}
        total = {name: torch.zeros_like(value) for name, value in received.items()}
        drawn = drawn_groups(workspace.seen, config, server_round)
        for group, share in _weights(workspace, config, drawn).items():
            predictor.load_state_dict(received)
            train_group(
                predictor, workspace.table(group), config, server_round=server_round,
                learning_rate=learning_rate_at(config, server_round),
                local_steps=config.local_steps, seed=round_seed(config.seed, server_round, group),
            )  # fmt: skip
            for name, value in predictor.state_dict().items():
                total[name] += share * value
        predictor.load_state_dict(total)
        on_round(server_round, predictor)
    return predictor


def centralised(workspace: Workspace, config: RunConfig, on_round: OnRound) -> PreferencePredictor:
    """Train on the pooled answers of all seen groups: one optimiser, no averaging.

    A round is ``local-steps`` steps, each on a batch of every group: the steps and the data of a
    federated round.
    """
    predictor = untrained(workspace, config)
    optimizer = FlatAdamW(list(predictor.parameters()), config.learning_rate, config.weight_decay)
    rng = np.random.default_rng(config.seed)
    weights = _weights(workspace, config, workspace.seen)
    for server_round in range(1, config.num_server_rounds + 1):
        optimizer.learning_rate = learning_rate_at(config, server_round)
        steps = {
            group: predictor.network.objective(workspace.table(group), config, rng, server_round)
            for group in weights
        }
        predictor.train()
        for _ in range(config.local_steps):
            for group, weight in weights.items():
                (weight * torch.stack(steps[group]()).sum()).backward()  # type: ignore[no-untyped-call]
            if config.gradient_clip:
                optimizer.clip(config.gradient_clip)
            optimizer.step()
        on_round(server_round, predictor.eval())
    return predictor


def local_only(
    workspace: Workspace, config: RunConfig, on_round: OnRound
) -> list[PreferencePredictor]:
    """Train every seen group alone, for as many rounds and steps as in the federation.

    One predictor a seen group; they are scored by the mean over predictors.
    """
    return [
        federated(replace(workspace, seen=(group,)), config, on_round) for group in workspace.seen
    ]


def with_random_vectors(workspace: Workspace) -> Workspace:
    """Replace the language model by chance: what does its understanding of the texts add?

    Every question's text and every option's text has a direction. A row holds both side by side
    where the template embeds them apart; else it is the question's plus a small one of the option,
    scaled to length 1. So equal texts are recognised as equal, and nothing else is.
    """
    rng = np.random.default_rng(workspace.config.seed)
    dimension = workspace.dimension

    def draw(texts: set[str]) -> dict[str, FloatArray]:
        directions = rng.standard_normal((len(texts), dimension))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        return dict(zip(sorted(texts), directions, strict=True))

    questions = workspace.dataset.questions
    question = draw({q.text for q in questions})
    option = draw({o for q in questions for o in q.options})
    vectors = np.zeros(workspace.vectors.shape)
    for q in questions:
        about, options = question[q.text], np.array([option[o] for o in q.options])
        if dimension < workspace.vectors.shape[1]:
            rows = np.hstack([np.tile(about, (len(options), 1)), options])
        else:
            rows = about + RANDOM_DEVIATION * options
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        first = workspace.first_row[q.id]
        vectors[first : first + len(rows)] = rows
    table = torch.from_numpy(vectors).to(workspace.vectors)
    return replace(workspace, vectors=table, embedding_fingerprint="random", _tables={})


def drawn_groups(groups: tuple[str, ...], config: RunConfig, server_round: int) -> tuple[str, ...]:
    """Return the groups that train in a round, as many of them as FedAvg would draw."""
    number = int(len(groups) * config.strategy_kwargs.get("fraction_train", 1.0))
    rng = np.random.default_rng(round_seed(config.seed, server_round, "drawn groups"))
    chosen = rng.choice(len(groups), max(number, 1), replace=False)
    return tuple(groups[i] for i in sorted(chosen))


def _weights(workspace: Workspace, config: RunConfig, groups: tuple[str, ...]) -> dict[str, float]:
    """Return every group's weight in an average of these; they sum to 1."""
    answers = {g: float(len(workspace.table(g).members("train"))) for g in groups}
    if config.client_weight == "uniform":
        answers = dict.fromkeys(answers, 1.0)
    total = sum(answers.values())
    return {group: number / total for group, number in answers.items()}


def untrained(workspace: Workspace, config: RunConfig) -> PreferencePredictor:
    """Return the predictor that round 1 begins with."""
    predictor = initial_predictor(
        config, workspace.vectors.shape[1], workspace.embedding_fingerprint
    )
    return predictor.to(workspace.vectors.device)
