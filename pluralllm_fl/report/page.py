"""What the page shows: the typed view of a run turned into the template's variables."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from markupsafe import Markup

from pluralllm_fl.config import default_run_config
from pluralllm_fl.evaluation.standing import NOT_MEASURED, Standing, sentences
from pluralllm_fl.report import figures
from pluralllm_fl.report.figures import Chart, Line, Scale
from pluralllm_fl.report.reading import SIDES, Diagnostics, GroupScore, Run, SideScores
from pluralllm_fl.runs.record import number

ALL_ROWS_UP_TO = 80
EXTREMES = 20
MEASURES = {  # name, definition, decimals
    "alignment": ("Alignment", "Mean over groups of 1 − Jensen-Shannon distance (macro).", 3),
    "alignment_micro": ("Alignment, micro", "The same, groups weighted by their questions.", 3),
    "alignment_offered": ("Alignment, options offered", "The same predictions, restricted to the "
                          "options that the group was offered, where the data state them.", 3),
    "pairwise_accuracy": ("Pairs in the group’s order", "Share of pairs of options between which "
                          "the group decided; a guess has one half.", 3),
    "calibration_error": ("Calibration error of pairs", "Expected distance of a pair’s probability "
                          "from how often the group prefers so. 0 is best.", 3),
    "cov": ("CoV", "Coefficient of variation: standard deviation / mean. 0 is even.", 4),
    "fairness_index_cov2": (
        "Fairness index, CoV²", "1 / (1 + CoV²), arXiv 2512.08786. 1 is even.", 4
    ),
    "fairness_index_cov": (
        "Fairness index, CoV", "1 / (1 + CoV), arXiv 2604.04261. 1 is even.", 4
    ),
    "min": ("Minimum", "Alignment of the worst-served group.", 3),
    "worst_decile": ("Worst decile", "Mean of the worst-served tenth of groups, at least one.", 3),
    "gap": ("Gap", "Best-served minus worst-served group.", 3),
}  # fmt: skip
# Of a reference: its name, its class in the style sheet, what it is.
REFERENCES = {
    "uniform": ("Uniform", "origin", "every option equally likely"),
    "marginal": ("Marginal", "marginal", "the seen groups’ own mean answer to the same question "
                 "(without the group asked); it reads raw answers, so no federation may"),
    "noise_floor": ("Noise floor", "floor", "what the true distribution itself would score, as "
                    "only so many people answered"),
}  # fmt: skip


def page(run: Run) -> dict[str, Any]:
    """Return every variable of the template."""
    return {
        "run": run,
        "config": run.record.config,
        "headline": _headline(run),
        "not_measured": NOT_MEASURED,
        "curves": _curves(run),
        "progress": _progress_rows(run),
        "groups": _groups(run),
        "fairness": _fairness(run),
        "context": None if run.diagnostics is None else _context(run, run.diagnostics),
        "examples": [] if run.diagnostics is None else run.diagnostics.examples,
        "events": _events(run),
        "settings": _settings(run.record.config),
    }


def _headline(run: Run) -> dict[str, Any] | None:
    rows = run.standings
    if not rows:
        return None
    scores = run.final[rows[0].side]
    by_kind = {"new": scores.test, "trained": scores.trained, "all": scores}
    own = [row for row in rows if row.side == scores.side]
    shown = [row for row in own if row.questions != "all"] or own
    known = [name for name in REFERENCES if any(getattr(row, name) is not None for row in rows)]
    ends = [
        value
        for row in rows
        for value in (row.predictor, *(getattr(row, name) for name in known))
        if value is not None
    ]
    scale = figures.padded(min(ends), max(ends))
    return {
        "side": scores.side,
        "value": scores.measure("alignment"),
        "interval": scores.interval,
        "parts": [(row, by_kind[row.questions]) for row in shown],
        "sentences": sentences(rows),
        "references": [REFERENCES[name] for name in known],
        "rows": [
            (row, [getattr(row, name) for name in known], _standing_track(row, scale))
            for row in rows
        ],
        "axis": figures.track_axis(scale),
    }


def _standing_track(row: Standing, scale: Scale) -> Markup:
    marks = [
        (style, value)
        for name, (_, style, _) in REFERENCES.items()
        if name != "uniform" and (value := getattr(row, name)) is not None
    ]
    if row.predictor is None:
        return Markup("")
    return figures.track(scale, row.side, row.predictor, origin=row.uniform, marks=marks)


def _curves(run: Run) -> list[Chart]:
    lines = []
    for side in SIDES:
        scored = [(e.round, e.sides[side]) for e in run.evaluations if side in e.sides]
        band = [(at, *ends) for at, s in scored if (ends := s.interval)] if side == "unseen" else []
        points = [(at, s.measure("alignment")) for at, s in scored]
        lines.append(Line(f"{side} groups", side, points, band))
    lines += _reference_lines(run)
    loss = Line("weighted mean of the nodes", "loss", [(r.number, r.loss) for r in run.rounds])
    charts = [figures.line_chart("Alignment", lines), figures.line_chart("Training loss", [loss])]
    return [chart for chart in charts if chart]


def _reference_lines(run: Run) -> list[Line]:
    """Levels on all questions, for the side that the page puts first."""
    rows, xs = run.standings, [e.round for e in run.evaluations]
    if not rows or not xs:
        return []
    row = [row for row in rows if row.side == rows[0].side][-1]
    levels = {"uniform": row.uniform, "noise floor": row.noise_floor}
    return [
        Line(f"{name} ({row.side})", f"reference {name}", [(min(xs), value), (max(xs), value)])
        for name, value in levels.items()
        if value is not None
    ]


def _progress_rows(run: Run) -> list[dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = defaultdict(dict)
    for step in run.rounds:
        rows[step.number] |= {"loss": step.loss, "seconds": step.seconds}
    for evaluation in run.evaluations:
        row = rows[evaluation.round]
        for side, scores in evaluation.sides.items():
            row |= {f"{side}_{m}": scores.measure(m) for m in ("alignment", "cov", "min")}
    return [{"round": number, **rows[number]} for number in sorted(rows)]


def _groups(run: Run) -> dict[str, Any] | None:
    rows = [group for scores in run.final.values() for group in scores.groups]
    if not rows:
        return None
    rows.sort(key=lambda g: (-g.alignment, g.name))
    ends = [v for g in rows for v in (g.alignment, g.uniform, *(g.interval or ())) if v is not None]
    scale = figures.padded(min(ends), max(ends))
    if len(rows) <= ALL_ROWS_UP_TO:
        panels = [{"chart": None, "best": _bars(rows, scale), "worst": []}]
    else:
        sides = ([g for g in rows if g.side == side] for side in SIDES)
        panels = [_extremes(members, scale) for members in sides if members]
    return {"panels": panels, "axis": figures.track_axis(scale), "rows": rows,
            "pairs": any(g.pairwise_accuracy is not None for g in rows),
            "all_shown": len(rows) <= ALL_ROWS_UP_TO, "compact": len(rows) > EXTREMES}  # fmt: skip


def _extremes(members: list[GroupScore], scale: Scale) -> dict[str, Any]:
    side = members[0].side
    split = len(members) > 2 * EXTREMES
    return {
        "chart": figures.histogram(
            f"{len(members)} {side} groups", [g.alignment for g in members], side, scale
        ),
        "best": _bars(members[:EXTREMES] if split else members, scale),
        "worst": _bars(members[-EXTREMES:], scale) if split else [],
        "between": len(members) - 2 * EXTREMES,
    }


def _bars(rows: Iterable[GroupScore], scale: Scale) -> list[dict[str, Any]]:
    return [
        {
            "group": g,
            "track": figures.track(
                scale, g.side, g.alignment, interval=g.interval, origin=g.uniform
            ),
        }
        for g in rows
    ]


def _fairness(run: Run) -> dict[str, Any] | None:
    columns: list[tuple[str, str, SideScores]] = []
    compared = {side: scores for side, scores in run.final.items() if len(scores.groups) != 1}
    for side, scores in compared.items():
        columns.append((side, "all questions", scores))
        if scores.test:
            columns.append((side, "test questions", scores.test))
    if not columns:
        return None
    charts = []
    for measure, title in (("cov", "CoV"), ("min", "Worst-served group")):
        lines = [
            Line(f"{side} groups", side, [(e.round, e.sides[side].measure(measure))
                                          for e in run.evaluations if side in e.sides])
            for side in compared
        ]  # fmt: skip
        charts.append(figures.line_chart(title, lines))
    return {
        "columns": [(side, questions) for side, questions, _ in columns],
        "rows": [
            (name, definition, [scores.measure(key) for _, _, scores in columns], digits)
            for key, (name, definition, digits) in MEASURES.items()
        ],
        "charts": [chart for chart in charts if chart],
    }


def _context(run: Run, diagnostics: Diagnostics) -> dict[str, Any]:
    sizes = diagnostics.sizes
    lines = [
        Line(f"{side} groups", side, list(zip(sizes, diagnostics.curve[side], strict=False)))
        for side in SIDES
        if side in diagnostics.curve
    ]
    asked = run.record.config.get("context-questions", "n")
    controls = [
        ("Context gain", f"Alignment with {asked} context questions minus with none.",
         diagnostics.gain, True),
        ("Wrong-context control",
         f"Alignment with the group’s own {asked} answers minus with another group’s.",
         diagnostics.wrong, True),
    ]  # fmt: skip
    if diagnostics.ordinal:
        note = "Over questions with an order of options; W1 is the Wasserstein distance."
        controls.append(("Ordinal alignment, 1 − W1/max W1", note, diagnostics.ordinal, False))
    return {
        "chart": figures.line_chart("Alignment by context size", lines, "context questions",
                                    x_ticks=sizes, transform=math.log1p),
        "rows": [
            {"size": size, **{s: c[i] for s, c in diagnostics.curve.items() if i < len(c)}}
            for i, size in enumerate(sizes)
        ],
        "controls": controls,
        "sides": [s for s in SIDES if any(s in m for _, _, m, _ in controls)],
    }  # fmt: skip


_MOVEMENTS = {
    "node_joined": "joined late, in round",
    "node_back": "was away and came back in round",
    "message_resent": "was restarted while it worked and was asked again in round",
}


def _events(run: Run) -> dict[str, Any]:
    dropped: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for event in run.dropped:
        group, reason, phase = (str(event.get(k, "?")) for k in ("group", "reason", "phase"))
        dropped[group, reason, phase].append(int(number(event.get("round")) or 0))
    rows = sorted(dropped.items(), key=lambda entry: (-len(entry[1]), entry[0]))
    moved: dict[tuple[str, str], list[int]] = defaultdict(list)
    for event in run.movements:
        what = (str(event.get("group", "?")), _MOVEMENTS[event["event"]])
        moved[what].append(int(number(event.get("round")) or 0))
    return {
        "dropped": [(*who, len(rounds), ranges(rounds)) for who, rounds in rows],
        "retried": run.retried,
        "moved": [(*what, ranges(rounds)) for what, rounds in sorted(moved.items())],
        "early_stop": run.early_stop,
        "resumed_at": run.resumed_at,
    }


def ranges(numbers: Iterable[int]) -> str:
    """Return e.g. ``"1, 4–6"`` for 4, 1, 5, 6."""
    spans: list[list[int]] = []
    for value in sorted(set(numbers)):
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in spans)


def _settings(config: Mapping[str, Any]) -> dict[str, list[tuple[str, Any, Any]]]:
    defaults = default_run_config()
    rows = [(key, value, defaults.get(key)) for key, value in config.items()]
    return {
        "changed": [row for row in rows if row[1] != row[2]],
        "default": [row for row in rows if row[1] == row[2]],
    }
