"""Local optimisation of the predictor on one group: used by clients and by baselines."""

import hashlib
import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from pluralllm_fl.config import RunConfig
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.predictor.episodes import GroupTable
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.predictor.optimizer import FlatAdamW


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a node tells about its local training.

    `loss` is the prediction's, mean over the steps.
    """

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


def train_group(
    predictor: PreferencePredictor,
    table: GroupTable,
    config: RunConfig,
    *,
    server_round: int,
    learning_rate: float,
    local_steps: int,
    seed: int,
    proximal_mu: float = 0.0,
) -> TrainingResult:
    """Train all weights in place on one group's training questions, by a fresh AdamW.

    Parameters
    ----------
    server_round : int
        From 1.
    proximal_mu : float
        Weight of FedProx's ``mu/2 ||w - w_global||^2`` (arXiv 1812.06127).

    Raises
    ------
    ConfigError
        When the group has no training questions.
    """
    start = time.perf_counter()
    pool = table.members("train")
    if not len(pool):
        raise ConfigError(
            f"Group '{table.group}' has no training questions: lower test-fraction and "
            "validation-fraction or give it more answers."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)  # dropout
        step = predictor.network.objective(table, config, np.random.default_rng(seed), server_round)
        optimizer = FlatAdamW(list(predictor.parameters()), learning_rate, config.weight_decay)
        origin = optimizer.values.clone()
        predictor.train()
        losses = []
        for _ in range(local_steps):
            terms = step()
            losses.append(terms[0].item())
            torch.stack(terms).sum().backward()  # type: ignore[no-untyped-call]
            if proximal_mu:
                optimizer.gradient.add_(optimizer.values - origin, alpha=proximal_mu)
            if config.gradient_clip:
                optimizer.clip(config.gradient_clip)
            optimizer.step()
    return TrainingResult(sum(losses) / len(losses), len(pool), time.perf_counter() - start)


def round_seed(seed: int, server_round: int, group: str) -> int:
    """Return the seed of one group's work in one round."""
    text = f"{seed}\0{server_round}\0{group}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
