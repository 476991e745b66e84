"""Another survey, without training again: new groups, new questions.

Trains on the paper's 8 countries, then shows the predictor 0 to 50 answers of each group of the
second survey. Prints the alignment, its margin over the uniform guess and how many groups fall
below that, and writes transfer.json beside this file.

    python benchmarks/transfer.py --dataset path/to/global_opinions.csv \\
        --survey path/to/atp_w41.jsonl
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from store import Measure, Run, Store, options, script, shared_facts, show
from trained import HISTORY, prepare, train

from pluralllm_fl.evaluation.scores import context_and_targets, predict_targets, score_targets
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.workspace import Workspace, open_workspace

SIZES = (0, 5, 20, 50)
RECIPE = "ours"


def run(dataset: str, survey: str, changes: list[str], seed: int) -> dict[str, Run]:
    """Train our recipe; score it on every group of the other survey."""
    workspace = prepare(RECIPE, dataset, seed, changes)
    predictor = train(RECIPE, workspace)
    # Without context-questions, a group with few answers counts where these suffice.
    elsewhere = {"dataset": survey, "seen_groups": "", "unseen_groups": ""}
    other = open_workspace(replace(workspace.config, context_questions=0, **elsewhere))
    result = {
        "seed": seed,
        "groups": {str(size): by_group(predictor, other, size) for size in SIZES},
    }
    return {RECIPE: result}


def by_group(
    predictor: PreferencePredictor, survey: Workspace, size: int
) -> dict[str, dict[str, float]]:
    """Score every group: `size` random answers are shown, all other questions are targets.

    Groups without other questions are left out.
    """
    found = {}
    for group in survey.groups:
        table = survey.table(group)
        if len(table) <= size:
            continue
        chosen = context_and_targets(table, "all", size, survey.config.seed)
        score = score_targets(predict_targets(predictor, table, *chosen))
        found[group] = {"alignment": score.alignment, "uniform": score.uniform}
    return found


def summary(size: int) -> dict[str, Measure]:
    """Return the measures over groups with so many answers shown; None if no group has them."""

    def over_groups(measure: Callable[[Any, Any], Any]) -> Measure:
        def measured(result: Run) -> float | None:
            groups = result["groups"][str(size)].values()
            uniform = np.array([group["uniform"] for group in groups])
            margin = np.array([group["alignment"] for group in groups]) - uniform
            return float(measure(uniform, margin)) if groups else None

        return measured

    return {
        f"{size} shown: alignment": over_groups(lambda uniform, margin: (uniform + margin).mean()),
        f"{size} shown: uniform": over_groups(lambda uniform, _: uniform.mean()),
        f"{size} shown: mean margin over uniform": over_groups(lambda _, margin: margin.mean()),
        f"{size} shown: smallest margin": over_groups(lambda _, margin: margin.min()),
        f"{size} shown: groups below uniform": over_groups(lambda _, margin: (margin < 0).sum()),
    }


def main() -> None:
    """Run all seeds."""
    parser = options(__doc__, __file__)
    parser.add_argument("--survey", required=True, help="the other survey, OpinionQA as a file")
    arguments = parser.parse_args()
    about = shared_facts(arguments) | {"survey": Path(arguments.survey).name}
    store = Store(arguments.output, about)
    tasks = [
        (arguments.dataset, arguments.survey, arguments.set, seed)
        for seed in range(arguments.seeds)
    ]
    store.measure(run, tasks, [RECIPE], arguments.processes)
    measures = {label: measure for size in SIZES for label, measure in summary(size).items()}
    table = {
        label: {name: store.over_seeds(name, measure) for name in store.runs}
        | {f"{RECIPE} − {HISTORY}": store.paired((RECIPE, measure), (HISTORY, measure))}
        for label, measure in measures.items()
    }
    store.write(table=table)
    show(f"{Path(arguments.survey).stem}, no training", table, list(next(iter(table.values()))))


if __name__ == "__main__":
    script(main)
