"""One group's answers as tensors, ragged batches of questions, and episode sampling."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pluralllm_fl.arrays import BoolArray, IntArray, option_rows, owners, starts
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.preferences import (
    GroupPreferences,
    Question,
    QuestionSplit,
    question_split,
    unit_interval,
)

# Logit of an option that was not offered: its probability is exactly 0, yet 0 times this is finite.
NOT_OFFERED = -1e30


@dataclass(frozen=True)
class QuestionBatch:
    """Q questions with N options in all, flat: no padding to the longest list of options.

    Parameters
    ----------
    embedding : Tensor, shape (N, embedding dim)
        One row per (question, option).
    question : Tensor of int, shape (N,)
        Index 0..Q-1 of each option's question; non-decreasing unless `pick` gave another order.
    position : Tensor of int, shape (N,)
        Place of each option within its question.
    size : Tensor of int, shape (Q,)
        Number of options of each question.
    distribution : Tensor, shape (N,), or None
        The group's shares, where known.
    offered : Tensor of bool, shape (N,), or None
        Which options the group was offered; None: all.
    """

    embedding: Tensor
    question: Tensor
    position: Tensor
    size: Tensor
    distribution: Tensor | None = None
    offered: Tensor | None = None

    def __len__(self) -> int:
        return len(self.size)

    @cached_property
    def mask(self) -> Tensor:
        """Which cells of the padded layout hold an option, shape (Q, longest)."""
        return torch.arange(self.longest, device=self.size.device) < self.size[:, None]

    @cached_property
    def longest(self) -> int:
        """Largest number of options."""
        return int(self.size.max()) if len(self) else 0

    def pad(self, flat: Tensor) -> Tensor:
        """Lay out (N, …) as (Q, longest, …), zeros behind each question's last option."""
        padded = flat.new_zeros(len(self), self.longest, *flat.shape[1:])
        return padded.index_put((self.question, self.position), flat)

    def flatten(self, padded: Tensor) -> Tensor:
        """Invert `pad`: (Q, longest, …) to (N, …)."""
        return padded[self.question, self.position]

    def log_softmax(self, logits: Tensor) -> Tensor:
        """Normalise logits, (N,), within each question to log-probabilities of the same shape.

        Natural log, over the options offered: the others get `NOT_OFFERED` for a logit.
        """
        if self.offered is not None:
            logits = logits.masked_fill(~self.offered, NOT_OFFERED)
        padded = self.pad(logits).masked_fill(~self.mask, -torch.inf)
        return self.flatten(padded.log_softmax(dim=1))

    @classmethod
    def build(
        cls,
        vectors: Tensor,
        first_row: IntArray,
        size: IntArray,
        distribution: Tensor | None,
        offered: Tensor | None = None,
    ) -> Self:
        """Gather questions whose options lie in consecutive rows of `vectors`.

        Parameters
        ----------
        vectors : Tensor, shape (rows, embedding dim)
            The embedding table.
        first_row, size : ndarray of int, shape (Q,)
            First row and number of options of each question.
        distribution, offered : Tensor, shape (N,), or None
            Shares, and which options were offered.
        """
        question = owners(size)
        position = np.arange(len(question)) - starts(size)[question]
        rows = option_rows(first_row, size)
        device = vectors.device
        return cls(
            vectors[torch.from_numpy(rows).to(device)],
            torch.from_numpy(question).to(device),
            torch.from_numpy(position).to(device),
            torch.from_numpy(size).to(device),
            None if distribution is None else distribution.to(device),
            None if offered is None else offered.to(device),
        )

    def pick(self, questions: Tensor | IntArray) -> tuple[Self, Tensor]:
        """Return some of the questions, and the indices of their options, shape (options,).

        `questions` are indices, shape (questions,). The questions returned are in that order; their
        options stay in the order of this batch.
        """
        chosen = torch.as_tensor(questions, device=self.size.device)
        number = self.question.new_full((len(self),), -1)
        number[chosen] = torch.arange(len(chosen), device=number.device)
        place = number[self.question]
        options = (place >= 0).nonzero()[:, 0]
        picked = type(self)(
            self.embedding[options],
            place[options],
            self.position[options],
            self.size[chosen],
            None if self.distribution is None else self.distribution[options],
            None if self.offered is None else self.offered[options],
        )
        return picked, options

    def select(self, questions: Tensor) -> Self:
        """Return some questions, by index in increasing order, (questions,), with their options."""
        return self.pick(questions)[0]

    def without_answers(self) -> Self:
        """Return the same questions, with nothing that is known of the group."""
        return replace(self, distribution=None, offered=None)


@dataclass(frozen=True)
class GroupTable:
    """One group's answers as index lists into an embedding table.

    Parameters
    ----------
    group : str
        Name of the group.
    questions : tuple of Question, length Q
        In the order of the group's answers (by question id).
    first_row, size : ndarray of int, shape (Q,)
        Rows of each question's options in `vectors`.
    split : ndarray of str, shape (Q,)
        ``train``, ``validation`` or ``test``.
    distribution : ndarray of float32, shape (N,)
        All answers, flat: shares.
    offered : ndarray of bool, shape (N,), or None
        Which options the group was offered; None: nothing is stated, for any question.
    vectors : Tensor, shape (rows, embedding dim)
        The embedding table; one tensor a process, shared by all groups.
    """

    group: str
    questions: tuple[Question, ...]
    first_row: IntArray
    size: IntArray
    split: NDArray[np.str_]
    distribution: NDArray[np.float32]
    offered: BoolArray | None
    vectors: Tensor

    @classmethod
    def build(
        cls,
        preferences: GroupPreferences,
        vectors: Tensor,
        first_row: Mapping[str, int],
        *,
        seed: int,
        validation_fraction: float,
        test_fraction: float,
    ) -> Self:
        """Index a group's answers into `vectors`, shape (rows, embedding dim).

        `first_row` is keyed by question id.
        """
        questions = tuple(preferences.answers)
        splits = [question_split(q, seed, validation_fraction, test_fraction) for q in questions]
        answers = list(preferences.answers.values())
        return cls(
            preferences.group,
            questions,
            np.array([first_row[q.id] for q in questions], dtype=np.int64),
            np.array([len(q.options) for q in questions], dtype=np.int64),
            np.array(splits, dtype=np.str_),
            np.concatenate(answers).astype(np.float32) if answers else np.zeros(0, np.float32),
            preferences.offers(questions),
            vectors,
        )

    def __len__(self) -> int:
        return len(self.questions)

    def members(self, *splits: QuestionSplit) -> IntArray:
        """Return the increasing indices of the questions in any of these splits, (questions,)."""
        return np.flatnonzero(np.isin(self.split, splits))

    def fold(self, questions: IntArray, share: float) -> IntArray:
        """Return about this share of the questions: the same in any run, others in each group.

        Both are indices, shape (questions,).
        """
        texts = (f"fold\0{self.group}\0{self.questions[i].id}" for i in questions)
        draws = [unit_interval(hashlib.sha256(text.encode()).hexdigest()) for text in texts]
        chosen: IntArray = questions[np.array(draws) < share]
        return chosen

    def answers(self, questions: Sequence[int] | IntArray) -> NDArray[np.float32]:
        """Return the shares of the options, (N,), of questions by index, (Q,)."""
        found: NDArray[np.float32] = self.distribution[self.options(questions)]
        return found

    def offers(self, questions: Sequence[int] | IntArray) -> BoolArray | None:
        """Return which options, (N,), of questions by index, (Q,), were offered; None: all."""
        return None if self.offered is None else self.offered[self.options(questions)]

    def batch(self, questions: Sequence[int] | IntArray) -> QuestionBatch:
        """Gather questions by index, (Q,), with the group's answers and what it was offered."""
        index = np.asarray(questions, dtype=np.int64)
        offered = self.offers(index)
        return QuestionBatch.build(
            self.vectors,
            self.first_row[index],
            self.size[index],
            torch.from_numpy(self.answers(index)),
            None if offered is None else torch.from_numpy(offered),
        )

    def options(self, questions: Sequence[int] | IntArray) -> IntArray:
        """Return the places of options, (N,), of questions by index, (Q,), among those of all."""
        index = np.asarray(questions, dtype=np.int64)
        return option_rows(starts(self.size)[index], self.size[index])


@dataclass(frozen=True, slots=True)
class EpisodeSampler:
    """Draw disjoint context and target questions of uniformly random sizes.

    Parameters
    ----------
    context, target : tuple of (int, int)
        Smallest and largest number of questions, both inclusive.
    """

    context: tuple[int, int]
    target: tuple[int, int]

    def sample(self, pool: IntArray, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Return context and target questions drawn without replacement from `pool`.

        All are indices, shape (questions,), those drawn in random order.

        From a pool too small for both, targets take half at most (all, if no context is wanted),
        never fewer than one, and the context takes what is left.

        Raises
        ------
        ConfigError
            When `pool` is empty.
        """
        if not len(pool):
            raise ConfigError(
                "A group has no training questions: lower test-fraction and validation-fraction "
                "or give it more answers."
            )
        targets = min(int(rng.integers(self.target[0], self.target[1] + 1)), len(pool))
        wanted = int(rng.integers(self.context[0], self.context[1] + 1))
        # Small groups: half of what they have at most serves as targets when context is wanted.
        if targets + wanted > len(pool):
            targets = max(1, min(targets, len(pool) // 2)) if wanted else targets
        shuffled = rng.permutation(pool)
        return shuffled[targets : targets + wanted], shuffled[:targets]
