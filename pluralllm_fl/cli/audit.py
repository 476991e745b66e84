"""The audit command: what can be read of the training groups' answers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pluralllm_fl.cli.console import guarded, labelled, output, print_json, progress_bar
from pluralllm_fl.cli.use import AsJson, Run
from pluralllm_fl.runs.lookup import resolve_run

if TYPE_CHECKING:
    from pluralllm_fl.evaluation.audit.subject import OnWork

Line = tuple[str, Mapping[str, float] | None, Mapping[str, float] | None]
FORMS = {"alignment": "4f", "within_0.02": "0%", "within_0.05": "0%"}  # what is shown, and how


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
    from pluralllm_fl.evaluation.audit.run import audit_run

    folder = resolve_run(run)
    with _progress() as on_work:
        found = audit_run(folder, rounds=rounds or (), leave_out=leave_one_out, on_work=on_work)
    if as_json:
        print_json(found)
        return
    console = output()
    show_audit(console, found)
    labelled(console, "written", folder / "audit.json")


def show_audit(console: Console, found: Mapping[str, Any]) -> None:
    """Print every attack beside its reference, and in plain words what it means.

    "in 0.02": share of options read to within 0.02.
    """
    lines = [
        (name, row[key]["seen"], row[key]["unseen"])
        for row in found["model"]
        for key, name in (("trained", _known(row)), ("new", "  on new questions"))
    ]
    _show(console, "holder of the model", "groups that took no part", lines)
    lines = [(f"round {row['round']}", row["own"], row["other"]) for row in found["updates"]]
    _show(console, "one raw update", "by another node's update", lines)
    lines = [_pair("all seen groups", found["mean_of_answers"])]
    _show(console, "mean of raw answers", "of the others' answers", lines)
    if left := found["leave_one_out"]:
        lines = [_pair(_known(row), row) for row in left["model"]]
        lines.append(_pair("mean of raw answers", left["mean_of_answers"]))
        title = f"left out: {len(left['groups'])} in turn"
        _show(console, title, "trained without the group", lines)
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
    left = {row["known"]: row for row in (found["leave_one_out"] or {"model": []})["model"]}
    lines = []
    for row in found["model"]:
        line = (
            f"With the model and {_known(row)}, a training group's answers are predicted to "
            f"{row['trained']['seen']['alignment']:.3f} (1: exactly)"
        )
        if pair := left.get(row["known"]):
            line += f", {pair['difference']['alignment']:+.3f} because it took part"
        elif excess := row["excess"]["difference"]:
            line += (
                f", {excess['alignment']:+.3f} beyond a group that took no part "
                "(on trained questions, less the same on new ones)"
            )
        lines.append(f"{line}.")
    if read := [row["own"]["alignment"] for row in found["updates"] if row["own"]]:
        lines.append(
            f"Whoever sees a node's raw update predicts its answers to up to {max(read):.3f}."
        )
    return lines


def _known(row: Mapping[str, Any]) -> str:
    return f"{row['known'] or 'no'} answer{'s' if row['known'] else ''} known"


def _pair(name: str, pair: Mapping[str, Any]) -> Line:
    return name, pair["with"], pair["without"]


def _show(console: Console, title: str, beside: str, lines: list[Line]) -> None:
    """Print readings and, in brackets, what is read without what the attack is about."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(title, width=22, no_wrap=True)
    for name in ("alignment", "above", "in 0.02", "in 0.05"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, read, other in lines:
        if read is None:
            continue
        others = [f" ({other[k]:.{n}})" if other else "" for k, n in FORMS.items()]
        cells = [f"{read[k]:.{n}}{o}" for (k, n), o in zip(FORMS.items(), others, strict=True)]
        above = f"{read['alignment'] - other['alignment']:+.4f}" if other else "–"
        table.add_row(name, cells[0], above, *cells[1:])
    console.print(table, f"in brackets: {beside}", markup=False, highlight=False)
    console.print()


@contextmanager
def _progress() -> Iterator["OnWork"]:
    """Show a bar on a terminal, and nothing elsewhere."""
    with progress_bar() as bar:
        task, named = bar.add_task("opening", total=None), ""

        def on_work(what: str, done: int, total: int) -> None:
            nonlocal named
            if what != named:
                bar.reset(task, description=what, total=total)
                named = what
            bar.update(task, completed=done, total=total)

        yield on_work
