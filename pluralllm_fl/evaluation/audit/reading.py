"""How closely an attacker who has the question texts reproduces a group's answers.

A *reading* is an array of the `FIGURES`, shape (figures,), each in 0..1: the mean alignment over
questions, and the shares of options that are predicted within 0.02 and within 0.05; a difference of
two readings lies in -1..1. NaN: there is nothing to read.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import rankdata, ttest_1samp, ttest_ind

from pluralllm_fl.arrays import FloatArray, IntArray
from pluralllm_fl.evaluation.scores import EvaluationSplit, Predict, Targets, context_and_targets
from pluralllm_fl.workspace import Workspace

TOLERANCES = (0.02, 0.05)
FIGURES = ("alignment", *(f"within_{tolerance}" for tolerance in TOLERANCES))
FEWEST = 5  # questions that a group's reading is a mean of; fewer are chance
NOTHING: FloatArray = np.full(len(FIGURES), np.nan)


class Examiner:
    """Holds the answers, and compares with them what an attacker predicts.

    Of a group that did not train, the questions that some seen group trained on count: another
    difference between the two kinds of groups would be one of questions.

    Attributes
    ----------
    trained_rows : ndarray of int, shape (questions,)
        First rows of these questions in the embedding table, in increasing order.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        tables = [workspace.table(group) for group in workspace.seen]
        rows = [table.first_row[table.members("train")] for table in tables]
        self.trained_rows: IntArray = np.unique(np.concatenate(rows))

    def targets(
        self, predict: Predict, group: str, split: EvaluationSplit, known: int
    ) -> Targets | None:
        """Predict a group's questions, `known` of its training answers given; None if too few."""
        table = self.workspace.table(group)
        context, asked = context_and_targets(table, split, known, self.workspace.config.seed)
        if split == "train":
            asked = asked[np.isin(table.first_row[asked], self.trained_rows)]
        return predict(table, context, asked) if len(asked) >= FEWEST else None

    def read(
        self, predict: Predict, group: str, split: EvaluationSplit = "train", known: int = 0
    ) -> FloatArray:
        """Return the reading of a group's questions in a split, shape (figures,)."""
        targets = self.targets(predict, group, split, known)
        return NOTHING if targets is None else reading(targets)


def reading(targets: Targets) -> FloatArray:
    """Compare predicted with true distributions: a reading, shape (figures,)."""
    error = np.abs(targets.predicted - targets.true)
    near = [float((error <= tolerance).mean()) for tolerance in TOLERANCES]
    return np.array([targets.alignment.mean(), *near])


def from_model(examiner: Examiner, predict: Predict, known: int) -> dict[str, Any]:
    """Read every group with the model in hand and `known` of the group's answers.

    Returns
    -------
    dict
        ``trained`` and ``new``: `sides` of the questions that seen groups trained on and of test
        questions. ``excess``: how much more the seen groups' trained questions stand out from
        their new ones than those of unseen groups do: free of some groups being easier.
    """
    workspace = examiner.workspace
    trained, new = (
        {group: examiner.read(predict, group, split, known) for group in workspace.groups}
        for split in ("train", "test")
    )
    excess = sides(workspace, {group: trained[group] - new[group] for group in trained})
    return {
        "known": known,
        "trained": sides(workspace, trained),
        "new": sides(workspace, new),
        "excess": {key: excess[key] for key in ("difference", "interval")},
        "by_group": {group: figures(row) for group, row in trained.items()},
    }


def membership(examiner: Examiner, predict: Predict) -> dict[str, float | None]:
    """Tell trained from held-out questions by how well they are predicted; AUC, chance 0.5.

    For groups that did not train the same questions are told apart: what they reach comes from the
    others' training on these questions, and only the difference is about the group.
    """
    workspace = examiner.workspace

    def auc(group: str) -> float:
        parts = [examiner.targets(predict, group, s, 0) for s in ("train", "validation", "test")]
        scores = [np.zeros(0) if part is None else part.alignment for part in parts]
        return area_under_curve(scores[0], np.concatenate(scores[1:]))

    values = {
        side: float(mean_reading(np.array([auc(g) for g in groups]).reshape(-1, 1))[0])
        for side, groups in (("seen", workspace.seen), ("unseen", workspace.unseen))
    }
    values["difference"] = values["seen"] - values["unseen"]
    return {key: None if np.isnan(value) else value for key, value in values.items()}


def area_under_curve(inside: FloatArray, outside: FloatArray) -> float:
    """Return the chance that a score inside is above one outside, ties half; NaN without any.

    ``U / (m n)`` of Mann and Whitney, for scores of shape (m,) and (n,).
    """
    if not len(inside) or not len(outside):
        return float("nan")
    ranks = rankdata([*inside, *outside])[: len(inside)]
    wins = ranks.sum() - len(inside) * (len(inside) + 1) / 2
    return float(wins / (len(inside) * len(outside)))


def sides(workspace: Workspace, readings: Mapping[str, FloatArray]) -> dict[str, Any]:
    """Return the mean readings of both sides, their difference and its 95% interval (Welch).

    `readings` are by group, of shape (figures,); the interval is that of the alignment.
    """
    seen, unseen = (
        np.array([readings[group] for group in groups]).reshape(-1, len(FIGURES))
        for groups in (workspace.seen, workspace.unseen)
    )
    return {
        "seen": figures(mean_reading(seen)),
        "unseen": figures(mean_reading(unseen)),
        "difference": figures(mean_reading(seen) - mean_reading(unseen)),
        "interval": interval(seen[:, 0], unseen[:, 0]),
    }


def interval(values: FloatArray, others: FloatArray | None = None) -> list[float] | None:
    """Return the 95% interval of a mean, or of a difference of means by Welch's t.

    Values and others are (groups,); NaN are left out. None where there are fewer than two of a
    kind.
    """
    one, *rest = [x[~np.isnan(x)] for x in (values, others) if x is not None]
    if min(map(len, (one, *rest))) < 2:
        return None
    with warnings.catch_warnings(action="ignore"):  # of values that are all alike
        test = ttest_ind(one, rest[0], equal_var=False) if rest else ttest_1samp(one, 0)
        bounds = np.array(test.confidence_interval(), dtype=np.float64)
    return bounds.tolist() if np.isfinite(bounds).all() else None


def figures(row: FloatArray) -> dict[str, float] | None:
    """Name the figures of a reading, (figures,); None: there is nothing to read."""
    return None if np.isnan(row).any() else dict(zip(FIGURES, map(float, row), strict=True))


def mean_reading(rows: FloatArray) -> FloatArray:
    """Average (groups, figures) over groups, (figures,), without those that have none to read."""
    kept = rows[~np.isnan(rows[:, 0])]
    mean: FloatArray = kept.mean(axis=0) if len(kept) else np.full(rows.shape[1], np.nan)
    return mean
