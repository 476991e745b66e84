"""Draw the results as figures for the documentation: docs/figures/*.svg.

Reads convergence.json beside this file; trains nothing.

    python benchmarks/figures.py
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from convergence import shown
from store import Measure, Run, measured, read, script
from trained import MANY, SIZES

from pluralllm_fl.report.figures import Scale, padded, ticks

WIDTH, HEIGHT = 760, 400
LEFT, TOP, RIGHT, BOTTOM = 64, 44, 536, 344  # the plot area
# Distinct with every kind of colour vision, on white and on dark pages alike.
COLOURS = {"ours": "#0072b2", MANY: "#009e73", "published": "#d55e00"}
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#333}.title{font-size:15px;font-weight:600}"
    ".grid{stroke:#ddd}.line{fill:none;stroke-width:2.5}"
)


@dataclass(frozen=True)
class Curve:
    """A named line through points (x, y); dashes for controls and levels."""

    label: str
    colour: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False
    dots: bool = True


def draw(
    title: str, x_label: str, curves: Sequence[Curve], x_ticks: Sequence[float], x: Scale
) -> str:
    """Return a chart of unseen alignment as an SVG document."""
    values = [y for curve in curves for _, y in curve.points]
    y = padded(min(values), max(values))

    def across(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * x(value) / 100

    def up(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * y(value) / 100

    parts = [f'<text class="title" x="{LEFT}" y="24">{title}</text>']
    y_ticks, digits = ticks(y.low, y.high)
    for value in y_ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {up(value):.1f}H{RIGHT}"/>')
        parts.append(text(LEFT - 8, up(value) + 4, f"{value:.{digits}f}", anchor="end"))
    for value in x_ticks:
        parts.append(text(across(value), BOTTOM + 20, f"{value:g}", anchor="middle"))
    parts.append(text((LEFT + RIGHT) / 2, BOTTOM + 42, x_label, anchor="middle"))
    for curve in curves:
        at = [(across(a), up(b)) for a, b in curve.points]
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in at)
        dash = ' stroke-dasharray="6 4"' if curve.dashed else ""
        parts.append(f'<path class="line" stroke="{curve.colour}"{dash} d="{path}"/>')
        if curve.dots:
            parts += [
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{curve.colour}"/>' for a, b in at
            ]
    ends = [up(curve.points[-1][1]) for curve in curves]
    for curve, height in zip(curves, apart(ends), strict=True):
        label = f"{curve.label} {curve.points[-1][1]:.3f}"
        parts.append(text(RIGHT + 10, height + 4, label, colour=curve.colour))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{title}"><style>{STYLE}</style>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def text(x: float, y: float, said: str, *, anchor: str = "start", colour: str = "#333") -> str:
    """Return one text."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="fill:{colour}">{said}</text>'
    )


def apart(heights: Sequence[float], least: float = 16.0) -> list[float]:
    """Move labels apart as little as keeps them readable, in the same order."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = list(heights)
    for above, below in pairwise(order):
        placed[below] = max(placed[below], placed[above] + least)
    return placed


def mean(runs: Sequence[Run], measure: Measure) -> float | None:
    """Average a measure over seeds; None if no run has it."""
    values = [value for run in runs if (value := measure(run)) is not None]
    return float(np.mean(values)) if values else None


def convergence(runs: dict[str, list[Run]]) -> str:
    """Draw unseen alignment over megabytes up from all nodes, with what others reach as levels."""
    curves = []
    for name in ("ours", "published"):
        rounds = zip(*(run["curve"] for run in runs[name]), strict=True)
        megabytes = runs[name][0]["megabytes_a_round"]
        points = [
            (megabytes * points[0]["round"], float(np.mean([p["unseen"] for p in points])))
            for points in rounds
        ]
        curves.append(Curve(name, COLOURS[name], points))
    sent = [x for curve in curves for x, _ in curve.points]
    x = Scale(min(sent), max(sent), math.log10)
    levels = (
        ("ours, centralised", "ours, centralised", "unseen alignment", COLOURS["ours"]),
        ("published, centralised", "published, centralised", "unseen alignment",
         COLOURS["published"]),
        ("seen countries' mean", "ours", "seen mean (raw answers)", "#666"),
        ("uniform guess", "ours", "uniform", "#999"),
    )  # fmt: skip
    for label, name, measure, colour in levels:
        if (level := mean(runs.get(name, []), measured(measure))) is not None:
            ends = [(x.low, level), (x.high, level)]
            curves.append(Curve(label, colour, ends, dashed=True, dots=False))
    first, last = math.ceil(math.log10(x.low)), math.floor(math.log10(x.high))
    return draw(
        "Alignment of unseen countries over what nodes send up",
        "megabytes up, all nodes (logarithmic)",
        curves,
        [10.0**power for power in range(first, last + 1)],
        x,
    )


def context_size(runs: dict[str, list[Run]]) -> str:
    """Draw unseen alignment over the number of answers shown, own and of another group."""
    curves = []
    for name in ("ours", MANY, "published"):
        for side, label in (("own", name), ("wrong", f"{name}, wrong")):
            found = [(size, mean(runs.get(name, []), shown(size, side))) for size in SIZES]
            points = [(float(size), value) for size, value in found if value is not None]
            if points:
                curves.append(Curve(label, COLOURS[name], points, side == "wrong"))
    return draw(
        "Alignment of unseen countries over the answers shown",
        "answers shown: own, or another country's (dashed); logarithmic",
        curves,
        SIZES,
        Scale(0, max(SIZES), math.log1p),
    )


FIGURES: dict[str, tuple[Callable[[dict[str, list[Run]]], str], set[str]]] = {
    "convergence": (convergence, {"ours", "published"}),
    "context_size": (context_size, {"ours"}),
}


def main() -> None:
    """Write every figure."""
    here = Path(__file__).resolve()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=here.with_name("convergence.json"))
    parser.add_argument("--output", type=Path, default=here.parents[1] / "docs" / "figures")
    arguments = parser.parse_args()
    runs = read(arguments.runs).runs
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, (figure, needed) in FIGURES.items():
        if missing := [recipe for recipe in sorted(needed) if not runs.get(recipe)]:
            raise SystemExit(f"{arguments.runs} holds no run of: {', '.join(missing)}.")
        (arguments.output / f"{name}.svg").write_text(figure(runs), encoding="utf-8")
        print(arguments.output / f"{name}.svg")


if __name__ == "__main__":
    script(main)
