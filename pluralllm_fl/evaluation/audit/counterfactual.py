"""The same federation without one group: what its taking part gives away, and nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from pluralllm_fl.arrays import FloatArray, IntArray
from pluralllm_fl.evaluation.audit.reading import Examiner, figures, interval, mean_reading
from pluralllm_fl.evaluation.baselines import federated
from pluralllm_fl.evaluation.references import seen_mean
from pluralllm_fl.evaluation.scores import Targets, beside_answers, predict_targets
from pluralllm_fl.predictor.episodes import GroupTable
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.workspace import Workspace

Pair = tuple[FloatArray, FloatArray]  # readings with a group and without, (figures,) each


def leave_one_out(
    examiner: Examiner,
    whole: PreferencePredictor,
    groups: Sequence[str],
    sizes: Sequence[int],
    tick: Callable[[], None],
) -> dict[str, Any]:
    """Train once more without each of these groups, and read it with either model.

    Parameters
    ----------
    whole : PreferencePredictor
        Trained by `baselines.federated` on all seen groups: both sides of a pair are trained alike.
    sizes : sequence of int
        Numbers of the group's answers that the attacker knows.
    """
    workspace = examiner.workspace
    pairs: dict[int, list[Pair]] = {known: [] for known in sizes}
    for group in groups:
        left = without_group(workspace, group)
        without = federated(left, workspace.config, lambda *_: tick()).eval()
        for known in sizes:
            first, second = (
                examiner.read(partial(predict_targets, model), group, known=known)
                for model in (whole, without)
            )
            pairs[known].append((first, second))
    return {
        "groups": list(groups),
        "model": [{"known": known} | paired(found) for known, found in pairs.items()],
        "mean_of_answers": mean_of_answers(examiner, groups),
    }


def without_group(workspace: Workspace, group: str) -> Workspace:
    """Move a seen group to the unseen."""
    seen = tuple(g for g in workspace.seen if g != group)
    return replace(workspace, seen=seen, unseen=tuple(sorted((*workspace.unseen, group))))


def mean_of_answers(examiner: Examiner, groups: Sequence[str]) -> dict[str, Any]:
    """Read groups from the seen groups' mean raw answer, with and without the group itself.

    A part of any average: a model that has learned nothing but the mean gives away as much.
    """
    reference = seen_mean(examiner.workspace)

    def without(table: GroupTable, context: IntArray, targets: IntArray) -> Targets:
        return beside_answers(reference(table, context, targets), table, targets)

    def whole(table: GroupTable, context: IntArray, targets: IntArray) -> Targets:
        # The reference leaves out whoever asks; nobody is called "".
        return without(replace(table, group=""), context, targets)

    return paired([(examiner.read(whole, g), examiner.read(without, g)) for g in groups])


def paired(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return mean readings with and without, and their difference with its 95% interval.

    The readings of each pair are (figures,); the interval is that of the alignment.
    """
    first, second = (np.array(rows) for rows in zip(*pairs, strict=True))
    difference = first - second
    return {
        "with": figures(mean_reading(first)),
        "without": figures(mean_reading(second)),
        "difference": figures(mean_reading(difference)),
        "interval": interval(difference[:, 0]),
    }
