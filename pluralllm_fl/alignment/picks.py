"""Best of n on a survey: how many of a group agree with what its predictor picks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pluralllm_fl.alignment.best_of_n import (
    SIZES,
    best_option,
    pick_distribution,
    require_candidates,
)
from pluralllm_fl.alignment.sheets import Sheet
from pluralllm_fl.arrays import FloatArray
from pluralllm_fl.metrics import alignment
from pluralllm_fl.preferences import Question


def agreement_by_size(
    papers: Sequence[Sheet], answers: Mapping[Question, FloatArray], sizes: Sequence[int] = SIZES
) -> dict[str, dict[int, dict[str, float]]]:
    """Return what picking of n answers reaches in each group, exactly: no answer is drawn.

    Parameters
    ----------
    answers : mapping of Question to ndarray, shape (options,)
        The policy's shares, from which the candidates come.
    sizes : sequence of int
        Numbers of candidates n.

    Returns
    -------
    dict
        Group -> n -> ``agreement``: expected share of the group that gave the picked answer;
        ``alignment`` of the picks' distribution with the group, which is another aim and falls
        where picks concentrate.
    """
    return {sheet.group: {n: _reached(sheet, answers, n) for n in sizes} for sheet in papers}


def _reached(sheet: Sheet, answers: Mapping[Question, FloatArray], n: int) -> dict[str, float]:
    picks = np.concatenate([pick_distribution(answers[q], p, n) for q, p, _ in _by_question(sheet)])
    return {
        "agreement": float(picks @ sheet.true / len(sheet.questions)),
        "alignment": float(alignment(picks, sheet.true, sheet.question).mean()),
    }


def survey_picks(
    papers: Sequence[Sheet], answers: Mapping[Question, FloatArray], n: int, seed: int
) -> list[dict[str, Any]]:
    """Draw n answers of the policy to each question and pick one for each group.

    All groups pick from the same candidates.

    Parameters
    ----------
    answers : mapping of Question to ndarray, shape (options,)
        The policy's shares; they are scaled to sum 1.

    Returns
    -------
    list of dict
        ``group``, ``prompt``, ``options``, ``candidates`` (n texts), ``pick`` and ``agree``, the
        share of the group that gave it.
    """
    require_candidates(n)
    rng = np.random.default_rng(seed)
    drawn = {q: rng.choice(len(p), size=n, p=p / p.sum()).tolist() for q, p in answers.items()}
    found = []
    for sheet in papers:
        for question, predicted, true in _by_question(sheet):
            pick = best_option(predicted, drawn[question])
            found.append({
                "group": sheet.group,
                "prompt": question.text,
                "options": list(question.options),
                "candidates": [question.options[i] for i in drawn[question]],
                "pick": question.options[pick],
                "agree": float(true[pick]),
            })  # fmt: skip
    return found


def _by_question(sheet: Sheet) -> list[tuple[Question, FloatArray, FloatArray]]:
    """Return each question with the predicted and the true shares of its options."""
    parts = map(sheet.by_question, (sheet.predicted, sheet.true))
    return list(zip(sheet.questions, *parts, strict=True))
