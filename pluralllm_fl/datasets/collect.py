"""Rows of one source -> PreferenceDataset: adds up answers, finds conflicts, counts bad rows."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from pluralllm_fl.arrays import BoolArray, FloatArray
from pluralllm_fl.datasets.fields import BadRow, Row, shown
from pluralllm_fl.datasets.rows import Answer, parse_row
from pluralllm_fl.errors import DatasetError
from pluralllm_fl.preferences import GroupPreferences, PreferenceDataset, Question

RowStream = Iterable[tuple[int, Row | BadRow]]
_CONFLICT = "conflicting answers of one group to one question"
_CONFLICT_OFFERED = "conflicting options offered to one group"
_DOUBTFUL = "a number in 'choice' can be read in two ways"
_QuestionKey = tuple[str, tuple[str, ...]]


@dataclass(slots=True)
class _Cell:
    """Everything said about one group and question."""

    first_line: int
    distribution: tuple[float, ...] | None
    offered: tuple[bool, ...] | None
    tally: list[int]
    amounts: list[tuple[float, ...]] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)  # of the weights in `amounts`, by person
    rows: int = 0
    chosen: bool = False  # by numbers in `choice`
    conflict: str = ""

    def shares(self) -> FloatArray:
        if self.distribution is not None:
            return np.array(self.distribution)
        # Exactly rounded sums do not depend on the order of the rows.
        parts = [math.fsum(column) for column in zip(self.tally, *self.amounts, strict=True)]
        total = math.fsum(parts)
        return np.array([part / total for part in parts])

    def respondents(self) -> float | None:
        """Effective number of people (Kish): (sum of weights)² / sum of squared weights."""
        if len(self.squares) < len(self.amounts) or self.distribution is not None:
            return None
        people = sum(self.tally)
        mass = math.fsum([people, *(x for amounts in self.amounts for x in amounts)])
        return mass**2 / math.fsum([people, *self.squares])


@dataclass(slots=True)
class _Labels:
    """What rows say about a question besides its identity; they need not agree."""

    ordinal: set[tuple[float, ...]] = field(default_factory=set)
    topic: set[str] = field(default_factory=set)
    source: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Readings:
    """First lines of the numbers in `choice` that can be an option, an index or either."""

    first: dict[str, dict[_QuestionKey, int]] = field(
        default_factory=lambda: {"option": {}, "index": {}, "either": {}}
    )

    def note(self, line: int, answer: Answer) -> None:
        if answer.reading:
            lines, key = self.first[answer.reading], (answer.question, answer.options)
            lines[key] = min(line, lines.get(key, line))

    def doubtful(self) -> dict[_QuestionKey, tuple[int, int]]:
        """Questions whose numbers can be read in two ways: lines of one, and of an index.

        A number that is an option is that option, unless the file also holds numbers that can
        only be an index: in the same question, or in others while nothing in this one excludes it.
        """
        option, index, either = (self.first[name] for name in ("option", "index", "either"))
        anywhere = min(index.values(), default=0)
        return {
            key: (line, index.get(key, anywhere))
            for key, line in either.items()
            if key in index or (index and key not in option)
        }


class Collector:
    """Takes rows in any order; the result does not depend on it.

    Parameters
    ----------
    place : str
        File or hub id, as errors name it.
    unit : str
        What a line number counts: ``""`` for lines of a file, ``"row "`` for table rows.
    raise_on_bad : bool
        Raise at the first bad row instead of noting it.
    """

    def __init__(self, place: str, unit: str = "", *, raise_on_bad: bool) -> None:
        self.place = place
        self.unit = unit
        self.raise_on_bad = raise_on_bad
        self.kinds: Counter[str] = Counter()
        self.problems: list[tuple[int, str]] = []
        self._skipped: Counter[str] = Counter()
        self._readings = _Readings()
        self._cells: dict[tuple[str, _QuestionKey], _Cell] = {}
        self._labels: defaultdict[_QuestionKey, _Labels] = defaultdict(_Labels)

    def add_all(self, stream: RowStream) -> None:
        for line, row in stream:
            try:
                found = [row] if isinstance(row, BadRow) else parse_row(row)
            except BadRow as bad:
                found = [bad]
            for entry in found:
                if isinstance(entry, BadRow):
                    self._skipped[entry.reason] += 1
                    self._report(line, entry)
                else:
                    self._add(line, entry)

    def _report(self, line: int, bad: BadRow) -> None:
        if self.raise_on_bad:
            raise DatasetError(f"{self.place}:{self.unit}{line}: {bad}.")
        self.problems.append((line, str(bad)))

    def _add(self, line: int, answer: Answer) -> None:
        self.kinds[answer.kind] += 1
        question = (answer.question, answer.options)
        cell = self._cells.get((answer.group, question))
        if cell is None:
            cell = _Cell(line, answer.distribution, answer.offered, [0] * len(answer.options))
            self._cells[answer.group, question] = cell
        cell.rows += 1
        cell.chosen = cell.chosen or bool(answer.reading)
        self._readings.note(line, answer)
        if bad := self._conflict(cell, answer):
            cell.conflict = cell.conflict or bad.reason
            self._report(line, bad)
            return
        if answer.amounts is not None:
            cell.amounts.append(answer.amounts)
            if answer.kind == "counts":  # a ranked list says nothing of how many people ranked
                cell.squares.append(answer.weight * math.fsum(answer.amounts))
        elif answer.choice is not None and answer.weight == 1.0:
            cell.tally[answer.choice] += 1
        elif answer.choice is not None:
            one_hot = (float(i == answer.choice) for i in range(len(answer.options)))
            cell.amounts.append(tuple(answer.weight * x for x in one_hot))
            cell.squares.append(answer.weight**2)
        labels = self._labels[question]
        if answer.ordinal is not None:
            labels.ordinal.add(answer.ordinal)
        if answer.topic:
            labels.topic.add(answer.topic)
        if answer.source:
            labels.source.add(answer.source)

    def _conflict(self, cell: _Cell, answer: Answer) -> BadRow | None:
        differs = f"differs from {self.unit or 'line '}{cell.first_line}"
        if cell.distribution != answer.distribution:
            return BadRow(
                _CONFLICT,
                f"{differs}; keep one distribution, "
                f"or give 'counts' or 'choice' rows, which add up",
            )
        if cell.offered != answer.offered:
            return BadRow(
                _CONFLICT_OFFERED,
                f"{differs}; give all its rows of this question the same 'offered', or none",
            )
        return None

    def dataset(self, name: str) -> PreferenceDataset:
        """Build the data set of all good rows.

        Raises
        ------
        DatasetError
            When no row could be used.
        """
        doubtful = self._doubtful()
        skipped = Counter(self._skipped)
        groups: defaultdict[str, dict[Question, FloatArray]] = defaultdict(dict)
        respondents: defaultdict[str, dict[Question, float]] = defaultdict(dict)
        offered: defaultdict[str, dict[Question, BoolArray]] = defaultdict(dict)
        questions: dict[_QuestionKey, Question] = {}
        for (group, key), cell in self._cells.items():
            if cell.conflict:
                # All of them go: keeping the first would make the result depend on the order.
                skipped[cell.conflict] += cell.rows
                continue
            if key in doubtful and cell.chosen:
                skipped[_DOUBTFUL] += cell.rows
                continue
            if key not in questions:
                questions[key] = self._question(key)
            groups[group][questions[key]] = cell.shares()
            if (people := cell.respondents()) is not None:
                respondents[group][questions[key]] = people
            if cell.offered is not None:
                offered[group][questions[key]] = np.array(cell.offered)
        if not groups:
            raise DatasetError(self._nothing_usable(skipped))
        return PreferenceDataset(
            name=name,
            groups={
                g: GroupPreferences(g, p, respondents[g], offered[g]) for g, p in groups.items()
            },
            skipped=dict(sorted(skipped.items())),
        )

    def _doubtful(self) -> set[_QuestionKey]:
        """Report the questions whose numbers can be read in two ways."""
        found = self._readings.doubtful()
        for key, (line, index) in sorted(found.items(), key=lambda item: item[1]):
            options = key[1]
            self._report(
                line,
                BadRow(
                    _DOUBTFUL,
                    f"it is one of the options {shown(list(options))}, or an index from 0, as in "
                    f"{self.unit or 'line '}{index}; write every choice of this file as the text "
                    f"of an option",
                ),
            )
        return set(found)

    def _question(self, key: _QuestionKey) -> Question:
        labels = self._labels[key]
        return Question(
            *key,
            ordinal=min(labels.ordinal, default=None),
            topic=min(labels.topic, default=""),
            source=min(labels.source, default=""),
        )

    def _nothing_usable(self, skipped: Counter[str]) -> str:
        if not skipped:
            return (
                f"{self.place} holds no rows. Give one row per group and question with the columns "
                f"group, question, options, distribution."
            )
        reasons = "; ".join(f"{count} x {reason}" for reason, count in skipped.most_common(3))
        line, problem = self.problems[0]
        return (
            f"{self.place} holds no usable row ({reasons}). First: {self.unit or 'line '}{line}: "
            f"{problem}. `pluralllm data check` lists every problem."
        )
