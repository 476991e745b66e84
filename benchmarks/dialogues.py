"""A second data set without a number set by hand: Global Dialogues, opinions on AI by segment.

Trains the default configuration on all questions of the seen segments, then shows it 0 to 50
answers of each unseen segment, over draws of these answers. Beside it the uniform guess and the
marginal: the seen segments' mean of raw answers to the same question. Prints a table, by kind of
segment too, and writes dialogues.json beside this file.

    python benchmarks/dialogues.py --dataset path/to/gd4.jsonl --split path/to/gd4_split.json
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from store import Measure, Run, Store, options, script, shared_facts, show
from trained import configured, train

from pluralllm_fl.evaluation.references import Reference, seen_mean
from pluralllm_fl.evaluation.scores import (
    beside_answers,
    context_and_targets,
    predict_targets,
    score_targets,
)
from pluralllm_fl.predictor.episodes import GroupTable
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.workspace import open_workspace

SIZES = (0, 20, 50)
DRAWS = 5
RECIPE = "ours"
EVERYTHING_TRAINS = ("validation-fraction=0.0", "test-fraction=0.0")


def run(dataset: str, split: str, changes: list[str], seed: int) -> dict[str, Run]:
    """Train on the seen segments; score every unseen one."""
    torch.set_num_threads(1)
    sides = json.loads(Path(split).read_text(encoding="utf-8"))
    seen, unseen = (";".join(sides[side]) for side in ("seen", "unseen"))
    config = configured(RECIPE, dataset, seed, changes)
    workspace = open_workspace(replace(config, seen_groups=seen, unseen_groups=unseen))
    predictor, marginal = train(RECIPE, workspace), seen_mean(workspace)
    groups = {
        group: {str(size): score(predictor, marginal, workspace.table(group), size, seed)
                for size in SIZES}
        for group in workspace.unseen
    }  # fmt: skip
    return {RECIPE: {"seed": seed, "groups": groups}}


def score(
    predictor: PreferencePredictor, marginal: Reference, table: GroupTable, size: int, seed: int
) -> dict[str, float]:
    """Score one segment on all questions but those shown, mean over draws of what is shown."""
    drawn = []
    for draw in range(DRAWS):
        context, targets = context_and_targets(table, "all", size, seed + 1000 * draw)
        ours = score_targets(predict_targets(predictor, table, context, targets))
        theirs = score_targets(beside_answers(marginal(table, context, targets), table, targets))
        drawn.append((ours.alignment, theirs.alignment, ours.uniform))
    names = ("alignment", "marginal", "uniform")
    return dict(zip(names, np.mean(drawn, axis=0).tolist(), strict=True))


def kind(segment: str) -> str:
    """Return what is before the colon: country, religion, …"""
    return segment.partition(":")[0]


def over_segments(size: int, name: str, of_kind: str, result: Run) -> float:
    """Average a score over the segments, or over those of one kind."""
    segments = result["groups"].items()
    return float(np.mean([s[str(size)][name] for g, s in segments if of_kind in ("", kind(g))]))


def gain(size: int, of_kind: str, result: Run) -> float:
    """Return the alignment minus the marginal's."""
    ours, theirs = (over_segments(size, n, of_kind, result) for n in ("alignment", "marginal"))
    return ours - theirs


def measures(kinds: list[str]) -> dict[str, Measure]:
    """Return all measures by their label."""
    found: dict[str, Measure] = {}
    for size in SIZES:
        for name in ("alignment", "marginal", "uniform"):
            found[f"{size} shown: {name}"] = partial(over_segments, size, name, "")
        found[f"{size} shown: alignment − marginal"] = partial(gain, size, "")
        for of_kind in kinds:
            found[f"{size} shown: {of_kind} − marginal"] = partial(gain, size, of_kind)
    return found


def main() -> None:
    """Run all seeds."""
    parser = options(__doc__, __file__, EVERYTHING_TRAINS, flags=("--dataset", "--dialogues"))
    parser.add_argument("--split", help="default: the data set's path with _split.json at its end")
    arguments = parser.parse_args()
    path = Path(arguments.dataset)
    split = arguments.split or str(path.with_name(f"{path.stem}_split.json"))
    store = Store(arguments.output, shared_facts(arguments))
    tasks = [(arguments.dataset, split, arguments.set, seed) for seed in range(arguments.seeds)]
    store.measure(run, tasks, [RECIPE], arguments.processes)
    kinds = sorted({kind(group) for group in store.runs[RECIPE][0]["groups"]})
    table: dict[str, dict[str, Any]] = {
        label: {RECIPE: store.over_seeds(RECIPE, measure)}
        for label, measure in measures(kinds).items()
    }
    store.write(table=table)
    show(f"{path.stem}, unseen segments", table, [RECIPE])


if __name__ == "__main__":
    script(main)
