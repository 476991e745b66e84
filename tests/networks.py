"""Networks of a few lines, for tests of what works with any."""

from collections.abc import Callable
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from pluralllm_fl.config import RunConfig
from pluralllm_fl.predictor.episodes import GroupTable, QuestionBatch
from pluralllm_fl.predictor.losses import prediction_loss
from pluralllm_fl.predictor.networks import Network, PredictorConfig


class Toy(Network):
    """A linear score of options, and how much of the likeliest shares of the context to copy."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.score_option = nn.Linear(dimension, 1)

    @classmethod
    def from_config(cls, config: PredictorConfig) -> Self:
        return cls(config.embedding_dim)

    def encode_context(
        self, context: QuestionBatch | None, known: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, ...]:
        del known
        if context is None or not len(context):
            return (torch.zeros(()),)
        assert context.distribution is not None
        return (context.distribution.square().mean(),)

    def score(
        self, context: tuple[Tensor, ...], targets: QuestionBatch, known: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor | None]:
        del known
        return self.score_option(targets.embedding)[:, 0] * (1 + context[0]), None

    def objective(
        self, table: GroupTable, config: RunConfig, rng: np.random.Generator, server_round: int
    ) -> Callable[[], tuple[Tensor, ...]]:
        del server_round
        pool = table.members("train")

        def step() -> tuple[Tensor, ...]:
            asked = table.batch(rng.choice(pool, 5, replace=False))
            logits, _ = self.score(self.encode_context(None), asked)
            return (prediction_loss(asked.log_softmax(logits), None, asked, config.loss),)

        return step


class Ledger(Network):
    """One logit for every option of the survey: it learns answers by heart, and nothing else."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(rows))

    @classmethod
    def from_config(cls, config: PredictorConfig) -> Self:
        return cls(config.embedding_dim)

    def encode_context(
        self, context: QuestionBatch | None, known: tuple[Tensor, ...] = ()  # noqa: ARG002
    ) -> tuple[Tensor, ...]:  # fmt: skip
        return ()

    def score(
        self, context: tuple[Tensor, ...], targets: QuestionBatch,  # noqa: ARG002
        known: tuple[Tensor, ...] = (),  # noqa: ARG002
    ) -> tuple[Tensor, None]:  # fmt: skip
        return targets.embedding @ self.logits, None

    def objective(
        self, table: GroupTable, config: RunConfig, rng: np.random.Generator, server_round: int  # noqa: ARG002
    ) -> Callable[[], tuple[Tensor, ...]]:  # fmt: skip
        batch = table.batch(table.members("train"))

        def step() -> tuple[Tensor, ...]:
            predicted = batch.log_softmax(batch.embedding @ self.logits)
            return (prediction_loss(predicted, None, batch, "cross-entropy"),)

        return step
