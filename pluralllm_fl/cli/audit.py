"""The audit command: what can be read of the training groups' answers."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pluralllm_fl.cli.console import guarded, labelled, messages, output
from pluralllm_fl.cli.use import AsJson, Run
from pluralllm_fl.runs import resolve_run

if TYPE_CHECKING:
    from pluralllm_fl.audit.subject import OnWork

Figures = Mapping[str, float]


@guarded
def audit(
    run: Run,
    rounds: Annotated[
        list[int] | None,
        typer.Option(
            "--round", help="Round whose updates are attacked; repeat. First, middle, last."
        ),
    ] = None,
    leave_one_out: Annotated[
        int,
        typer.Option(min=0, metavar="GROUPS", help="Train again without each of so many groups."),
    ] = 0,
    as_json: AsJson = False,
    verbose: Annotated[bool, typer.Option(help="Show the traceback of errors.")] = False,  # noqa: ARG001
) -> None:
    """Measure what can be read of the training groups' answers, from model and updates.

    For simulations, whose data is at hand; of a round whose model was not kept, the federation is
    trained again in this process. Writes audit.json into the run's folder.
    """
    from pluralllm_fl.audit.run import audit_run

    folder = resolve_run(run)
    with _progress() as on_work:
        found = audit_run(folder, rounds=rounds or (), leave_out=leave_one_out, on_work=on_work)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    console = output()
    show_audit(console, found)
    labelled(console, "written", folder / "audit.json")


def show_audit(console: Console, found: Mapping[str, Any]) -> None:
    """Print every attack beside its reference, and a sentence of what it means."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for title in ("reads", "beside", "above", "within\n0.02", "within\n0.05"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_row("holder of the model; beside: groups that took no part")
    for row in found["model"]:
        sides = row["trained"]
        _add(table, _known(row), sides["seen"], sides["unseen"], sides)
        _add(table, "    on new questions", row["new"]["seen"], row["new"]["unseen"], row["new"])
    table.add_row("one raw update; beside: another node's update")
    for row in found["updates"]:
        _add(table, f"  round {row['round']}", row["own"], row["other"])
    table.add_row("mean of raw answers; beside: without the group")
    _add_pair(table, "  all seen groups", found["mean_of_answers"])
    if left := found["leave_one_out"]:
        table.add_row(f"{len(left['groups'])} groups; beside: trained without the group")
        for row in left["model"]:
            _add_pair(table, _known(row), row)
        _add_pair(table, "  mean of raw answers", left["mean_of_answers"])
    console.print(table, markup=False, highlight=False)
    console.print()
    told = found["membership"]
    if told["seen"] is not None:
        beside = (
            "" if told["unseen"] is None else f", groups that took no part {told['unseen']:.3f}"
        )
        labelled(
            console,
            "membership",
            f"AUC of trained against held-out questions {told['seen']:.3f}{beside}",
        )
    if missing := found["rounds_not_kept"]:
        labelled(
            console, "not kept",
            f"the model of round {', '.join(map(str, missing))}: only the last two checkpoints "
            "are, and only FedAvg on all nodes is trained again here",
        )  # fmt: skip
    labelled(console, "meaning", *meaning(found))


def meaning(found: Mapping[str, Any]) -> list[str]:
    """Say in plain words what the figures mean."""
    row = found["model"][0]
    lines = [
        f"Whoever holds the model predicts a training group's answers to "
        f"{row['trained']['seen']['alignment']:.3f} (1: exactly)"
    ]
    left, excess = found["leave_one_out"], row["excess"]["difference"]
    if left and (difference := left["model"][0]["difference"]):
        lines[0] += f", {difference['alignment']:+.3f} for its having taken part"
    elif excess:
        lines[0] += (
            f", {excess['alignment']:+.3f} beyond a group that took no part (their difference on "
            "trained questions less that on new ones)"
        )
    if read := [row["own"]["alignment"] for row in found["updates"] if row["own"]]:
        lines.append(f"Whoever sees a node's raw update comes to {max(read):.3f} of its answers.")
    lines[0] += "."
    return lines


def _known(row: Mapping[str, Any]) -> str:
    return f"  {row['known'] or 'no'} answer{'s' if row['known'] else ''} known"


def _add_pair(table: Table, name: str, pair: Mapping[str, Any]) -> None:
    _add(table, name, pair["with"], pair["without"], pair)


def _add(
    table: Table,
    name: str,
    read: Figures | None,
    beside: Figures | None,
    compared: Mapping[str, Any] | None = None,
) -> None:
    if read is None:
        return
    above = "–" if beside is None else f"{read['alignment'] - beside['alignment']:+.4f}"
    if compared and (bounds := compared["interval"]):
        above += f" ± {(bounds[1] - bounds[0]) / 2:.4f}"
    near = [
        f"{read[key]:.0%}" if beside is None else f"{read[key]:.0%} / {beside[key]:.0%}"
        for key in ("within_0.02", "within_0.05")
    ]
    closest = "–" if beside is None else f"{beside['alignment']:.4f}"
    table.add_row(name, f"{read['alignment']:.4f}", closest, above, *near)


@contextmanager
def _progress() -> Iterator["OnWork"]:
    """Show a bar on a terminal, and nothing elsewhere."""
    console = messages()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task, named = bar.add_task("opening", total=None), ""

        def on_work(what: str, done: int, total: int) -> None:
            nonlocal named
            if what != named:
                bar.reset(task, description=what, total=total)
                named = what
            bar.update(task, completed=done, total=total)

        yield on_work
