"""Our recipe against the published one: rounds and bytes to the published alignment, and what both
reach, over seeds.

Trains in this process with the project's own training code (`evaluation.baselines`); the paper's
split of groups; with 66 seen countries, 12 of them train in a round. speed.py measures the seconds.
Prints tables and writes convergence.json beside this file; `--recipes` measures some again and
keeps the others' runs. A run of ours takes two minutes on one core, of the published recipe ten.

    python benchmarks/convergence.py --dataset path/to/global_opinions.csv
"""

from operator import truediv
from typing import Any

from store import Measure, Run, Store, measured, options, script, shared_facts, show
from trained import (
    HISTORY,
    MANY,
    RECIPES,
    all_measures,
    context_curve,
    prepare,
    train,
    unseen_block,
)

from pluralllm_fl.evaluation.baselines import drawn_groups
from pluralllm_fl.predictor.model import PreferencePredictor

# Paired differences, seed by seed.
COMPARED = (
    ("ours", "published"),
    (MANY, "published"),
    ("ours", "ours, centralised"),
    ("published", "published, centralised"),
    ("ours", HISTORY),
    (MANY, f"{HISTORY}, 66 seen"),
)


def run(name: str, dataset: str, changes: list[str], seed: int) -> dict[str, Run]:
    """Train one recipe; return the curve of unseen alignment and the final measures."""
    workspace = prepare(name, dataset, seed, changes)
    config = workspace.config
    curve: list[dict[str, float]] = []

    def note(server_round: int, predictor: PreferencePredictor) -> None:
        if server_round % config.evaluate_every and server_round != config.num_server_rounds:
            return
        unseen = unseen_block(predictor, workspace)["alignment"]
        curve.append({"round": server_round, "unseen": unseen})

    predictor = train(name, workspace, note)
    sent = megabytes(predictor) * len(drawn_groups(workspace.seen, config, 1))
    result = {
        "seed": seed,
        "curve": curve,
        "megabytes_a_round": sent,  # up
        "megabytes_down_a_round": sent,
        "measures": all_measures(predictor, workspace),
        "context": context_curve(predictor, workspace),
    }
    return {name: result}


def megabytes(predictor: PreferencePredictor) -> float:
    """Return the size of the model: a node receives all of it, and sends as much."""
    return 4e-6 * float(sum(value.numel() for value in predictor.state_dict().values()))


def to_reach(result: Run, target: float) -> dict[str, float] | None:
    """Return the first evaluated round at the target, with the megabytes until then."""
    for point in result["curve"]:
        if point["unseen"] >= target:
            rounds = point["round"]
            up = rounds * result["megabytes_a_round"]
            both = up + rounds * result["megabytes_down_a_round"]
            return {"rounds": rounds, "megabytes up": up, "megabytes up and down": both}
    return None


def shown(size: int, side: str = "own") -> Measure:
    """Return the measure of unseen alignment with so many context questions."""

    def measure(result: Run) -> float | None:
        points = {point["size"]: point for point in result.get("context", ())}
        found: float | None = points.get(size, {}).get(side)
        return found

    return measure


def gain(size: int) -> Measure:
    """Return the measure of what so many context questions add."""

    def measure(result: Run) -> float | None:
        some, none = shown(size)(result), shown(0)(result)
        return None if some is None or none is None else some - none

    return measure


def rows(store: Store) -> dict[str, dict[str, Any]]:
    """Return every measure of every recipe, and the paired differences."""
    runs = next(runs for runs in store.runs.values() if runs)
    measures: dict[str, Measure] = {name: measured(name) for name in runs[0]["measures"]}
    measures |= {f"context gain, {size} questions, mean of draws": gain(size) for size in (20, 100)}
    pairs = [pair for pair in COMPARED if set(pair) <= set(store.runs)]
    return {
        label: {name: store.over_seeds(name, measure) for name in store.runs}
        | {f"{a} − {b}": store.paired((a, measure), (b, measure)) for a, b in pairs}
        for label, measure in measures.items()
    }


def traffic(store: Store) -> dict[str, dict[str, Any]]:
    """Return what all nodes of every federated recipe send and receive in a round."""
    names = [name for name in store.runs if "centralised" not in name]
    ways: dict[str, Measure] = {
        "up": lambda result: result["megabytes_a_round"],
        "down": lambda result: result["megabytes_down_a_round"],
    }
    return {
        way: {name: store.over_seeds(name, measure) for name in names}
        for way, measure in ways.items()
    }


def ratios(store: Store) -> dict[str, Any]:
    """Compare ours with the published recipe in one number each.

    What each seed needs to reach the published recipe's final alignment, published / ours; the
    coefficient of variation, ours / published; and ours with 5 answers − published with 20.
    """
    found: dict[str, Any] = {}
    target = {r["seed"]: r["curve"][-1]["unseen"] for r in store.runs.get("published", [])}
    ours = [run for run in store.runs.get("ours", []) if run["seed"] in target]
    # A mean over those seeds alone that get there would flatter.
    get_there = all(to_reach(run, target[run["seed"]]) for run in ours)
    needs = ("rounds", "megabytes up", "megabytes up and down")
    for what in needs if get_there else ():

        def needed(result: Run, what: str = what) -> float | None:
            reached = to_reach(result, target.get(result["seed"], float("inf")))
            return None if reached is None else reached[what]

        found[f"{what} to the published alignment, published / ours"] = store.paired(
            ("published", needed), ("ours", needed), truediv
        )
    cov = measured("CoV of unseen groups")
    found["CoV, ours / published"] = store.paired(("ours", cov), ("published", cov), truediv)
    found["ours with 5 answers − published with 20"] = store.paired(
        ("ours", shown(5)), ("published", shown(20))
    )
    return {name: value for name, value in found.items() if value is not None}


def main() -> None:
    """Run all seeds of the recipes, then compare all that the file holds."""
    parser = options(__doc__, __file__)
    parser.add_argument("--recipes", nargs="*", choices=RECIPES, default=list(RECIPES))
    arguments = parser.parse_args()
    store = Store(arguments.output, shared_facts(arguments))
    tasks = [
        (name, arguments.dataset, arguments.set, seed)
        # Longest first, so that every process is busy to the end.
        for name in sorted(arguments.recipes, key=list(RECIPES).index, reverse=True)
        for seed in range(arguments.seeds)
    ]
    store.measure(run, tasks, arguments.recipes, arguments.processes)
    table, sent, compared = rows(store), traffic(store), ratios(store)
    store.write(table=table, megabytes_a_round=sent, compared=compared)
    show("measure", table, list(next(iter(table.values()))))
    show("megabytes a round, all nodes", sent, list(sent["up"]))
    show("compared", {name: {"value": value} for name, value in compared.items()}, ["value"])


if __name__ == "__main__":
    script(main)
