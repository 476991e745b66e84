"""Predictor x group -> scores on the split grid, with bootstrap intervals."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pluralllm_fl.arrays import BoolArray, FloatArray, IntArray, owners
from pluralllm_fl.metrics import (
    alignment,
    bootstrap_interval,
    calibration_error,
    pairwise_accuracy,
    restrict,
    uniform_like,
)
from pluralllm_fl.predictor.episodes import GroupTable
from pluralllm_fl.predictor.model import PreferencePredictor

EvaluationSplit = Literal["all", "train", "validation", "test"]
EVALUATION_SPLITS: tuple[EvaluationSplit, ...] = ("all", "train", "validation", "test")
MOST_QUESTIONS = 1e12  # no survey has more
MOST_PAIRS = 1e15  # of options
_ROUNDING = 1e-6


# Fields of `SplitScore` in 0..1 that blocks hold as means over groups; those of pairs over the
# groups that have pairs, and by group.
SHARES = ("alignment_offered",)
PAIR_SHARES = ("pairwise_accuracy", "calibration_error")


@dataclass(frozen=True, slots=True)
class SplitScore:
    """A group's scores on one split of questions.

    `alignment` and `uniform` are means over the target questions, `low` and `high` bound the
    95% bootstrap interval of the alignment (NaN: there is none). `alignment_offered` is the
    alignment that the same predictions have if the options offered are known; where nothing is
    stated of them it is the alignment. `pairwise_accuracy` is the share of the `pairs` of options
    between which the group decided that the prediction orders alike, `calibration_error` says how
    far its probabilities of pairs are off. All are 0 if there are no `questions`, the last three
    if there are no `pairs`.
    """

    alignment: float
    alignment_offered: float
    low: float
    high: float
    uniform: float
    questions: int
    pairwise_accuracy: float
    calibration_error: float
    pairs: int

    def problem(self) -> str:
        """Name a value that no score can have; empty: all are possible."""
        if not 0 <= self.questions <= MOST_QUESTIONS:
            return f"questions = {self.questions:g} is no count"
        if not 0 <= self.pairs <= MOST_PAIRS:
            return f"pairs = {self.pairs:g} is no count"
        if not self.questions:
            return ""
        for name in ("alignment", "alignment_offered", "uniform"):
            value = getattr(self, name)
            # Two distributions never have alignment 0, and fairness divides by the mean.
            if not 0 < value <= 1 + _ROUNDING:
                return f"{name.replace('_', '-')} = {value:g} is not above 0 and at most 1"
        for name in (*SHARES, *PAIR_SHARES):
            if not 0 <= (value := getattr(self, name)) <= 1 + _ROUNDING:
                return f"{name.replace('_', '-')} = {value:g} is not in 0..1"
        if not -_ROUNDING <= self.low <= self.high + _ROUNDING <= 1 + 2 * _ROUNDING:
            return f"low = {self.low:g} and high = {self.high:g} are no interval in 0..1"
        return ""


NO_SCORE = SplitScore(0.0, 0.0, 0.0, 0.0, 0.0, 0, 0.0, 0.0, 0)


@dataclass(frozen=True, slots=True)
class Targets:
    """Predicted and true distributions over target questions.

    `predicted` and `true` are shares, flat, shape (N,); `question` (N,) maps options to 0..Q-1 and
    `index` (Q,) maps these to the group table. `offered` (N,) says which options the group was
    offered (None: all); the predictions were made without it.
    """

    index: IntArray
    predicted: FloatArray
    true: FloatArray
    question: IntArray
    offered: BoolArray | None

    @property
    def alignment(self) -> FloatArray:
        """Alignment score of every question, shape (Q,)."""
        return alignment(self.predicted, self.true, self.question)

    @property
    def alignment_offered(self) -> FloatArray:
        """Alignment score of every question if the options offered are known, shape (Q,)."""
        if self.offered is None:
            return self.alignment
        known = restrict(self.predicted, self.offered, self.question)
        return alignment(known, self.true, self.question)

    def part(self, start: int, end: int) -> "Targets":
        """Return the questions from `start` up to `end`."""
        own = (self.question >= start) & (self.question < end)
        return Targets(
            self.index[start:end],
            self.predicted[own],
            self.true[own],
            self.question[own] - start,
            None if self.offered is None else self.offered[own],
        )


# A group's table, context and target questions by index, (questions,) each -> predicted targets.
Predict = Callable[[GroupTable, IntArray, IntArray], Targets]


def evaluation_order(table: GroupTable, seed: int) -> IntArray:
    """Shuffle the indices of a group's questions, shape (Q,).

    Contexts are prefixes, so larger ones hold the smaller.

    The order depends on seed, group and question only, not on what else the table holds.
    """
    keys = [
        hashlib.sha256(f"{seed}\0{table.group}\0{q.id}".encode()).digest() for q in table.questions
    ]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def context_and_targets(
    table: GroupTable, split: EvaluationSplit, context_questions: int, seed: int
) -> tuple[IntArray, IntArray]:
    """Choose context and target questions by index into the table, shape (questions,) each.

    ``all`` is the paper's measure: random context questions, every other question a target. The
    other splits take the context from the training questions and score the split's questions. What
    was asked is the prompt: other candidates of a prompt in the context are no targets.
    """
    order = evaluation_order(table, seed)
    pool = order[np.isin(order, table.members("train"))] if split != "all" else order
    context, rest = pool[:context_questions], pool[context_questions:]
    if split in ("validation", "test"):
        return context, order[np.isin(order, table.members(split))]
    return context, of_other_prompts(table, rest, table, context)


def of_other_prompts(
    table: GroupTable, questions: IntArray, asked: GroupTable, known: IntArray
) -> IntArray:
    """Return those of a group's questions whose prompts are none of some other questions'.

    All by index, shape (questions,): `known` into `asked`, the others into `table`.
    """
    prompts = {asked.questions[i].text for i in known}
    kept = [i for i in questions if table.questions[i].text not in prompts]
    return np.array(kept, dtype=np.int64)


def predict_targets(
    predictor: PreferencePredictor, table: GroupTable, context: IntArray, targets: IntArray
) -> Targets:
    """Predict all targets of a group in one pass, given its answers to the context questions.

    Both by index into the table, shape (questions,).
    """
    predicted = predictor.predict(table.batch(context), table.batch(targets).without_answers())
    return beside_answers(predicted.double().cpu().numpy(), table, targets)


class ManyContexts:
    """A predictor that shows many contexts and reads the texts of a group's questions once.

    What it says of options whatever the context is kept: a few numbers each. So its weights must
    stay as they are.
    """

    def __init__(self, predictor: PreferencePredictor) -> None:
        self.predictor = predictor.eval()
        self._known: dict[str, tuple[GroupTable, tuple[Tensor, ...]]] = {}

    def __call__(self, table: GroupTable, context: IntArray, targets: IntArray) -> Targets:
        """As `predict_targets`: questions by index, shape (questions,)."""
        return self.shown(table, context, table, targets)

    @torch.no_grad()
    def shown(
        self, source: GroupTable, context: IntArray, table: GroupTable, targets: IntArray
    ) -> Targets:
        """Predict a group's targets, given the answers of `source` to its context questions.

        By index, shape (questions,): `context` into `source`, `targets` into `table`.
        """
        encoded = self.predictor.encode_context(source.batch(context), self._rows(source, context))
        asked = table.batch(targets).without_answers()
        predicted = self.predictor.score(encoded, asked, self._rows(table, targets))
        p = predicted.log_probability.exp().double().cpu().numpy()
        return beside_answers(p, table, targets)

    def _rows(self, table: GroupTable, questions: IntArray) -> tuple[Tensor, ...]:
        held, known = self._known.get(table.group, (None, ()))
        if held is not table:
            known = self.predictor.know(table.batch(range(len(table))).without_answers())
            self._known[table.group] = (table, known)
        rows = torch.from_numpy(table.options(questions))
        return tuple(part[rows] for part in known)


def beside_answers(predicted: FloatArray, table: GroupTable, targets: IntArray) -> Targets:
    """Put predicted shares beside the group's answers.

    Parameters
    ----------
    predicted : ndarray, shape (N,)
        Of the targets' options, in their order.
    targets : ndarray of int, shape (Q,)
        Questions by index into the table.
    """
    question = owners(table.size[targets])
    true = table.answers(targets).astype(np.float64)
    return Targets(targets, predicted, true, question, table.offers(targets))


def score_targets(targets: Targets) -> SplitScore:
    """Summarise per-question alignment into mean, interval and uniform reference."""
    if not len(targets.index):
        return NO_SCORE
    scores = targets.alignment
    low, high = bootstrap_interval(scores, seed=0)
    compared = (targets.predicted, targets.true, targets.question, targets.offered)
    ordered, pairs = pairwise_accuracy(*compared)
    uniform = alignment(uniform_like(targets.question), targets.true, targets.question)
    return SplitScore(
        alignment=float(scores.mean()),
        alignment_offered=float(targets.alignment_offered.mean()),
        low=low,
        high=high,
        uniform=float(uniform.mean()),
        questions=len(scores),
        pairwise_accuracy=ordered,
        calibration_error=calibration_error(*compared) if pairs else 0.0,
        pairs=pairs,
    )


def uniform_alignment(answers: Sequence[FloatArray]) -> float:
    """Return the mean alignment of a uniform guess with answers; each distribution (options,)."""
    question = owners([len(p) for p in answers])
    return float(alignment(uniform_like(question), np.concatenate(answers), question).mean())


def evaluate_group(
    predictor: PreferencePredictor, table: GroupTable, *, context_questions: int, seed: int
) -> dict[EvaluationSplit, SplitScore]:
    """Score one group on every split of questions."""
    predict = ManyContexts(predictor)
    return score_splits(predict, table, context_questions=context_questions, seed=seed)


def score_splits(
    predict: Predict, table: GroupTable, *, context_questions: int, seed: int
) -> dict[EvaluationSplit, SplitScore]:
    """Score whatever predicts on every split of one group's questions.

    All splits but the first share their context, so they are predicted in one pass.
    """
    first, *others = (
        context_and_targets(table, split, context_questions, seed) for split in EVALUATION_SPLITS
    )
    found = predict(table, others[0][0], np.concatenate([targets for _, targets in others]))
    sizes = [len(targets) for _, targets in others]
    ends = np.cumsum(sizes).tolist()
    parts = [found.part(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    scored = map(score_targets, [predict(table, *first), *parts])
    return dict(zip(EVALUATION_SPLITS, scored, strict=True))
