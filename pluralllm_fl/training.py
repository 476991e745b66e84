"""Local optimisation of the predictor on one group: used by clients and by baselines."""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pluralllm_fl.config import RunConfig
from pluralllm_fl.episodes import EpisodeSampler, GroupTable, QuestionBatch
from pluralllm_fl.optimizer import FlatAdamW
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

    ``cross-entropy`` and ``jensen-shannon`` (divergence, natural log) are means over questions;
    ``normal-nll`` is the published loss: the negative log-likelihood of the probabilities under
    Normal(predicted probability, exp(log_std)), mean over options.
    """
    assert targets.distribution is not None, "targets carry answers in training"
    log_p, q = prediction.log_probability, targets.distribution
    if loss == "cross-entropy":
        return torch.neg((q * log_p).sum()) / len(targets)
    p = log_p.exp()
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
) -> TrainingResult:
    """Train in place on one group's training questions: one episode a step, fresh AdamW.

    Parameters
    ----------
    proximal_mu : float
        Weight of FedProx's ``mu/2 ||w - w_global||^2`` (arXiv 1812.06127).

    Raises
    ------
    ConfigError
        When the group has no training questions.
    """
    start = time.perf_counter()
    rng = np.random.default_rng(seed)
    sampler = EpisodeSampler(
        (config.context_min, config.context_max), (config.target_min, config.target_max)
    )
    pool = table.members("train")
    optimizer = FlatAdamW(list(predictor.parameters()), learning_rate, config.weight_decay)
    origin = optimizer.values.clone()
    predictor.train()
    total = 0.0
    for _ in range(local_steps):
        context, targets = (table.batch(index) for index in sampler.sample(pool, rng))
        loss = prediction_loss(predictor(context, targets), targets, config.loss)
        total += loss.item()
        loss.backward()  # type: ignore[no-untyped-call]
        if proximal_mu:
            optimizer.gradient.add_(optimizer.values - origin, alpha=proximal_mu)
        if config.gradient_clip:
            optimizer.clip(config.gradient_clip)
        optimizer.step()
    return TrainingResult(total / local_steps, len(pool), time.perf_counter() - start)
