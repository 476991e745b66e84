"""The align commands that train nothing: best of n, and the examination of a policy."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pluralllm_fl.cli.align import Context, Device, Groups, Plain, Source, Verbose, align
from pluralllm_fl.cli.console import guarded, labelled, output, progress_bar
from pluralllm_fl.cli.use import AsJson, Run
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.runs.lookup import resolve_run

if TYPE_CHECKING:
    from pluralllm_fl.alignment.evaluate import OnAsk
    from pluralllm_fl.alignment.policy import Policy
    from pluralllm_fl.alignment.sheets import Sheet
    from pluralllm_fl.alignment.targets import Subject

__all__ = ["align"]

Questions = Annotated[int, typer.Option(min=1, help="Drawn of the run's questions of each kind.")]
Orders = Annotated[int, typer.Option(min=1, help="Orders of the options that are asked.")]
Draw = Annotated[int, typer.Option(min=0, help="Draw of questions and answers.")]


@align.command("best-of-n")
@guarded
def best_of_n(
    run: Run,
    policy: Source,
    output_file: Annotated[Path, typer.Option("--output", help="JSON-lines file for the picks.")],
    n: Annotated[int, typer.Option(min=1, help="Answers of the policy to pick from.")] = 16,
    groups: Groups = "all",
    context_questions: Context = 20,
    prompts: Annotated[
        Path | None,
        typer.Option(help="File with a column 'prompt', and 'options' where there are some."),
    ] = None,
    questions: Questions = 50,
    orders: Orders = 4,
    seed: Draw = 0,
    plain: Plain = False,
    device: Device = "auto",
    verbose: Verbose = False,  # noqa: ARG001
) -> None:
    """Of n answers of a policy, pick the one that each group is predicted to prefer.

    Without --prompts the policy is asked test questions of the run, and it is shown how many of
    each group agree with the pick.
    """
    from pluralllm_fl.alignment.best_of_n import read_prompts
    from pluralllm_fl.alignment.pairs import jsonl
    from pluralllm_fl.alignment.policy import load_policy
    from pluralllm_fl.alignment.targets import open_subject
    from pluralllm_fl.runs.artefacts import write_atomic

    if not output_file.parent.is_dir():
        raise ConfigError(f"{output_file.parent} is not a folder: create it first.")
    asked = read_prompts(prompts) if prompts else None
    folder = resolve_run(run)
    given = load_policy(policy, device)
    subject = open_subject(folder, groups, context_questions)
    chat, console = False if plain else None, output()
    if asked is not None:
        from pluralllm_fl.alignment.best_of_n import written_picks

        picks = list(written_picks(given, asked, subject.groups, n, seed=seed, chat=chat))
    else:
        picks = _survey_picks(subject, given, console, n, questions, orders, seed, chat)
    write_atomic(output_file, jsonl(picks))
    labelled(console, "picks", f"{len(picks)}, for {len(subject.groups)} groups")
    if none := sum(pick["pick"] is None for pick in picks):
        labelled(console, "no pick", f"{none}: the policy wrote no answer to pick from")
    labelled(console, "written", output_file)


def _survey_picks(
    subject: "Subject", policy: "Policy", console: Console, n: int, questions: int, orders: int,
    seed: int, chat: bool | None,
) -> list[dict[str, Any]]:  # fmt: skip
    from pluralllm_fl.alignment.answering import letter_answers
    from pluralllm_fl.alignment.best_of_n import SIZES
    from pluralllm_fl.alignment.picks import agreement_by_size, survey_picks
    from pluralllm_fl.alignment.sheets import draw_questions, sheets

    drawn = draw_questions(subject.workspace, "new", questions, seed)
    papers = sheets(subject, {"new": drawn})
    with _progress() as on_ask:
        found = letter_answers(
            policy, [(q, None) for q in drawn], orders, chat=chat,
            on_batch=lambda *at: on_ask("policy", *at),
        )  # fmt: skip
    answers = dict(zip(drawn, (answer.distribution for answer in found), strict=True))
    sizes = sorted({*(size for size in SIZES if size <= n), n})
    _show_agreement(console, papers, agreement_by_size(papers, answers, sizes), sizes)
    return survey_picks(papers, answers, n, seed)


def _show_agreement(
    console: Console,
    papers: Sequence["Sheet"],
    reached: Mapping[str, Mapping[int, Mapping[str, float]]],
    sizes: Sequence[int],
) -> None:
    """Print the share of each group that agrees with the pick of n answers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("share that agrees")
    table.add_column("")
    for n in sizes:
        table.add_column(f"n = {n}", justify="right")
    for sheet in papers:
        row = reached[sheet.group]
        cells = [f"{row[n]['agreement']:.3f}" for n in sizes]
        table.add_row(sheet.group, sheet.side, *cells)
    console.print(table)


@align.command()
@guarded
def evaluate(
    run: Run,
    policy: Source,
    base: Annotated[
        str | None,
        typer.Option(help="What the policy was before; default: what its align.json says."),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output", help="Folder for the result; default: the policy's."),
    ] = None,
    groups: Groups = "all",
    context_questions: Context = 20,
    questions: Questions = 50,
    orders: Orders = 4,
    samples: Annotated[
        int, typer.Option(min=0, help="Texts to write in each order; 0: letters only.")
    ] = 0,
    named: Annotated[
        bool | None,
        typer.Option(
            "--named/--not-named", help="Name the group in the prompt; default: as trained."
        ),
    ] = None,
    seed: Draw = 0,
    plain: Plain = False,
    device: Device = "auto",
    as_json: AsJson = False,
    verbose: Verbose = False,  # noqa: ARG001
) -> None:
    """Examine a policy: alignment with each group, beside its base, uniform and the predictor.

    Writes evaluation.json and evaluation.html.
    """
    from dataclasses import asdict

    from pluralllm_fl.alignment.evaluate import Exam
    from pluralllm_fl.alignment.evaluate import evaluate as examine
    from pluralllm_fl.alignment.policy import load_policy, read_record
    from pluralllm_fl.alignment.targets import open_subject

    place = output_dir or Path(policy)
    if not place.is_dir():
        raise ConfigError(f"{place} is not a folder: name one that exists with --output.")
    folder, record = resolve_run(run), read_record(Path(policy)) if Path(policy).is_dir() else {}
    base = base or record.get("policy")
    named = record.get("aggregate") == "per-group" if named is None else named
    exam = Exam(questions, orders, samples, named, False if plain else record.get("chat"), seed)
    after = load_policy(policy, device)
    before = load_policy(base, device) if base else None
    subject = open_subject(folder, groups, context_questions)
    with _progress() as on_ask:
        found = examine(subject, after, before, exam, on_ask)
    result = {
        "run": str(folder), "policy": policy, "base": base, "method": record.get("method"),
        "dataset": subject.workspace.dataset.name, "context_questions": context_questions,
        "exam": asdict(exam), **found,
    }  # fmt: skip
    _write(place, result)
    if as_json:
        from pluralllm_fl.cli.console import print_json

        print_json(result)
        return
    console = output()
    for cell in found["cells"]:
        _show_cell(console, cell)
    if found["stated"] is not None:
        labelled(console, "texts", f"{found['stated']:.0%} of those written state an option")
    labelled(console, "written", place / "evaluation.json", place / "evaluation.html")


def _show_cell(console: Console, cell: Mapping[str, Any]) -> None:
    """Print one side and kind of questions: a row for each kind of answers."""
    console.print(f"{cell['side']} groups, {cell['questions']} questions", style="bold")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "align", "95%", "top", "agree", "reward", "worst", "KL"):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    for name, row in cell["rows"].items():
        ends = row["interval"]
        table.add_row(
            name,
            f"{row['alignment']:.3f}",
            f"{ends[0]:.3f}–{ends[1]:.3f}" if ends else "–",
            *(f"{row[key]:.3f}" for key in ("top", "agreement", "reward", "min")),
            f"{row['divergence']:.3f}" if "divergence" in row else "–",
        )
    console.print(table)
    console.print()


def _write(folder: Path, result: Mapping[str, Any]) -> None:
    from pluralllm_fl.report.aligned import render
    from pluralllm_fl.runs.artefacts import write_atomic

    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    write_atomic(folder / "evaluation.json", text.encode())
    write_atomic(folder / "evaluation.html", render(result).encode("utf-8", errors="replace"))


@contextmanager
def _progress() -> Iterator["OnAsk"]:
    """Show a bar on a terminal, and nothing elsewhere."""
    with progress_bar() as bar:
        task = bar.add_task("opening", total=None)

        def on_ask(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"asking: {what}", completed=done, total=total)

        yield on_ask
