"""What the default model, and one raw update, give away of a training group, over seeds.

The attacks of `pluralllm audit` (docs/privacy.md) on the paper's split: from the final model with
none, 20 and 100 answers known, beside groups that took no part; from the update that a node sends
in the first, the middle and the last round; membership. Training in this process gives a run's
bits. Prints a table and writes privacy.json beside this file. A seed takes five minutes of a core.

    python benchmarks/privacy.py --dataset path/to/global_opinions.csv
"""

from functools import partial

from store import Run, one_recipe, script
from trained import prepare, train

from pluralllm_fl.evaluation.audit.counterfactual import mean_of_answers
from pluralllm_fl.evaluation.audit.reading import Examiner, from_model, membership
from pluralllm_fl.evaluation.audit.subject import weights_of
from pluralllm_fl.evaluation.audit.updates import from_updates
from pluralllm_fl.evaluation.baselines import untrained
from pluralllm_fl.evaluation.scores import predict_targets
from pluralllm_fl.predictor.model import PreferencePredictor

RECIPE = "ours"
KNOWN = (0, 20, 100)
FIGURES = ("alignment", "within_0.02", "within_0.05")


def run(dataset: str, changes: list[str], seed: int) -> dict[str, Run]:
    """Train, keeping what the attacked rounds began with; attack."""
    workspace = prepare(RECIPE, dataset, seed, changes)
    last = workspace.config.num_server_rounds
    attacked = {1: weights_of(untrained(workspace, workspace.config))}

    def keep(server_round: int, predictor: PreferencePredictor) -> None:
        if server_round + 1 in ((1 + last) // 2, last):
            attacked[server_round + 1] = weights_of(predictor)

    predictor = train(RECIPE, workspace, keep)
    examiner, predict = Examiner(workspace), partial(predict_targets, predictor)
    measures: dict[str, float | None] = {}
    for known in KNOWN:
        row, name = from_model(examiner, predict, known), f"model, {known} known"
        if not (row["trained"]["seen"] and row["trained"]["unseen"]):
            continue  # nobody has so many answers
        for figure in FIGURES:
            for side in ("seen", "unseen"):
                measures[f"{name}: {figure}, {side}"] = row["trained"][side][figure]
            measures[f"{name}: {figure}, above"] = row["trained"]["difference"][figure]
            measures[f"{name}: {figure}, excess"] = row["excess"]["difference"][figure]
    for server_round, weights in attacked.items():
        found = from_updates(examiner, predictor, weights, server_round, lambda: None)
        for whose in ("own", "other"):
            for figure in FIGURES:
                name = f"update of round {server_round}: {figure}, {whose}"
                measures[name] = found[whose][figure]
    mean = mean_of_answers(examiner, workspace.seen)
    measures["mean of raw answers: alignment, above"] = mean["difference"]["alignment"]
    told = membership(examiner, predict)
    measures |= {f"membership, {side}": told[side] for side in ("seen", "unseen", "difference")}
    return {RECIPE: {"seed": seed, "measures": measures}}


def main() -> None:
    """Run all seeds."""
    one_recipe(__doc__, __file__, run, RECIPE, "reading a training group", dataset="")


if __name__ == "__main__":
    script(main)
