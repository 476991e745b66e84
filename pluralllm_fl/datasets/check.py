"""What a data file holds, and everything that is wrong with it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pluralllm_fl.datasets.collect import Collector
from pluralllm_fl.datasets.files import open_rows
from pluralllm_fl.errors import DatasetError

DEFAULT_CONTEXT = 20  # of context-questions: a group needs one question more


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Findings about one file.

    Parameters
    ----------
    path, format : str
        The file and "JSON lines", "CSV" or "Parquet".
    kinds : mapping of str to int
        Answers found by kind of row ("distribution", "choice", "preference pair", …).
    groups : mapping of str to int
        Number of questions that each group answered.
    questions, answers : int
        Distinct questions; answers of all groups to them.
    options : mapping of int to int
        Number of questions with that many options.
    offered : int
        Answers that state which options were offered.
    problems : list of (int, str)
        Line (row in Parquet; 0: the whole file), and what is wrong and how to mend it.
    fingerprint : str or None
        Hash of the usable content; None when nothing is usable.
    unit : str
        What the line numbers count: "line" or "row".
    """

    path: str
    format: str
    kinds: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)
    questions: int = 0
    answers: int = 0
    offered: int = 0
    options: Mapping[int, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)
    fingerprint: str | None = None
    unit: str = "line"

    @property
    def ok(self) -> bool:
        return not self.problems


def check(path: Path | str) -> CheckReport:
    """Read the whole file, past every problem.

    Raises
    ------
    DatasetError
        When the file cannot be opened at all.
    """
    path = Path(path).expanduser()
    rows = open_rows(path)
    collector = Collector(str(path), rows.unit, raise_on_bad=False)
    unit = rows.unit.strip() or "line"
    try:
        collector.add_all(rows.rows)
        dataset = collector.dataset(str(path))
    except DatasetError as error:
        problems = _by_line(collector) or [(0, str(error))]
        return CheckReport(str(path), rows.format, problems=problems, unit=unit)
    return CheckReport(
        path=str(path),
        format=rows.format,
        kinds=dict(collector.kinds.most_common()),
        groups={name: len(group) for name, group in dataset.groups.items()},
        questions=len(dataset.questions),
        answers=sum(len(group) for group in dataset.groups.values()),
        offered=sum(len(group.offered) for group in dataset.groups.values()),
        options=dict(sorted(Counter(len(q.options) for q in dataset.questions).items())),
        problems=_by_line(collector),
        fingerprint=dataset.fingerprint,
        unit=unit,
    )


def _by_line(collector: Collector) -> list[tuple[int, str]]:
    return sorted(collector.problems, key=lambda problem: problem[0])


def render(report: CheckReport) -> str:
    """Lay the findings out as plain text for a terminal, problems last."""
    lines = [f"{report.path}: {report.format}"]
    if report.fingerprint:
        kinds = ", ".join(f"{count} x {kind}" for kind, count in report.kinds.items())
        options = ", ".join(f"{size}: {count}" for size, count in report.options.items())
        lines += [
            f"rows         {kinds}",
            f"groups       {len(report.groups)}",
            f"questions    {report.questions}  (by number of options: {options})",
            f"answers      {report.answers}{_stated(report)}",
            f"fingerprint  {report.fingerprint[:16]}",
            "",
            "questions  group",
            *(f"{count:9d}  {name}" for name, count in report.groups.items()),
        ]
    if few := sum(count <= DEFAULT_CONTEXT for count in report.groups.values()):
        lines += [
            "",
            f"Note: {few} group(s) have no more than {DEFAULT_CONTEXT} questions, too few for the "
            f"default context-questions = {DEFAULT_CONTEXT}; lower it for them.",
        ]
    if report.ok:
        return "\n".join([*lines, "", "No problems."])
    lines += ["", f"Problems: {len(report.problems)}"]
    by_reason: dict[str, list[int]] = {}
    for line, reason in report.problems:
        by_reason.setdefault(reason, []).append(line)
    for reason, places in by_reason.items():
        lines.append(f"  {_where(report.unit, places)}{reason}")
    if report.fingerprint:
        lines.append('Mend them, or load the rest with on-bad-row = "skip".')
    return "\n".join(lines)


def _stated(report: CheckReport) -> str:
    return f"  ({report.offered} state the options offered)" if report.offered else ""


def _where(unit: str, places: list[int]) -> str:
    """Name the lines of one problem: all of them, in runs (3-7, 9)."""
    if places == [0]:
        return ""
    runs: list[list[int]] = []
    for place in sorted(places):
        if runs and place == runs[-1][1] + 1:
            runs[-1][1] = place
        else:
            runs.append([place, place])
    listed = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
    return f"{unit}{'s' if len(places) > 1 else ''} {listed}: "
