"""The demo: what the default configuration learns from the survey that the package makes up.

A seed draws the survey, the groups and the held-out questions. Prints how far above the uniform
guess the unseen groups' answers are predicted, on questions that nobody trained on too, and writes
demo.json beside this file.

    python benchmarks/demo.py
"""

from store import Run, Store, measured, options, script, shared_facts, show
from trained import prepare, train, unseen_block

RECIPE = "ours"


def run(dataset: str, changes: list[str], seed: int) -> dict[str, Run]:
    """Train and score."""
    workspace = prepare(RECIPE, dataset, seed, changes)
    unseen = unseen_block(train(RECIPE, workspace), workspace)
    new = unseen["test_questions"]
    measures = {
        "unseen alignment": unseen["alignment"],
        "above uniform": unseen["alignment"] - unseen["uniform"],
        "new questions": new["alignment"],
        "new questions, above uniform": new["alignment"] - new["uniform"],
    }
    return {RECIPE: {"seed": seed, "measures": measures}}


def main() -> None:
    """Run all seeds."""
    arguments = options(__doc__, __file__, dataset="synthetic").parse_args()
    store = Store(arguments.output, shared_facts(arguments))
    tasks = [(arguments.dataset, arguments.set, seed) for seed in range(arguments.seeds)]
    store.measure(run, tasks, [RECIPE], arguments.processes)
    names = list(store.runs[RECIPE][0]["measures"])
    table = {name: {RECIPE: store.over_seeds(RECIPE, measured(name))} for name in names}
    store.write(table=table)
    show("synthetic survey", table, [RECIPE])


if __name__ == "__main__":
    script(main)
