"""Predictor x group -> scores on the split grid, with bootstrap intervals."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from pluralllm_fl.episodes import GroupTable, IntArray
from pluralllm_fl.metrics import (
    FloatArray,
    alignment,
    bootstrap_interval,
    group_block,
    uniform_like,
)
from pluralllm_fl.predictor import PreferencePredictor

EvaluationSplit = Literal["all", "train", "validation", "test"]
EVALUATION_SPLITS: tuple[EvaluationSplit, ...] = ("all", "train", "validation", "test")


@dataclass(frozen=True, slots=True)
class SplitScore:
    """A group's scores on one split of questions.

    `alignment` and `uniform` are means over the target questions, `low` and `high` bound the
    95% bootstrap interval of the alignment (NaN: there is none); all are 0 if there are no
    `questions`.
    """

    alignment: float
    low: float
    high: float
    uniform: float
    questions: int


@dataclass(frozen=True, slots=True)
class Targets:
    """Predicted and true distributions over target questions.

    `predicted` and `true` are flat, shape (N,); `question` (N,) maps options to 0..Q-1 and
    `index` (Q,) maps these to the group table.
    """

    index: IntArray
    predicted: FloatArray
    true: FloatArray
    question: IntArray

    @property
    def alignment(self) -> FloatArray:
        """Alignment score of every question, shape (Q,)."""
        return alignment(self.predicted, self.true, self.question)


# A group's table, its context and target questions -> its predicted targets.
Predict = Callable[[GroupTable, IntArray, IntArray], Targets]


def evaluation_order(table: GroupTable, seed: int) -> IntArray:
    """Shuffle a group's questions; contexts are prefixes, so larger ones hold the smaller.

    The order depends on seed, group and question only, not on what else the table holds.
    """
    keys = [
        hashlib.sha256(f"{seed}\0{table.group}\0{q.id}".encode()).digest() for q in table.questions
    ]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def context_and_targets(
    table: GroupTable, split: EvaluationSplit, context_questions: int, seed: int
) -> tuple[IntArray, IntArray]:
    """Choose context and target questions.

    ``all`` is the paper's measure: random context questions, every other question a target. The
    other splits take the context from the training questions and score the split's questions.
    """
    order = evaluation_order(table, seed)
    if split == "all":
        return order[:context_questions], order[context_questions:]
    train = order[np.isin(order, table.members("train"))]
    context = train[:context_questions]
    if split == "train":
        return context, train[context_questions:]
    return context, order[np.isin(order, table.members(split))]


@torch.no_grad()
def predict_targets(
    predictor: PreferencePredictor, table: GroupTable, context: IntArray, targets: IntArray
) -> Targets:
    """Predict all targets of a group in one pass, given its answers to the context questions."""
    asked = table.batch(targets).without_answers()
    predicted = predictor.predict(table.batch(context), asked)
    return beside_answers(predicted.double().cpu().numpy(), table, targets)


def beside_answers(predicted: FloatArray, table: GroupTable, targets: IntArray) -> Targets:
    """Put predicted distributions (flat, in the order of `targets`) beside the group's answers."""
    question = np.repeat(np.arange(len(targets)), table.size[targets])
    return Targets(targets, predicted, table.answers(targets).astype(np.float64), question)


def score_targets(targets: Targets) -> SplitScore:
    """Summarise per-question alignment into mean, interval and uniform reference."""
    if not len(targets.index):
        return SplitScore(0.0, 0.0, 0.0, 0.0, 0)
    scores = targets.alignment
    low, high = bootstrap_interval(scores, seed=0)
    uniform = alignment(uniform_like(targets.question), targets.true, targets.question)
    return SplitScore(float(scores.mean()), low, high, float(uniform.mean()), len(scores))


def evaluate_group(
    predictor: PreferencePredictor, table: GroupTable, *, context_questions: int, seed: int
) -> dict[EvaluationSplit, SplitScore]:
    """Score one group on every split of questions."""
    predict = partial(predict_targets, predictor.eval())
    return score_splits(predict, table, context_questions=context_questions, seed=seed)


def score_splits(
    predict: Predict, table: GroupTable, *, context_questions: int, seed: int
) -> dict[EvaluationSplit, SplitScore]:
    """Score whatever predicts on every split of one group's questions."""
    return {
        split: score_targets(
            predict(table, *context_and_targets(table, split, context_questions, seed))
        )
        for split in EVALUATION_SPLITS
    }


def split_blocks(
    scores: Mapping[str, Mapping[EvaluationSplit, SplitScore]],
) -> dict[str, Any] | None:
    """Turn one side's per-group scores into the block of summary.json.

    Returns
    -------
    dict or None
        The block over all questions, with the same over test questions under
        ``test_questions`` and over training questions under ``trained_questions`` (each None if
        no group has any); None if no group has a question.
    """
    block = _block({group: score["all"] for group, score in scores.items()})
    if block is not None:
        block["test_questions"] = _block({g: score["test"] for g, score in scores.items()})
        block["trained_questions"] = _block({g: score["train"] for g, score in scores.items()})
    return block


def _block(scores: Mapping[str, SplitScore]) -> dict[str, Any] | None:
    held = {group: score for group, score in scores.items() if score.questions}
    if not held:
        return None
    return group_block(
        {g: s.alignment for g, s in held.items()},
        {g: s.questions for g, s in held.items()},
        {g: s.uniform for g, s in held.items()},
        {g: (s.low, s.high) for g, s in held.items() if not math.isnan(s.low)},
    )
