"""What the terminal shows of results: group tables, fairness, references, bars."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pluralllm_fl.cli.console import labelled
from pluralllm_fl.evaluation.standing import FEWEST_FOR_INTERVAL, sentences, standings

Block = Mapping[str, Any]


def show_groups(console: Console, blocks: Mapping[str, Block | None]) -> None:
    """Print every group's alignment with its 95% interval, best first within each side.

    ``pairs`` is the share of pairs of options that are in the group's order.

    Parameters
    ----------
    console : Console
    blocks : mapping of str to block or None
        Side ("seen", "unseen") -> its scores.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("group")
    table.add_column("")
    for title in ("alignment", "95% interval", "questions", "uniform", "pairs"):
        table.add_column(title, justify="right")
    for side, block in blocks.items():
        for group in _ranked(block or {}):
            scores = block or {}
            ordered = scores.get("pairwise_accuracy_by_group", {})
            table.add_row(
                escape(group),
                side,
                f"{scores['by_group'][group]:.4f}",
                _range(scores["intervals"].get(group), scores["questions"][group]) or "–",
                str(scores["questions"][group]),
                f"{scores['uniform_by_group'][group]:.4f}",
                f"{ordered[group]:.4f}" if group in ordered else "–",
            )
    console.print(table)


def show_summary(console: Console, blocks: Mapping[str, Block | None]) -> None:
    """Print the means and the fairness of each side."""
    for side, block in blocks.items():
        if not block:
            continue
        groups = len(block["by_group"])
        few = f"{groups} group{'s' * (groups > 1)}, too few for an interval"
        lines = [
            f"alignment {block['alignment']:.4f} ({_range(block['interval'], groups) or few}), "
            f"uniform {block['uniform']:.4f}"
        ]
        if (offered := block.get("alignment_offered", block["alignment"])) != block["alignment"]:
            lines.append(f"alignment {offered:.4f} if the options offered are known")
        if (ordered := block.get("pairwise_accuracy")) is not None:
            lines.append(
                f"pairs of options: {ordered:.4f} in the group's order (a guess 0.5), calibration "
                f"error {block['calibration_error']:.4f}"
            )
        if groups > 1:
            lines.append(
                f"fairness: CoV {block['cov']:.4f}, 1/(1+CoV²) {block['fairness_index_cov2']:.4f}, "
                f"1/(1+CoV) {block['fairness_index_cov']:.4f}, min {block['min']:.4f}"
            )
        labelled(console, side, *lines)


def show_standing(
    console: Console, blocks: Mapping[str, Block | None], references: Mapping[str, Any]
) -> None:
    """Print new and trained questions beside uniform, marginal and noise floor, and what it means.

    Parameters
    ----------
    console : Console
    blocks : mapping of str to block or None
        Side -> its scores.
    references : mapping
        Of diagnostics.json; empty where the answers are not at hand. What is not known has no
        column.
    """
    rows = standings(blocks, references)
    if not rows:
        return
    columns = [
        name
        for name in ("predictor", "uniform", "marginal", "noise_floor")
        if any(getattr(row, name) is not None for row in rows)
    ]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("questions")
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        values = [getattr(row, name) for name in columns]
        cells = ["–" if value is None else f"{value:.4f}" for value in values]
        if row.predictor is None:
            cells[0] = "not measured"
        table.add_row(row.side, row.questions, *cells)
    console.print(table)
    said = sentences(rows)
    console.print(" ".join(said), markup=False, highlight=False)


def show_warnings(console: Console, warnings: Sequence[str]) -> None:
    """Print what a user must not overlook."""
    if warnings:
        text = Text("\n".join(warnings))
        console.print(Panel(text, title="Warning", title_align="left", border_style="yellow"))


def show_diagnostics(console: Console, diagnostics: Mapping[str, Any]) -> None:
    """Print whether the predictor uses its context."""
    if text := _sides(diagnostics.get("ordinal_alignment"), "{:.4f}"):
        labelled(console, "ordinal", f"alignment, 1 − W1/max W1: {text}")
    if text := _sides(diagnostics.get("context_gain"), "{:+.4f}"):
        labelled(console, "context", f"gain over no context: {text}")
    if text := _sides(diagnostics.get("wrong_context"), "{:+.4f}"):
        labelled(console, "", f"own over another group's answers: {text}")


def show_bars(console: Console, options: Sequence[str], distribution: Iterable[float]) -> None:
    """Print one bar per option."""
    probabilities = [float(p) for p in distribution]
    label = max(12, console.width - 50)
    width = 30
    table = Table.grid(padding=(0, 1))
    table.add_column(max_width=label, overflow="fold")
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for option, probability in zip(options, probabilities, strict=True):
        eighths = round(probability * width * 8)
        bar = "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]
        table.add_row(Text(option), Text(f"{bar:<{width}}", style="cyan"), f"{probability:.1%}")
    console.print(table)


def _range(ends: Sequence[float] | None, values: int) -> str:
    """Return an interval over so many values; empty where it would look too certain."""
    return f"{ends[0]:.4f} – {ends[1]:.4f}" if ends and values >= FEWEST_FOR_INTERVAL else ""


def _ranked(block: Block) -> list[str]:
    scores: Mapping[str, float] = block.get("by_group", {})
    return sorted(scores, key=lambda group: (-scores[group], group))


def _sides(values: Mapping[str, float | None] | None, form: str) -> str:
    given = [(side, value) for side, value in (values or {}).items() if value is not None]
    return ", ".join(f"{side} {form.format(value)}" for side, value in given)
