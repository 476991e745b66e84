"""Generated summaries: are pairs of new articles' summaries put in an unseen group's order?

Trains the default configuration on what seen groups judge. Unseen groups show it 0 or 20 judged
pairs. Beside it the ceiling: the accuracy of the true tastes against the same judgements, some
of which go against them. A seed draws groups, pairs, judgements and the held-out articles. Prints a
table and writes summaries.json beside this file.

    python benchmarks/summaries.py
"""

import numpy as np
from store import Run, one_recipe, script
from trained import prepare, train

from pluralllm_fl.arrays import IntArray
from pluralllm_fl.datasets.synthetic_summaries import NAME, truth
from pluralllm_fl.evaluation.scores import (
    EvaluationSplit,
    beside_answers,
    context_and_targets,
    predict_targets,
    score_targets,
)
from pluralllm_fl.predictor.episodes import GroupTable
from pluralllm_fl.workspace import spec_of

RECIPE = "ours"
SIZES = (0, 20)
SPLITS: tuple[tuple[str, EvaluationSplit], ...] = (("new articles", "test"), ("all", "all"))
MORE_TO_SCORE = ("test-fraction=0.2",)


def run(dataset: str, changes: list[str], seed: int) -> dict[str, Run]:
    """Train and score."""
    workspace = prepare(RECIPE, dataset, seed, changes)
    predictor, known = train(RECIPE, workspace), truth(spec_of(workspace.config))

    def best(table: GroupTable, targets: IntArray) -> float:
        true = np.concatenate([known[table.group][table.questions[i]] for i in targets])
        return score_targets(beside_answers(true, table, targets)).pairwise_accuracy

    measures: dict[str, float] = {}
    for label, split in SPLITS:
        tables = [workspace.table(group) for group in workspace.unseen]
        for size in SIZES:
            asked = [context_and_targets(table, split, size, seed) for table in tables]
            scores = [
                score_targets(predict_targets(predictor, table, *parts))
                for table, parts in zip(tables, asked, strict=True)
            ]
            accuracy = float(np.mean([score.pairwise_accuracy for score in scores]))
            ends = zip(tables, asked, strict=True)
            ceiling = float(np.mean([best(table, targets) for table, (_, targets) in ends]))
            measures |= {
                f"{label}, {size} shown: pairs in order": accuracy,
                f"{label}, {size} shown: ceiling": ceiling,
                f"{label}, {size} shown: share of the ceiling": accuracy / ceiling,
                f"{label}, {size} shown: calibration error": float(
                    np.mean([score.calibration_error for score in scores])
                ),
            }
    return {RECIPE: {"seed": seed, "measures": measures}}


def main() -> None:
    """Run all seeds."""
    one_recipe(
        __doc__,
        __file__,
        run,
        RECIPE,
        "summaries, unseen groups",
        dataset=NAME,
        changes=MORE_TO_SCORE,
    )


if __name__ == "__main__":
    script(main)
