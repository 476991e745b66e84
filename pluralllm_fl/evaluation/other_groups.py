"""How a finished run's predictor serves groups that took no part in it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pluralllm_fl.errors import ConfigError
from pluralllm_fl.evaluation.blocks import split_blocks
from pluralllm_fl.evaluation.opening import (
    open_run,
    run_config,
    with_threads_of_run,
)
from pluralllm_fl.evaluation.references import references_by_side
from pluralllm_fl.evaluation.scores import evaluate_group
from pluralllm_fl.runs.record import RunRecord


@with_threads_of_run
def evaluate_run(
    run: Path,
    dataset: str,
    groups: tuple[str, ...] = (),
    context_questions: int | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Score a trained predictor on groups that it did not train on, without training.

    Parameters
    ----------
    groups : tuple of str
        Empty: every group, but for those that trained if `dataset` is the run's own.
    context_questions : int or None
        Answers shown of each group; None: as in the run.
    seed : int or None
        Draw of the shown answers; None: the run's. The split of questions stays the run's, so
        that no question it trained on counts as a test question.

    Returns
    -------
    dict
        ``{"unseen": block, "references": …}`` as in summary.json and diagnostics.json; groups named
        like one that trained are in a block of their own under ``seen``. Of a data set other than
        the run's, no question counts as trained, and the marginal is not known.

    Raises
    ------
    ConfigError
        For unknown groups, or if every group took part in training.
    """
    trained = run_config(run)
    shown = trained.context_questions if context_questions is None else context_questions
    workspace, predictor = open_run(
        run, dataset=dataset, seen_groups=";".join(groups), unseen_groups="",
        context_questions=shown,
    )  # fmt: skip
    participants = set(RunRecord.read(run, "seen").seen)
    own = dataset == trained.dataset
    left_out = participants if own else set()
    chosen = groups or tuple(g for g in workspace.groups if g not in left_out)
    if not chosen:
        raise ConfigError(f"Every group of {dataset} took part in training; name some with groups.")
    draw = trained.seed if seed is None else seed
    scores = {
        group: evaluate_group(
            predictor,
            workspace.table(group),
            context_questions=shown,
            seed=draw,
        )
        for group in chosen
    }
    sides = {
        "seen": {g: score for g, score in scores.items() if g in participants},
        "unseen": {g: score for g, score in scores.items() if g not in participants},
    }
    found: dict[str, Any] = {side: split_blocks(s) for side, s in sides.items() if s}
    if not own:
        for block in filter(None, found.values()):
            block["trained_questions"] = None
    # The marginal is of the groups that trained, whichever are asked; the targets are those of the
    # draw. The tables, which the workspaces share, keep the run's split of questions.
    answered = tuple(sorted(participants & set(workspace.dataset.groups)))
    of_run = replace(workspace, seen=answered, config=replace(workspace.config, seed=draw))
    found["references"] = references_by_side(of_run, {s: sides[s] for s in found}, marginal=own)
    return found
