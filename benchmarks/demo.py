"""The demo: what the default configuration learns from the survey that the package makes up.

A seed draws the survey, the groups and the held-out questions. Prints how far above the uniform
guess the unseen groups' answers are predicted, on questions that nobody trained on too, and writes
demo.json beside this file.

    python benchmarks/demo.py
"""

from store import Run, one_recipe, script
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
    one_recipe(__doc__, __file__, run, RECIPE, "synthetic survey", dataset="synthetic")


if __name__ == "__main__":
    script(main)
