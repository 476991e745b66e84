"""Everything that the predictor is compared with, on the same questions of the unseen groups."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np

from pluralllm_fl.arrays import IntArray
from pluralllm_fl.config import RunConfig
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.evaluation import baselines
from pluralllm_fl.evaluation.blocks import split_blocks
from pluralllm_fl.evaluation.probes import MLP_STEPS, mlp_probe, ridge_probe
from pluralllm_fl.evaluation.references import (
    Reference,
    agreement_memory,
    nearest_question,
    seen_mean,
    uniform,
)
from pluralllm_fl.evaluation.scores import (
    EVALUATION_SPLITS,
    EvaluationSplit,
    ManyContexts,
    Predict,
    SplitScore,
    Targets,
    beside_answers,
    score_splits,
)
from pluralllm_fl.predictor.episodes import GroupTable
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.workspace import Workspace

Train = Callable[
    [Workspace, RunConfig, baselines.OnRound], PreferencePredictor | list[PreferencePredictor]
]
Tick = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparator:
    """One line of the comparison.

    Parameters
    ----------
    name : str
    workspace : Workspace
    fit : callable
        Learns what there is to learn, calling back after each of `ticks` parts; returns what
        predicts. Of several, the scores are averaged.
    rounds, steps : int
        Rounds of communication, and optimiser steps; 0: none.
    ticks : int
    """

    name: str
    workspace: Workspace
    fit: Callable[[Tick], Sequence[Predict]]
    rounds: int = 0
    steps: int = 0
    ticks: int = 1


def comparators(workspace: Workspace, published: Workspace | None = None) -> list[Comparator]:
    """List all comparators, the references first.

    Parameters
    ----------
    workspace : Workspace
        Its config is that of the learned ones.
    published : Workspace or None
        Of the published recipe, which embeds by a template of its own; None: leave it out.

    Raises
    ------
    ConfigError
        Without an unseen group there is nothing to compare on.
    """
    if not workspace.unseen:
        raise ConfigError("Comparators are scored on unseen groups: name some with --unseen.")
    references: dict[str, Callable[[Workspace], Reference]] = {
        "uniform": lambda _: uniform,
        "nearest question": nearest_question,
        "ridge probe": ridge_probe,
        "MLP probe": mlp_probe,
        "seen mean (oracle)": seen_mean,
        "agreement memory (oracle)": agreement_memory,
    }
    found = [_fixed(name, workspace, build) for name, build in references.items()]
    found.append(_trained("local only", workspace, baselines.local_only))
    found.append(_trained("centralised", workspace, baselines.centralised))
    found.append(_trained("federated", workspace, baselines.federated))
    random = baselines.with_random_vectors(workspace)
    found.append(_trained("random embeddings", random, baselines.federated))
    if published is not None:
        for name, train in (
            ("published, local only", baselines.local_only),
            ("published, centralised", baselines.centralised),
            ("published, federated", baselines.federated),
        ):
            found.append(_trained(name, published, train))
    return found


def compare(comparator: Comparator, tick: Tick) -> dict[str, Any]:
    """Fit a comparator and score it on the unseen groups.

    Returns
    -------
    dict
        Name, rounds, steps, seconds (of fitting alone) and ``unseen``, the block of scores as in
        summary.json.
    """
    start = time.perf_counter()
    predictors = comparator.fit(tick)
    seconds = time.perf_counter() - start
    workspace = comparator.workspace
    scores = {group: _scores(predictors, workspace, group) for group in workspace.unseen}
    return {
        "name": comparator.name,
        "rounds": comparator.rounds,
        "steps": comparator.steps,
        "seconds": seconds,
        "unseen": split_blocks(scores),
    }


def _fixed(name: str, workspace: Workspace, build: Callable[[Workspace], Reference]) -> Comparator:
    def fit(tick: Tick) -> Sequence[Predict]:
        reference = build(workspace)
        tick()
        return [partial(_ask, reference)]

    steps = MLP_STEPS if build is mlp_probe else 0
    return Comparator(name=name, workspace=workspace, fit=fit, steps=steps)


def _trained(name: str, workspace: Workspace, train: Train) -> Comparator:
    config = workspace.config

    def fit(tick: Tick) -> Sequence[Predict]:
        trained = train(workspace, config, lambda *_: tick())
        predictors = trained if isinstance(trained, list) else [trained]
        return [ManyContexts(predictor) for predictor in predictors]

    rounds = config.num_server_rounds
    return Comparator(
        name=name,
        workspace=workspace,
        fit=fit,
        rounds=rounds if train is baselines.federated else 0,
        steps=rounds * config.local_steps,
        ticks=rounds * (len(workspace.seen) if train is baselines.local_only else 1),
    )


def _ask(reference: Reference, table: GroupTable, context: IntArray, targets: IntArray) -> Targets:
    return beside_answers(reference(table, context, targets), table, targets)


def _scores(
    predictors: Sequence[Predict], workspace: Workspace, group: str
) -> dict[EvaluationSplit, SplitScore]:
    """Average the scores of several predictors, field by field."""
    config, table = workspace.config, workspace.table(group)
    shown, seed = config.context_questions, config.seed
    each = [score_splits(p, table, context_questions=shown, seed=seed) for p in predictors]
    return {split: _mean([scores[split] for scores in each]) for split in EVALUATION_SPLITS}


def _mean(scores: Sequence[SplitScore]) -> SplitScore:
    if len(scores) == 1:
        return scores[0]
    # All scored the same targets. The mean of several intervals' bounds is no interval of the mean.
    measures = [f.name for f in fields(SplitScore) if f.type is float]
    means = {name: float(np.mean([getattr(s, name) for s in scores])) for name in measures}
    return replace(scores[0], **means | {"low": math.nan, "high": math.nan})  # type: ignore[arg-type]
