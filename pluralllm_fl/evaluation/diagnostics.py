"""Does the predictor use its context? Controls that need several groups' answers at one place.

Written after a simulation, where all data is local; a deployment has no such file.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from pluralllm_fl.arrays import IntArray
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.evaluation.card import write_card
from pluralllm_fl.evaluation.opening import open_run, with_threads_of_run
from pluralllm_fl.evaluation.references import references_by_side
from pluralllm_fl.evaluation.scores import (
    ManyContexts,
    Targets,
    context_and_targets,
    evaluation_order,
    of_other_prompts,
    score_targets,
)
from pluralllm_fl.metrics import ordinal_alignment
from pluralllm_fl.predictor.episodes import GroupTable
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.runs.artefacts import RunDirectory
from pluralllm_fl.runs.record import RunRecord
from pluralllm_fl.workspace import Workspace

CONTEXT_SIZES = (0, 1, 2, 5, 10, 20, 50)
OTHER_GROUPS = 5  # strangers whose answers each group is shown in the wrong-context control
EXAMPLES_A_RANK = 2

Measure = Callable[[str], float | None]


@with_threads_of_run
def write_diagnostics(run: Path) -> dict[str, Any]:
    """Compute context curve, controls, references and examples; write ``diagnostics.json``.

    Raises
    ------
    ConfigError
        For a deployed run, whose data is nowhere together.
    """
    if RunRecord.read(run).mode == "deployment":
        raise ConfigError("they need every group's answers, which a deployment keeps apart.")
    workspace, predictor = open_run(run)
    result = diagnose(predictor, workspace)
    RunDirectory(run).write_json("diagnostics.json", result)
    write_card(run)
    return result


def diagnose(predictor: PreferencePredictor, workspace: Workspace) -> dict[str, Any]:
    """Return the content of ``diagnostics.json``."""
    n, predict = workspace.config.context_questions, ManyContexts(predictor)
    most = min(len(workspace.table(group)) // 2 for group in workspace.groups)
    sizes = [size for size in CONTEXT_SIZES if size <= most]

    @cache  # the curve usually holds both sizes of the gain
    def own(size: int) -> dict[str, float | None]:
        return _by_side(workspace, partial(own_alignment, predict, workspace, size=size))

    points = [own(size) for size in sizes]
    wrong = _by_side(workspace, partial(wrong_alignment, predict, workspace, size=n))
    return {
        "context_sizes": sizes,
        "context_curve": {
            "seen": [point["seen"] for point in points],
            "unseen": [point["unseen"] for point in points] if workspace.unseen else None,
        },
        "context_gain": _difference(own(n), own(0)),
        "wrong_context": _difference(own(n), wrong),
        "ordinal_alignment": _by_side(workspace, partial(_ordinal, predict, workspace)),
        "references": references_by_side(
            workspace, {"seen": workspace.seen, "unseen": workspace.unseen}
        ),
        "examples": _examples(predict, workspace),
    }


def _by_side(workspace: Workspace, measure: Measure) -> dict[str, float | None]:
    """Average a measure over the seen and the unseen groups; None where no group has it."""
    means: dict[str, float | None] = {}
    for side, groups in (("seen", workspace.seen), ("unseen", workspace.unseen)):
        values = [value for group in groups if (value := measure(group)) is not None]
        means[side] = float(np.mean(values)) if values else None
    return means


def _difference(
    first: dict[str, float | None], second: dict[str, float | None]
) -> dict[str, float | None]:
    return {
        side: None if a is None or (b := second[side]) is None else a - b
        for side, a in first.items()
    }


def _halves(workspace: Workspace, group: str) -> tuple[GroupTable, IntArray, IntArray]:
    """Return a group's table, its pool of context questions and its fixed targets."""
    table = workspace.table(group)
    order = evaluation_order(table, workspace.config.seed)
    targets = order[len(order) // 2 :]
    return table, of_other_prompts(table, order[: len(order) // 2], table, targets), targets


def own_alignment(predict: ManyContexts, workspace: Workspace, group: str, size: int) -> float:
    table, pool, targets = _halves(workspace, group)
    return score_targets(predict(table, pool[:size], targets)).alignment


def wrong_alignment(
    predict: ManyContexts, workspace: Workspace, group: str, size: int
) -> float | None:
    """Show the predictor other groups' answers, to prompts outside the targets."""
    table, _, targets = _halves(workspace, group)
    scores = []
    for stranger in _others(workspace, group):
        other = workspace.table(stranger)
        order = evaluation_order(other, workspace.config.seed)
        pool = of_other_prompts(other, order, table, targets)
        scores.append(predict.shown(other, pool[:size], table, targets).alignment.mean())
    return float(np.mean(scores)) if scores else None


def _others(workspace: Workspace, group: str) -> Sequence[str]:
    """Return the groups that follow on the same side, cyclically."""
    side = workspace.seen if group in workspace.seen else workspace.unseen
    at = side.index(group)
    return (side[at + 1 :] + side[:at])[:OTHER_GROUPS]


def _ordinal(predict: ManyContexts, workspace: Workspace, group: str) -> float | None:
    """Score the ordinal target questions by 1 - W1 / max W1; None without any."""
    targets = _paper_targets(predict, workspace, group)
    scores = []
    for place, index in enumerate(targets.index):
        positions = workspace.table(group).questions[index].ordinal
        if positions is not None:
            member = targets.question == place
            scores.append(
                ordinal_alignment(
                    targets.predicted[member], targets.true[member], np.array(positions)
                )
            )
    return float(np.mean(scores)) if scores else None


def _paper_targets(predict: ManyContexts, workspace: Workspace, group: str) -> Targets:
    table, config = workspace.table(group), workspace.config
    context, targets = context_and_targets(table, "all", config.context_questions, config.seed)
    return predict(table, context, targets)


def _examples(predict: ManyContexts, workspace: Workspace) -> list[dict[str, Any]]:
    """Pick the best, median and worst questions over the unseen (or, without any, seen) groups."""
    scored = []
    for group in workspace.unseen or workspace.seen:
        targets = _paper_targets(predict, workspace, group)
        scored += [(float(s), group, i, targets) for i, s in enumerate(targets.alignment)]
    scored.sort(key=lambda entry: (-entry[0], entry[1], entry[2]))
    middle = max(0, len(scored) // 2 - EXAMPLES_A_RANK // 2)
    ranks = {
        "best": scored[:EXAMPLES_A_RANK],
        "median": scored[middle : middle + EXAMPLES_A_RANK],
        "worst": scored[-EXAMPLES_A_RANK:],
    }
    return [
        _example(workspace, rank, *entry) for rank, entries in ranks.items() for entry in entries
    ]


def _example(
    workspace: Workspace, rank: str, score: float, group: str, place: int, targets: Targets
) -> dict[str, Any]:
    question = workspace.table(group).questions[targets.index[place]]
    member = targets.question == place
    return {
        "rank": rank,
        "group": group,
        "question": question.text,
        "options": list(question.options),
        "true": targets.true[member].tolist(),
        "predicted": targets.predicted[member].tolist(),
        "alignment": score,
    }
