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
from pluralllm_fl.evaluation.audit.updates import Weights, from_updates
from pluralllm_fl.evaluation.scores import predict_targets
from pluralllm_fl.predictor.model import PreferencePredictor, initial_predictor
from pluralllm_fl.workspace import Workspace

RECIPE = "ours"
KNOWN = (0, 20, 100)
FIGURES = ("alignment", "within_0.02", "within_0.05")


def run(dataset: str, changes: list[str], seed: int) -> dict[str, Run]:
    """Train, keeping what the attacked rounds began with; attack."""
    workspace = prepare(RECIPE, dataset, seed, changes)
    last = workspace.config.num_server_rounds
    attacked = {1: weights_of(untrained(workspace))}

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


def untrained(workspace: Workspace) -> PreferencePredictor:
    """Return the model that round 1 begins with."""
    return initial_predictor(
        workspace.config, workspace.vectors.shape[1], workspace.embedding_fingerprint
    )


def weights_of(predictor: PreferencePredictor) -> Weights:
    """Return a copy of a model's weights."""
    return {name: value.detach().clone() for name, value in predictor.state_dict().items()}


def main() -> None:
    """Run all seeds."""
    one_recipe(__doc__, __file__, run, RECIPE, "reading a training group", dataset="")


if __name__ == "__main__":
    script(main)
