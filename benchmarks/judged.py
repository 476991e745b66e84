"""Real judgements of texts: are pairs of candidates put in the order of raters who took no part?

Trains the default configuration on some raters' lists. Unseen raters show it 0 or 20 of theirs; it
is scored on prompts that nobody trained on. Beside it the uniform guess, and the seen raters' mean
judgement of the very prompt: what one can know who reads raw judgements. A seed draws the unseen
raters and the held-out prompts. Prints a table and writes judged_NAME.json beside this file; it
holds figures alone.

    python benchmarks/judged.py --dataset squality:path/to/human_eval.jsonl
    python benchmarks/judged.py --dataset mqm:path/to/ratings.tsv.tar.gz
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from store import Run, Store, measured, options, script, show
from trained import configured, train

from pluralllm_fl.datasets import load_dataset, rated_source
from pluralllm_fl.evaluation.references import seen_mean, uniform
from pluralllm_fl.evaluation.scores import (
    SplitScore,
    beside_answers,
    context_and_targets,
    predict_targets,
    score_targets,
)
from pluralllm_fl.preferences import split_groups
from pluralllm_fl.workspace import Workspace, text_embedder

RECIPE = "ours"
SIZES = (0, 20)
MORE_TO_SCORE = ("test-fraction=0.3",)


def opened(source: str, changes: list[str], seed: int) -> Workspace:
    """Read, split and embed."""
    torch.set_num_threads(1)
    config = configured(RECIPE, source, seed, changes)
    dataset = load_dataset(source)
    enough = {n: g for n, g in dataset.groups.items() if len(g) > 2 * config.context_questions}
    dataset = replace(dataset, groups=enough)
    seen, unseen = split_groups(dataset, (), (), config.unseen_fraction, seed)
    embedder = text_embedder(config)
    table = embedder.embed(dataset.questions)
    vectors = torch.from_numpy(table.vectors)
    return Workspace(
        config, dataset, seen, unseen, vectors, dict(table.first_row), embedder.fingerprint
    )


def run(source: str, changes: list[str], seed: int) -> dict[str, Run]:
    """Train and score."""
    workspace = opened(source, changes, seed)
    predictor, marginal = train(RECIPE, workspace), seen_mean(workspace)
    measures: dict[str, float] = {}
    for size in SIZES:
        scores: dict[str, list[SplitScore]] = {"ours": [], "seen raters' mean": [], "uniform": []}
        for table in map(workspace.table, workspace.unseen):
            context, targets = context_and_targets(table, "test", size, seed)
            guesses = {
                "seen raters' mean": marginal(table, context, targets),
                "uniform": uniform(table, context, targets),
            }
            scores["ours"].append(
                score_targets(predict_targets(predictor, table, context, targets))
            )
            for name, guess in guesses.items():
                scores[name].append(score_targets(beside_answers(guess, table, targets)))
        for name, found in scores.items():
            for measure in ("pairwise_accuracy", "calibration_error", "alignment"):
                value = float(np.mean([getattr(score, measure) for score in found]))
                measures[f"{size} shown: {measure.replace('_', ' ')}, {name}"] = value
        measures[f"{size} shown: decided pairs"] = sum(s.pairs for s in scores["ours"])
    return {RECIPE: {"seed": seed, "measures": measures}}


def main() -> None:
    """Run all seeds."""
    parser = options(__doc__, __file__, MORE_TO_SCORE)
    arguments = parser.parse_args()
    form, path = rated_source(arguments.dataset)
    name = form or Path(path).stem
    dataset = load_dataset(arguments.dataset)
    about = {
        "dataset": Path(path).name,
        "fingerprint": dataset.fingerprint,
        "groups": len(dataset.groups),
        "prompts": len({question.text for question in dataset.questions}),
        "changes": arguments.set,
    }
    store = Store(arguments.output.with_name(f"judged_{name}.json"), about)
    tasks = [(arguments.dataset, arguments.set, s) for s in range(arguments.seeds)]
    store.measure(run, tasks, [RECIPE], arguments.processes)
    names = list(store.runs[RECIPE][0]["measures"])
    rows = {label: {RECIPE: store.over_seeds(RECIPE, measured(label))} for label in names}
    store.write(table=rows)
    show(f"{name}, unseen raters, new prompts", rows, [RECIPE])


if __name__ == "__main__":
    script(main)
