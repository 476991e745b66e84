"""Local optimisation of the predictor on one group: used by clients and by baselines."""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from pluralllm_fl.config import RunConfig
from pluralllm_fl.episodes import EpisodeSampler, GroupTable, IntArray, QuestionBatch
from pluralllm_fl.memory import MOST_OPTIONS, remember
from pluralllm_fl.optimizer import FlatAdamW
from pluralllm_fl.pluralistic import PluralisticNetwork, js_distance
from pluralllm_fl.predictor import Prediction, PreferencePredictor


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a node tells about its local training: mean loss, questions used, seconds."""

    loss: float
    questions: int
    seconds: float


def learning_rate_at(config: RunConfig, server_round: int) -> float:
    """Return the learning rate of a round (from 1), as the server sends it.

    ``cosine``: half the peak in round 1, then from the peak towards zero after the last round.
    """
    if config.learning_rate_schedule == "constant":
        return config.learning_rate
    if server_round == 1 and config.num_server_rounds > 1:
        return config.learning_rate / 2
    progress = (server_round - 1) / config.num_server_rounds
    return config.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def prediction_loss(prediction: Prediction, targets: QuestionBatch, loss: str) -> Tensor:
    """Compare a prediction with the group's answers.

    ``alignment`` (the Jensen-Shannon distance, 1 - the alignment score), ``jensen-shannon`` (its
    square, the divergence) and ``cross-entropy`` are means over questions, in natural log;
    ``normal-nll`` is the published loss: the negative log-likelihood of the probabilities under
    Normal(predicted probability, exp(log_std)), mean over options.
    """
    assert targets.distribution is not None, "targets carry answers in training"
    log_p, q = prediction.log_probability, targets.distribution
    if loss == "cross-entropy":
        return torch.neg((q * log_p).sum()) / len(targets)
    p = log_p.exp()
    if loss == "alignment":
        return js_distance(targets.pad(p), targets.pad(q)).mean()
    if loss == "jensen-shannon":
        log_middle = ((p + q) / 2).clamp_min(1e-12).log()
        divergence = p * (log_p - log_middle) + torch.xlogy(q, q) - q * log_middle
        return divergence.sum() / (2 * len(targets))
    log_std = prediction.log_std
    if log_std is None:
        log_std = torch.zeros_like(p)
    nll = ((q - p) / log_std.exp()).square() / 2 + log_std + math.log(2 * math.pi) / 2
    return nll.mean()


def train_group(
    predictor: PreferencePredictor,
    table: GroupTable,
    config: RunConfig,
    *,
    learning_rate: float,
    local_steps: int,
    seed: int,
    proximal_mu: float = 0.0,
    prototype: int = 0,
) -> TrainingResult:
    """Train in place on one group's training questions: one episode a step, fresh AdamW.

    The published network trains all its weights. Ours trains its mixing coefficients, with the
    group's own prototype hidden, then fits that prototype.

    Parameters
    ----------
    proximal_mu : float
        Weight of FedProx's ``mu/2 ||w - w_global||^2`` (arXiv 1812.06127) on what gradients train.
    prototype : int
        Which of the predictor's prototypes is this group's.

    Raises
    ------
    ConfigError
        When the group has no training questions.
    """
    start = time.perf_counter()
    rng = np.random.default_rng(seed)
    pool, network = table.members("train"), predictor.network
    drawn = episodes(table, config, rng, local_steps)
    if isinstance(network, PluralisticNetwork):
        # Whoever has the only prototype cannot do without it.
        with network.without(prototype if len(network.memory) > 1 else None):
            # Before the first aggregate there is nothing to mix.
            rate = learning_rate if network.active().any() else 0.0
            loss = _descend(predictor, [network.mixing], drawn, config, rate, proximal_mu)
        kept = _at_most(table, rng.permutation(pool), MOST_OPTIONS)
        remember(network, table.batch(kept), prototype=prototype, ridge=config.memory_ridge)
    else:
        weights = list(network.parameters())
        loss = _descend(predictor, weights, drawn, config, learning_rate, proximal_mu)
    return TrainingResult(loss, len(pool), time.perf_counter() - start)


def round_seed(seed: int, server_round: int, group: str) -> int:
    """Return the seed of one group's work in one round."""
    text = f"{seed}\0{server_round}\0{group}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def episodes(
    table: GroupTable, config: RunConfig, rng: np.random.Generator, number: int
) -> Iterator[tuple[QuestionBatch, QuestionBatch]]:
    """Draw context and targets from a group's training questions, so many times."""
    sampler = EpisodeSampler(
        (config.context_min, config.context_max), (config.target_min, config.target_max)
    )
    pool = table.members("train")
    for _ in range(number):
        context, targets = sampler.sample(pool, rng)
        yield table.batch(context), table.batch(targets)


def _descend(
    predictor: PreferencePredictor,
    weights: Sequence[Parameter],
    drawn: Iterator[tuple[QuestionBatch, QuestionBatch]],
    config: RunConfig,
    learning_rate: float,
    proximal_mu: float,
) -> float:
    """Take one AdamW step an episode, none at rate 0; return the mean loss."""
    optimizer = FlatAdamW(weights, learning_rate, config.weight_decay)
    origin = optimizer.values.clone()
    predictor.train()
    losses = []
    for context, targets in drawn:
        with torch.set_grad_enabled(learning_rate > 0):
            loss = prediction_loss(predictor(context, targets), targets, config.loss)
        losses.append(loss.item())
        if not learning_rate:
            continue
        loss.backward()  # type: ignore[no-untyped-call]
        if proximal_mu:
            optimizer.gradient.add_(optimizer.values - origin, alpha=proximal_mu)
        if config.gradient_clip:
            optimizer.clip(config.gradient_clip)
        optimizer.step()
    return sum(losses) / len(losses)


def _at_most(table: GroupTable, questions: IntArray, options: int) -> IntArray:
    """Return as many of the first questions as have at most so many options, in table order."""
    return np.sort(questions[table.size[questions].cumsum() <= options])
