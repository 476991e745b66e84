"""Commands on data files and finished runs: check, evaluate, predict, report."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from pluralllm_fl.cli.console import (
    FAILURE,
    guarded,
    labelled,
    messages,
    output,
    print_json,
    shown,
)
from pluralllm_fl.cli.settings import absolute_source
from pluralllm_fl.cli.tables import show_bars, show_groups, show_standing, show_summary
from pluralllm_fl.config import split_names
from pluralllm_fl.errors import ConfigError, PluralLLMError
from pluralllm_fl.runs.lookup import resolve_run

Run = Annotated[Path, typer.Argument(help="Run folder, or output folder (its newest run).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@guarded
def check(path: Annotated[Path, typer.Argument(help="Data file.")]) -> None:
    """Show what a data file holds, and every problem with its line."""
    from pluralllm_fl.datasets import local_path
    from pluralllm_fl.datasets.check import check as check_file
    from pluralllm_fl.datasets.check import render

    found = check_file(local_path(str(path)))
    typer.echo(
        render(
            dataclasses.replace(
                found,
                path=shown(found.path),
                groups={shown(group): count for group, count in found.groups.items()},
                problems=[(line, shown(reason)) for line, reason in found.problems],
            )
        )
    )
    if not found.ok:
        raise typer.Exit(FAILURE)


@guarded
def evaluate(
    run: Run,
    dataset: Annotated[str, typer.Option(help="Name, hub id or path of a data set.")],
    groups: Annotated[str, typer.Option(help='"A;B;…"; empty: all.')] = "",
    context_questions: Annotated[
        int | None, typer.Option(min=0, help="Answers shown of each group.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Draw of the shown answers.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a trained predictor on other groups, without training."""
    from pluralllm_fl.evaluation.other_groups import evaluate_run

    result = evaluate_run(
        resolve_run(run), absolute_source(dataset), split_names(groups), context_questions, seed
    )
    if as_json:
        print_json(result)
        return
    sides = {side: result[side] for side in ("seen", "unseen") if result.get(side)}
    console = output()
    show_groups(console, sides)
    console.print()
    show_summary(console, sides)
    console.print()
    show_standing(console, sides, result["references"])


@guarded
def predict(
    run: Run,
    question: Annotated[str, typer.Option(help="The new question.")],
    option: Annotated[list[str], typer.Option(help="A candidate answer; repeat.")],
    context: Annotated[
        Path | None, typer.Option(help="File with answers that the group gave before.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Group in the context file.")] = None,
    offered: Annotated[
        list[str] | None,
        typer.Option(help="Option that the group can choose; repeat. Default: all of them."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict how a group would answer a new question, from a few of its answers."""
    if len(option) < 2:
        raise ConfigError("A question needs at least two options: repeat --option.")
    from pluralllm_fl.inference import predict_distribution

    distribution = predict_distribution(
        resolve_run(run), context, question, option, group, offered or None
    )
    if as_json:
        found = {
            "question": question,
            "options": option,
            "distribution": [float(p) for p in distribution],
        }
        print_json(found)
        return
    console = output()
    console.print(question, markup=False, highlight=False, style="bold")
    show_bars(console, option, distribution)


@guarded
def report(run: Run) -> None:
    """Write report.html of a run again."""
    from pluralllm_fl.report import write_report

    folder = resolve_run(run)
    if not (folder / "diagnostics.json").is_file():
        _diagnose(folder)
    labelled(output(), "report", write_report(folder))


def _diagnose(folder: Path) -> None:
    """Add the diagnostics where the data is at hand; a deployment's server lacks it."""
    from pluralllm_fl.evaluation.diagnostics import write_diagnostics

    try:
        write_diagnostics(folder)
    except PluralLLMError as error:
        messages().print(
            f"The report lacks the context diagnostics: {error}",
            style="yellow", markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
