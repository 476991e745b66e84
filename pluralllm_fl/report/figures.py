"""Figures as inline SVG that stretches with the page while its strokes and texts do not.

Charts fill a 100 x 100 box without a fixed aspect ratio; the template sets tick labels around
it as HTML. Tracks (one bar a row) place their marks in percent. Colours come from the style
sheet's classes, so that both themes work.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

Point = tuple[float, float | None]
DOTS_UP_TO = 40


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart; ``kind`` is its CSS class, ``band`` holds (x, low, high)."""

    label: str
    kind: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = ()

    @property
    def reference(self) -> bool:
        """Whether this is a level to compare with, not a measurement."""
        return self.kind.startswith("reference")

    @property
    def known(self) -> list[tuple[float, float]]:
        """Points that have a value."""
        return [(x, y) for x, y in self.points if y is not None]


@dataclass(frozen=True, slots=True)
class Chart:
    """A plot area with its ticks as (percent, label)."""

    title: str
    x_label: str
    svg: Markup
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    description: str
    legend: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Scale:
    """Linear map from values to percent of the plot area, after ``transform``."""

    low: float
    high: float
    transform: Callable[[float], float] = lambda value: value

    def __call__(self, value: float) -> float:
        """Return the place of a value in percent."""
        low, high = self.transform(self.low), self.transform(self.high)
        return round(100 * (self.transform(value) - low) / (high - low), 2) if high > low else 50.0


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_label: str = "round",
    *,
    x_ticks: Sequence[float] | None = None,
    transform: Callable[[float], float] = lambda value: value,
) -> Chart | None:
    """Draw lines over a common axis; None if none of them has a point."""
    lines = [line for line in lines if line.known]
    measured = [line for line in lines if not line.reference]
    if not measured:
        return None
    xs = [x for line in measured for x, _ in line.known]
    ys = [y for line in lines for _, y in line.known]
    ys += [y for line in lines for _, *ends in line.band for y in ends]
    x = Scale(min(xs), max(xs), transform)
    y = padded(min(ys), max(ys))
    y_values, digits = ticks(y.low, y.high)
    x_values = x_ticks or [t for t in ticks(x.low, x.high, 6)[0] if t == int(t)] or [x.low]
    parts = [_grid(y(v)) for v in y_values]
    parts += [_band(line, x, y) for line in lines if line.band]
    parts += [_line(line, x, y) for line in lines]
    shown = max(digits, 3)
    return Chart(
        title=title,
        x_label=x_label,
        svg=Markup("").join(parts),
        x_ticks=[(x(v), f"{v:g}") for v in x_values],
        y_ticks=[(100 - y(v), f"{v:.{digits}f}") for v in y_values],
        legend=[(line.kind, line.label, f"{line.known[-1][1]:.{shown}f}") for line in lines],
        description=_describe(title, lines, x_label),
    )


def histogram(title: str, values: Sequence[float], kind: str, scale: Scale) -> Chart:
    """Draw how many groups have which alignment, on a scale that sides share."""
    bins = 24
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, max(0, int(scale(value) / 100 * bins)))] += 1
    y = Scale(0, max(counts) * 1.05)
    width = 100 / bins
    bars = [
        Markup('<path class="fill {}" d="M{:.2f} 100V{:.2f}H{:.2f}V100Z"/>').format(
            kind, i * width + 0.2, 100 - y(count), (i + 1) * width - 0.2
        )
        for i, count in enumerate(counts)
        if count
    ]
    x_values, digits = ticks(scale.low, scale.high, 6)
    y_values = [v for v in ticks(0, y.high, 4)[0] if v == int(v)]
    return Chart(
        title=title,
        x_label="alignment",
        svg=Markup("").join([*(_grid(y(v)) for v in y_values), *bars]),
        x_ticks=[(scale(v), f"{v:.{digits}f}") for v in x_values],
        y_ticks=[(100 - y(v), f"{v:.0f}") for v in y_values],
        description=f"Histogram of {len(values)} groups: from {min(values):.3f} to "
        f"{max(values):.3f}, most between {_mode(counts, scale)}.",
    )


def track(
    scale: Scale,
    kind: str,
    value: float,
    *,
    interval: tuple[float, float] | None = None,
    origin: float | None = None,
    marks: Sequence[tuple[str, float]] = (),
) -> Markup:
    """Draw one row: a bar from ``origin`` (marked by a tick) to a dot, with its whisker.

    Each of `marks` is a further level, a thin line of the CSS class that it names.
    """
    parts = [
        Markup('<line class="grid" x1="{0}%" x2="{0}%" y1="0" y2="100%"/>').format(scale(v))
        for v in ticks(scale.low, scale.high)[0]
    ]
    if origin is not None:
        left, right = sorted((scale(origin), scale(value)))
        parts.append(
            Markup('<rect class="bar {}" x="{}%" y="30%" width="{:.2f}%" height="40%"/>').format(
                kind, left, right - left
            )
        )
        parts.append(
            Markup('<line class="origin" x1="{0}%" x2="{0}%" y1="15%" y2="85%"/>').format(
                scale(origin)
            )
        )
    if interval is not None:
        parts.append(
            Markup('<line class="whisker" x1="{}%" x2="{}%" y1="50%" y2="50%"/>').format(
                *map(scale, interval)
            )
        )
    for name, level in marks:
        line = Markup('<line class="level {0}" x1="{1}%" x2="{1}%" y1="8%" y2="92%"/>')
        parts.append(line.format(name, scale(level)))
    dot = Markup('<circle class="dot {}" cx="{}%" cy="50%" r="4"/>').format(kind, scale(value))
    parts.append(dot)
    return Markup('<svg class="track" aria-hidden="true">{}</svg>').format(Markup("").join(parts))


def track_axis(scale: Scale) -> Markup:
    """Draw the tick labels above a column of tracks."""
    values, digits = ticks(scale.low, scale.high)
    labels = [
        Markup('<text x="{}%" y="75%" text-anchor="middle">{}</text>').format(
            scale(v), f"{v:.{digits}f}"
        )
        for v in values
    ]
    # A dense axis drops every other label on a narrow screen.
    return Markup('<svg class="track axis{}" aria-hidden="true">{}</svg>').format(
        " dense" if len(labels) > 3 else "", Markup("").join(labels)
    )


def padded(low: float, high: float) -> Scale:
    """Return a scale with a little air around the values."""
    air = max((high - low) * 0.06, 0.005 * max(abs(high), 1e-3))
    return Scale(low - air, high + air)


def ticks(low: float, high: float, wanted: int = 5) -> tuple[list[float], int]:
    """Return round values within low..high, and the decimals that they need."""
    if high <= low:
        return [low], 0 if low == int(low) else 2
    raw = (high - low) / wanted
    power = math.floor(math.log10(raw))
    step = next(m * 10.0**power for m in (1, 2, 5, 10) if m * 10.0**power >= raw * 0.999)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, digits) for i in range(first, last + 1)], digits


def _grid(percent: float) -> Markup:
    return Markup('<path class="grid" d="M0 {:.2f}H100"/>').format(100 - percent)


def _line(line: Line, x: Scale, y: Scale) -> Markup:
    steps, pen_down = [], False
    for at, value in line.points:
        if value is not None:
            steps.append(f"{'L' if pen_down else 'M'}{x(at):.2f} {100 - y(value):.2f}")
        pen_down = value is not None
    parts = [Markup('<path class="line {}" d="{}"/>').format(line.kind, "".join(steps))]
    if not line.reference:
        # Zero-length strokes with round caps stay round however the plot is stretched.
        dotted = line.known if len(line.known) <= DOTS_UP_TO else line.known[-1:]
        dots = "".join(f"M{x(at):.2f} {100 - y(value):.2f}h0" for at, value in dotted)
        parts.append(Markup('<path class="dots {}" d="{}"/>').format(line.kind, dots))
    return Markup("").join(parts)


def _band(line: Line, x: Scale, y: Scale) -> Markup:
    upper = [f"{x(at):.2f} {100 - y(high):.2f}" for at, _, high in line.band]
    lower = [f"{x(at):.2f} {100 - y(low):.2f}" for at, low, _ in reversed(line.band)]
    return Markup('<path class="band {}" d="M{}Z"/>').format(line.kind, "L".join(upper + lower))


def _describe(title: str, lines: Sequence[Line], x_label: str) -> str:
    parts = []
    for line in lines:
        (first_x, first), (last_x, last) = line.known[0], line.known[-1]
        if line.reference:
            parts.append(f"{line.label} {last:.3f}")
        else:
            parts.append(
                f"{line.label} from {first:.3f} at {x_label} {first_x:g} "
                f"to {last:.3f} at {x_label} {last_x:g}"
            )
    return f"Line chart, {title}: {'; '.join(parts)}."


def _mode(counts: Sequence[int], scale: Scale) -> str:
    width = (scale.high - scale.low) / len(counts)
    left = scale.low + width * max(range(len(counts)), key=lambda i: counts[i])
    return f"{left:.3f} and {left + width:.3f}"
