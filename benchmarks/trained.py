"""The recipes that the benchmarks compare, and the measures taken of a trained predictor."""

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pluralllm_fl.config import RunConfig, default_run_config
from pluralllm_fl.datasets.globalopinionqa import UNSEEN
from pluralllm_fl.evaluation.baselines import OnRound, centralised, federated
from pluralllm_fl.evaluation.blocks import split_blocks
from pluralllm_fl.evaluation.diagnostics import own_alignment, wrong_alignment
from pluralllm_fl.evaluation.references import reference_alignment, seen_mean
from pluralllm_fl.evaluation.scores import ManyContexts, evaluate_group, evaluation_order
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.workspace import Workspace, open_workspace

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = tomllib.loads((ROOT / "recipes" / "published.toml").read_text(encoding="utf-8"))
MANY = "ours, 66 seen"
HISTORY = "prototypes (history)"  # runs of the default before this one: kept, never measured again
# The shortest to train first.
RECIPES: dict[str, tuple[Callable[..., PreferencePredictor], dict[str, Any]]] = {
    "ours": (federated, {}),
    "ours, centralised": (centralised, {}),
    "published, centralised": (centralised, PUBLISHED),
    "published": (federated, PUBLISHED),
    MANY: (
        federated,
        {
            "unseen-groups": ";".join(UNSEEN),
            "num-server-rounds": 30,
            "strategy-args": '{"fraction_train": 0.182}',  # 12 train in a round
        },
    ),
}
SIZES = (0, 1, 2, 5, 10, 20, 50, 100)
DRAWS = 3  # contexts of each size; a draw's wrong context is of another group each time


def configured(name: str, dataset: str, seed: int, changes: Sequence[str]) -> RunConfig:
    """Return the config of a recipe."""
    values = default_run_config() | RECIPES[name][1]
    values |= {"dataset": dataset, "seed": seed, "device": "cpu"}  # a run has one core
    for change in changes:  # a later one wins
        values |= tomllib.loads(change)
    return RunConfig.from_run_config(values)


def prepare(name: str, dataset: str, seed: int, changes: Sequence[str]) -> Workspace:
    """Read and embed the data for one run, which will use one core."""
    torch.set_num_threads(1)
    return open_workspace(configured(name, dataset, seed, changes))


def train(
    name: str, workspace: Workspace, on_round: OnRound = lambda *_: None
) -> PreferencePredictor:
    """Train a recipe in this process."""
    return RECIPES[name][0](workspace, workspace.config, on_round).eval()


def unseen_block(predictor: PreferencePredictor, workspace: Workspace) -> dict[str, Any]:
    """Score the unseen groups as a run does: the block of summary.json."""
    config = workspace.config
    scores = {
        group: evaluate_group(
            predictor,
            workspace.table(group),
            context_questions=config.context_questions,
            seed=config.seed,
        )
        for group in workspace.unseen
    }
    block = split_blocks(scores)
    assert block is not None, "the split has unseen groups"
    return block


def all_measures(predictor: PreferencePredictor, workspace: Workspace) -> dict[str, float]:
    """Return the measures of docs/metrics.md on the unseen groups."""
    unseen, size = unseen_block(predictor, workspace), workspace.config.context_questions
    predict = ManyContexts(predictor)

    def mean(measure: Callable[[str], float | None]) -> float:
        values = [value for g in workspace.unseen if (value := measure(g)) is not None]
        return float(np.mean(values))

    own = mean(lambda g: own_alignment(predict, workspace, g, size))
    remembered = seen_mean(workspace)
    return {
        "unseen alignment": unseen["alignment"],
        "unseen, test questions": unseen["test_questions"]["alignment"],
        "CoV of unseen groups": unseen["cov"],
        "worst unseen group": unseen["min"],
        f"context gain, {size} questions": own
        - mean(lambda g: own_alignment(predict, workspace, g, 0)),
        "own minus wrong context": own
        - mean(lambda g: wrong_alignment(predict, workspace, g, size)),
        "seen mean (raw answers)": mean(lambda g: reference_alignment(workspace, remembered, g)),
        "uniform": unseen["uniform"],
    }


@torch.no_grad()
def context_curve(
    predictor: PreferencePredictor, workspace: Workspace, sizes: Sequence[int] = SIZES
) -> list[dict[str, float]]:
    """Score the unseen groups with contexts of their own and of other groups, by size.

    The targets are a fixed half of each group's questions; contexts come from the other half, and
    of another group from its questions outside the targets. A draw for which a group has too few
    answers is left out, and so is a side without any.
    """
    predict = ManyContexts(predictor)
    return [{"size": size} | _sides(predict, workspace, size) for size in sizes]


def _sides(predict: ManyContexts, workspace: Workspace, size: int) -> dict[str, float]:
    seed, groups = workspace.config.seed, workspace.unseen
    scores: dict[str, list[float]] = {"own": [], "wrong": []}
    for at, group in enumerate(groups):
        table = workspace.table(group)
        order = evaluation_order(table, seed)
        targets = order[len(order) // 2 :]
        asked = {table.questions[i] for i in targets}
        for draw in range(DRAWS if size else 1):
            shown_by = {"own": group}
            if strangers := groups[at + 1 :] + groups[:at]:
                shown_by["wrong"] = strangers[draw % len(strangers)]
            for side, shown in shown_by.items():
                answers = workspace.table(shown)
                drawn = evaluation_order(answers, seed + 1000 * draw)
                pool = [i for i in drawn if answers.questions[i] not in asked][:size]
                if len(pool) < size:
                    continue
                found = predict.shown(answers, np.array(pool, dtype=np.int64), table, targets)
                scores[side].append(float(found.alignment.mean()))
    return {side: float(np.mean(values)) for side, values in scores.items() if values}
