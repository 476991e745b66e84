"""What a policy is examined on: each group's answers to drawn questions, flat as in `metrics`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from pluralllm_fl.alignment.prompts import nameable
from pluralllm_fl.alignment.targets import Subject, context_of, questions_of
from pluralllm_fl.arrays import FloatArray, IntArray, owners
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.evaluation.references import seen_mean
from pluralllm_fl.preferences import Question, QuestionSplit
from pluralllm_fl.workspace import Workspace

Kind = Literal["trained", "new"]
SPLITS: dict[Kind, QuestionSplit] = {"trained": "train", "new": "test"}


@dataclass(frozen=True)
class Sheet:
    """What one group answered of the questions drawn, and what the predictor says.

    Parameters
    ----------
    group, side, kind : str
        Side is "seen" or "unseen"; kind as in `SPLITS`.
    questions : tuple of Question
        Those that the group answered, none of which the predictor was shown.
    true, marginal, predicted : ndarray, shape (N,)
        Shares of all options: the group's answers, the seen groups' mean answer (an oracle), the
        predictor's.
    """

    group: str
    side: str
    kind: Kind
    questions: tuple[Question, ...]
    true: FloatArray
    marginal: FloatArray
    predicted: FloatArray

    @cached_property
    def question(self) -> IntArray:
        """Index 0..Q-1 of each option's question, shape (N,)."""
        return owners([len(q.options) for q in self.questions])

    def by_question(self, values: FloatArray) -> list[FloatArray]:
        """Return the parts of flat values, (N,): one a question, (options,)."""
        return np.split(values, np.flatnonzero(np.diff(self.question)) + 1)

    def flat(self, answers: Mapping[Question, FloatArray]) -> FloatArray:
        """Lay out answers by question, (options,) each, in the order of this sheet, (N,)."""
        return np.concatenate([answers[q] for q in self.questions])


def draw_questions(workspace: Workspace, kind: Kind, count: int, seed: int) -> list[Question]:
    """Draw questions that letters can name and that a group of the run answered.

    Raises
    ------
    ConfigError
        For a count below 1, or if the run has no such question.
    """
    if count < 1:
        raise ConfigError(f"questions = {count}: must be at least 1.")
    held = [q for q in questions_of(workspace, workspace.groups, SPLITS[kind]) if nameable(q)]
    if not held:
        raise ConfigError(
            f"The run has no {kind} question that letters could name"
            + (": it trained on all of them (--final)." if kind == "new" else ".")
        )
    drawn = np.random.default_rng(seed).permutation(len(held))[:count]
    return [held[i] for i in sorted(drawn)]


def sheets(subject: Subject, questions: Mapping[Kind, Sequence[Question]]) -> list[Sheet]:
    """Return a sheet for every group and kind of questions of which it answered any."""
    workspace = subject.workspace
    marginal = seen_mean(workspace)
    found = []
    for name, group in subject.groups.items():
        table, shown = workspace.table(name), context_of(workspace, name).answers
        place = {q: i for i, q in enumerate(table.questions)}
        side = "seen" if name in workspace.seen else "unseen"
        for kind, drawn in questions.items():
            own = tuple(q for q in drawn if q in place and q not in shown)
            if not own:
                continue
            targets = np.array([place[q] for q in own], dtype=np.int64)
            found.append(
                Sheet(
                    name, side, kind, own,
                    true=table.answers(targets).astype(np.float64),
                    marginal=marginal(table, targets[:0], targets),
                    predicted=np.concatenate(group.predict_proba(own)),
                )
            )  # fmt: skip
    return found


def shares_for_everyone(papers: Sequence[Sheet]) -> dict[Question, FloatArray]:
    """Average the shares predicted for the groups that answered a question, (options,) each.

    One answer for all, of the same shape.
    """
    found: dict[Question, list[FloatArray]] = {}
    for sheet in papers:
        for q, p in zip(sheet.questions, sheet.by_question(sheet.predicted), strict=True):
            found.setdefault(q, []).append(p)
    return {q: np.asarray(np.mean(p, axis=0), dtype=np.float64) for q, p in found.items()}
