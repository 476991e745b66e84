"""The baselines command: what the predictor is compared with, in one table."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pluralllm_fl.cli.console import guarded, labelled, output, print_json, progress_bar
from pluralllm_fl.cli.settings import Assignments, Dataset, Recipe, Seed, Seen, Unseen, gather
from pluralllm_fl.cli.use import AsJson
from pluralllm_fl.config import RunConfig, Value, app_directory
from pluralllm_fl.runs.progress import duration

# What the published recipe shares with ours: data, splits and machine, nothing that is learned.
SHARED = (
    "dataset", "seen-groups", "unseen-groups", "unseen-fraction", "on-bad-row", "zeros",
    "validation-fraction", "test-fraction", "synthetic-groups", "synthetic-questions",
    "synthetic-respondents", "embedding-model", "embedding-cache", "context-questions", "seed",
    "device",
)  # fmt: skip


@guarded
def baselines(
    dataset: Dataset = None,
    seen: Seen = None,
    unseen: Unseen = None,
    seed: Seed = None,
    recipe: Recipe = None,
    assignments: Assignments = None,
    published: Annotated[
        bool, typer.Option("--published", help="Train the published recipe too: takes minutes.")
    ] = False,
    as_json: AsJson = False,
    verbose: Annotated[bool, typer.Option(help="Show the traceback of errors.")] = False,  # noqa: ARG001
) -> None:
    """Compare the predictor with references, centralised and local training on unseen groups.

    All is trained in this process, without Flower. References marked as oracle read raw answers of
    seen groups to held-out questions.
    """
    named: dict[str, Value | None] = {
        "dataset": dataset, "seen-groups": seen, "unseen-groups": unseen, "seed": seed,
    }  # fmt: skip
    config = gather(recipe, named, assignments or [])
    found = compare_all(config, published_beside(config) if published else None)
    if as_json:
        print_json(found)
    else:
        _show(output(), found)


def published_beside(config: RunConfig, changes: Mapping[str, Value] | None = None) -> RunConfig:
    """Return the published recipe, with changes to it if any, on the data of another config."""
    ours = config.to_run_config()
    path = app_directory() / "recipes" / "published.toml"
    return gather(path, {key: ours[key] for key in SHARED} | dict(changes or {}), [])


def compare_all(config: RunConfig, published: RunConfig | None) -> dict[str, Any]:
    """Fit and score all comparators, those of the published recipe too where it is given."""
    import torch

    from pluralllm_fl.evaluation.comparison import comparators, compare
    from pluralllm_fl.workspace import open_workspace

    with progress_bar() as bar:
        task = bar.add_task("embedding", total=None)

        def embedded(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        workspace = open_workspace(config, embedded)
        other = open_workspace(published, embedded) if published else None
        torch.set_num_threads(config.threads)  # the networks are small: more would only wait
        rows = []
        for comparator in comparators(workspace, other):
            if not bar.console.is_terminal:
                labelled(bar.console, "training", comparator.name)
            bar.reset(task, description=f"training {comparator.name}", total=comparator.ticks)
            rows.append(compare(comparator, lambda: bar.advance(task)))
    return {
        "dataset": workspace.dataset.name,
        "dataset_fingerprint": workspace.dataset.fingerprint,
        "seed": config.seed,
        "context_questions": config.context_questions,
        "seen": list(workspace.seen),
        "unseen": list(workspace.unseen),
        "comparators": rows,
    }


def _show(console: Console, found: dict[str, Any]) -> None:
    labelled(console, "data", found["dataset"])
    labelled(console, "seen", "; ".join(found["seen"]))
    labelled(console, "unseen", "; ".join(found["unseen"]))
    console.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for title in ("alignment", "test\nquestions", "CoV", "worst", "rounds", "steps", "time"):
        table.add_column(title, justify="right")
    for row in found["comparators"]:
        block = row["unseen"]
        test = block["test_questions"]
        table.add_row(
            row["name"],
            f"{block['alignment']:.4f}",
            f"{test['alignment']:.4f}" if test else "–",
            f"{block['cov']:.4f}",
            f"{block['min']:.4f}",
            str(row["rounds"] or "–"),
            str(row["steps"] or "–"),
            duration(row["seconds"]),
        )
    console.print(table)
