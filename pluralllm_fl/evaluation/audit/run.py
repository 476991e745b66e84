"""Audit a finished simulation run, whose data is at hand; writes ``audit.json``."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pluralllm_fl.errors import ConfigError
from pluralllm_fl.evaluation.audit.counterfactual import leave_one_out, mean_of_answers
from pluralllm_fl.evaluation.audit.reading import Examiner, from_model, membership
from pluralllm_fl.evaluation.audit.subject import (
    AuditedRun,
    OnWork,
    is_fedavg,
    kept,
    open_audited,
    train_again,
)
from pluralllm_fl.evaluation.audit.updates import Weights, from_updates
from pluralllm_fl.evaluation.card import write_card
from pluralllm_fl.evaluation.opening import with_threads_of_run
from pluralllm_fl.evaluation.scores import predict_targets
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.runs.artefacts import RunDirectory

KNOWN = (0, 20, 100)  # answers of the group that the attacker has
COUNTERFACTUAL_KNOWN = (0, 20)


@with_threads_of_run
def audit_run(
    run: Path, *, rounds: Sequence[int] = (), leave_out: int = 0, on_work: OnWork
) -> dict[str, Any]:
    """Measure what can be read of the training groups' answers; write ``audit.json``.

    Parameters
    ----------
    rounds : sequence of int
        Rounds whose updates are attacked; empty: the first, a middle one and the last.
    leave_out : int
        Seen groups without each of which the federation is trained once more.

    Returns
    -------
    dict
        ``model`` (per number of known answers), ``updates`` (per round), ``rounds_not_kept``,
        ``membership``, ``mean_of_answers`` and ``leave_one_out`` (None if not asked for).

    Raises
    ------
    ConfigError
        For a deployed run, whose data is nowhere together; rounds or groups that it did not have.
    ArtefactError
        When the run has no model, or its files are damaged.
    """
    subject = open_audited(run)
    workspace, predictor = subject.workspace, subject.predictor
    chosen = _rounds(subject, rounds)
    if leave_out > len(workspace.seen) or (leave_out and len(workspace.seen) < 2):
        raise ConfigError(
            f"--leave-one-out {leave_out}: the run had {len(workspace.seen)} seen groups; one of "
            "at least two can be left out."
        )
    examiner = Examiner(workspace)
    predict = partial(predict_targets, predictor)
    model = [from_model(examiner, predict, known) for known in KNOWN]
    received = {r: found for r in chosen if (found := kept(subject, r))}
    lost = [r for r in chosen if r not in received]
    whole = None
    if leave_out or (lost and is_fedavg(workspace)):
        whole, again = train_again(subject, lost, on_work)
        received |= again if is_fedavg(workspace) else {}
    result = {
        "seen": list(workspace.seen),
        "unseen": list(workspace.unseen),
        "model": [row for row in model if row["trained"]["seen"]],
        "updates": _updates(subject, examiner, received, on_work),
        "rounds_not_kept": [r for r in chosen if r not in received],
        "membership": membership(examiner, predict),
        "mean_of_answers": mean_of_answers(examiner, workspace.seen),
        "leave_one_out": _counterfactual(examiner, whole, leave_out, on_work),
    }
    RunDirectory(run).write_json("audit.json", result)
    write_card(run)
    return result


def _rounds(subject: AuditedRun, asked: Sequence[int]) -> list[int]:
    last = subject.rounds
    if wrong := [r for r in asked if not 1 <= r <= last]:
        raise ConfigError(f"--round {wrong[0]}: the run has the rounds 1 to {last}.")
    return sorted(set(asked or (1, (1 + last) // 2, last)))


def _updates(
    subject: AuditedRun,
    examiner: Examiner,
    received: dict[int, tuple[str, Weights]],
    on_work: OnWork,
) -> list[dict[str, Any]]:
    total, done = len(received) * len(subject.workspace.seen), 0

    def tick() -> None:
        nonlocal done
        done += 1
        on_work("attacking updates", done, total)

    return [
        from_updates(examiner, subject.predictor, weights, server_round, tick) | {"model": source}
        for server_round, (source, weights) in sorted(received.items())
    ]


def _counterfactual(
    examiner: Examiner, whole: PreferencePredictor | None, number: int, on_work: OnWork
) -> dict[str, Any] | None:
    """Leave out a random choice of the seen groups, the same in every audit of a run."""
    if not number or whole is None:
        return None
    config, seen = examiner.workspace.config, examiner.workspace.seen
    rng = np.random.default_rng(config.seed)
    groups = sorted(rng.choice(seen, number, replace=False).tolist())
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        on_work("training without a group", done, number * config.num_server_rounds)

    return leave_one_out(examiner, whole, groups, COUNTERFACTUAL_KNOWN, tick)
