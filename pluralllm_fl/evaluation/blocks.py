"""Per-group scores of one side gathered into a block, as events and summary.json hold it."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pluralllm_fl.evaluation.scores import PAIR_SHARES, SHARES, EvaluationSplit, SplitScore
from pluralllm_fl.evaluation.standing import FEWEST_FOR_INTERVAL
from pluralllm_fl.metrics import bootstrap_interval, fairness


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


def group_block(
    alignment: Mapping[str, float],
    questions: Mapping[str, int],
    uniform: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
) -> dict[str, Any]:
    """Gather the per-group scores of one side into the block that artefacts hold.

    ``alignment`` is the macro mean over groups, ``alignment_micro`` weights groups by their
    number of questions, ``interval`` is a bootstrap over groups; None for fewer than
    `FEWEST_FOR_INTERVAL` groups. ``intervals`` leaves out groups with fewer questions than that.
    """
    groups = sorted(alignment)
    enough = len(groups) >= FEWEST_FOR_INTERVAL
    bounded = [g for g in groups if g in intervals and questions[g] >= FEWEST_FOR_INTERVAL]
    scores = np.array([alignment[g] for g in groups])
    counts = np.array([questions[g] for g in groups])
    return {
        "alignment": float(scores.mean()),
        "alignment_micro": float(scores @ counts / counts.sum()),
        **fairness(scores),
        "interval": list(bootstrap_interval(scores, seed=0)) if enough else None,
        "uniform": float(np.mean([uniform[g] for g in groups])),
        "by_group": {g: float(alignment[g]) for g in groups},
        "uniform_by_group": {g: float(uniform[g]) for g in groups},
        "intervals": {g: list(map(float, intervals[g])) for g in bounded},
        "questions": {g: int(questions[g]) for g in groups},
    }


def _block(scores: Mapping[str, SplitScore]) -> dict[str, Any] | None:
    held = {group: score for group, score in scores.items() if score.questions}
    if not held:
        return None
    block = group_block(
        {g: s.alignment for g, s in held.items()},
        {g: s.questions for g, s in held.items()},
        {g: s.uniform for g, s in held.items()},
        {g: (s.low, s.high) for g, s in held.items() if not math.isnan(s.low)},
    )
    means = {name: sum(getattr(s, name) for s in held.values()) / len(held) for name in SHARES}
    return block | means | _pairs(held)


def _pairs(scores: Mapping[str, SplitScore]) -> dict[str, Any]:
    """Return the measures of pairs, by group and as means over groups; None without any pair."""
    decided = {group: score for group, score in scores.items() if score.pairs}
    found: dict[str, Any] = {}
    for name in PAIR_SHARES:
        by_group = {group: getattr(score, name) for group, score in decided.items()}
        found[name] = sum(by_group.values()) / len(by_group) if by_group else None
        found[f"{name}_by_group"] = by_group
    return found
