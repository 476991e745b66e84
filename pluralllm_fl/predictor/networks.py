"""What a network is: the contract that every architecture keeps, and what builds one."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import numpy as np
from torch import Tensor, nn

from pluralllm_fl.config import RunConfig, embedding_parts
from pluralllm_fl.predictor.episodes import GroupTable, QuestionBatch

LARGEST_ROW = 2**17  # of an embedding: two vectors of the language model


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictorConfig:
    """Everything needed to rebuild a predictor and to embed text for it."""

    architecture: str = "transformer"
    embedding_dim: int
    width: int = 96
    layers: int = 1
    heads: int = 4
    feed_forward: int = 96
    dropout: float = 0.1
    question_features: int = 1024
    factors: int = 8
    embedding_model: str = "auto"
    embedding_pooling: Literal["mean", "last"] = "mean"
    embedding_template: str = "{question}||{option}"
    embedding_standardise: bool = True
    embedding_fingerprint: str = ""

    @classmethod
    def from_run_config(
        cls, config: RunConfig, embedding_dim: int, embedding_fingerprint: str = ""
    ) -> Self:
        """Take the predictor's part of a run config."""
        shared = {f.name for f in fields(cls)} & {f.name for f in fields(config)}
        return cls(
            embedding_dim=embedding_dim,
            embedding_fingerprint=embedding_fingerprint,
            **{name: getattr(config, name) for name in shared},
        )

    @classmethod
    def from_stored(cls, values: Any) -> Self:
        """Build from what config.json holds.

        Raises
        ------
        ValueError, ConfigError
            For anything but every field with a possible value.
        """
        if not isinstance(values, dict):
            raise ValueError("it does not hold a JSON object")
        known = [f.name for f in fields(cls)]
        # Not by default: a model of an earlier version would be read as one of this.
        if lacking := [name for name in known if name not in values]:
            raise ValueError(
                f"{', '.join(lacking)} missing, as in models of an earlier version: train "
                "again, or use the version that wrote it"
            )
        if unknown := [name for name in values if name not in known]:
            raise ValueError(f"{unknown[0][:80]!r} is not known")
        for name in {f.name for f in fields(RunConfig)} & {*known} - {"architecture"}:
            RunConfig.checked(name, values[name])
        row, parts = values["embedding_dim"], len(embedding_parts(values["embedding_template"]))
        if type(row) is not int or not 1 <= row <= LARGEST_ROW or row % parts:
            raise ValueError(f"embedding_dim = {row!r} is not possible"[:120])
        if not isinstance(values["embedding_fingerprint"], str):
            raise ValueError("embedding_fingerprint is not a text")
        if values["width"] % values["heads"] or values["question_features"] % 2:
            raise ValueError("width is not a multiple of heads, or question_features is odd")
        return cls(**values)

    @property
    def dimension(self) -> int:
        """Length of one vector of the language model; a row holds one or two."""
        return self.embedding_dim // len(embedding_parts(self.embedding_template))


class Network(nn.Module, ABC):
    """An architecture: one class, and one line in `config.ARCHITECTURES`.

    All its parameters are trained and averaged. Nothing in it belongs to one group: a group enters
    through its context alone.
    """

    @classmethod
    def from_config(cls, config: PredictorConfig) -> Self:
        """Build the network with random weights from torch's global generator.

        Arguments of a network's constructor are named as attributes of `PredictorConfig`.
        """
        return cls(**{name: getattr(config, name) for name in inspect.signature(cls).parameters})

    def know(self, batch: QuestionBatch) -> tuple[Tensor, ...]:
        """Return what it says of a batch's options whatever the context, shape (N, …) each.

        `encode_context` and `score` take it as `known`, of these very options in their order, so
        that several contexts share it; empty, it is not at hand. Here: nothing.
        """
        del batch
        return ()

    @abstractmethod
    def encode_context(
        self, context: QuestionBatch | None, known: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, ...]:
        """Encode a group's answers (with `distribution`); None or an empty batch: no answers.

        `known` is `know` of the context, (N, …) each. The tensors returned may have any shape:
        only `score` reads them.
        """

    @abstractmethod
    def score(
        self, context: tuple[Tensor, ...], targets: QuestionBatch, known: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """Return the targets' logits, shape (N,), and log standard deviations, (N,), or None.

        The standard deviations are those of the options' probabilities. `known` is `know` of the
        targets, (N, …) each.
        """

    @abstractmethod
    def objective(
        self, table: GroupTable, config: RunConfig, rng: np.random.Generator, server_round: int
    ) -> Callable[[], tuple[Tensor, ...]]:
        """Prepare a round of local training on a group's training questions.

        It is called with the weights as received. The function it returns draws one step's
        questions from `rng` and returns their loss under the weights as they are then, as terms,
        a scalar each, whose sum is minimised. The first is the loss of the prediction, which the
        node reports.
        """
