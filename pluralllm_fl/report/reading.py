"""Run directory -> typed view. Only run.json is indispensable; anything else may be missing."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pluralllm_fl.errors import ArtefactError
from pluralllm_fl.evaluation.standing import FEWEST_FOR_INTERVAL, Standing, standings
from pluralllm_fl.runs.record import SCHEMA, RunRecord, mapping, number

SIDES = ("seen", "unseen")
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GroupScore:
    """How well one group's answers are predicted, over its questions."""

    name: str
    side: str
    alignment: float
    interval: tuple[float, float] | None
    uniform: float | None
    questions: int | None
    pairwise_accuracy: float | None
    calibration_error: float | None


@dataclass(frozen=True, slots=True)
class SideScores:
    """One side's block of scores (`evaluation.blocks.group_block`)."""

    side: str
    block: Json

    def measure(self, name: str) -> float | None:
        """Return a number of the block (``alignment``, ``cov``, …), None where it is absent."""
        return number(self.block.get(name))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% interval of the mean over groups; None for few groups, over which it misleads."""
        enough = len(mapping(self.block.get("by_group"))) >= FEWEST_FOR_INTERVAL
        return _interval(self.block.get("interval")) if enough else None

    @property
    def test(self) -> "SideScores | None":
        """The same block over test questions."""
        return _scores(self.side, self.block.get("test_questions"))

    @property
    def trained(self) -> "SideScores | None":
        """The same block over training questions."""
        return _scores(self.side, self.block.get("trained_questions"))

    @property
    def groups(self) -> list[GroupScore]:
        """Every group, best first; a group without its own uniform score has the side's mean."""
        intervals, questions, uniform = (
            mapping(self.block.get(key)) for key in ("intervals", "questions", "uniform_by_group")
        )
        ordered, calibration = (
            mapping(self.block.get(f"{measure}_by_group"))
            for measure in ("pairwise_accuracy", "calibration_error")
        )
        found = []
        for name, value in mapping(self.block.get("by_group")).items():
            if (score := number(value)) is None:
                continue
            own_uniform = number(uniform.get(name, self.block.get("uniform")))
            asked = number(questions.get(name))
            count = None if asked is None else int(asked)
            few = count is not None and count < FEWEST_FOR_INTERVAL
            interval = None if few else _interval(intervals.get(name))
            pairs = number(ordered.get(name)), number(calibration.get(name))
            found.append(GroupScore(name, self.side, score, interval, own_uniform, count, *pairs))
        return sorted(found, key=lambda g: (-g.alignment, g.name))


@dataclass(frozen=True, slots=True)
class Round:
    """One round of training, seconds and bytes of this round alone."""

    number: int
    loss: float | None
    seconds: float
    bytes_up: float
    bytes_down: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of the global model after a round; round 0 is the initial model."""

    round: int
    sides: Mapping[str, SideScores]
    seconds: float
    bytes_up: float
    bytes_down: float


@dataclass(frozen=True, slots=True)
class Example:
    """A question with a group's true and predicted distribution over its options."""

    rank: str
    group: str
    question: str
    options: Sequence[str]
    true: Sequence[float]
    predicted: Sequence[float]
    alignment: float | None


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """Does the predictor use its context? Mappings but the references are keyed by side."""

    sizes: Sequence[int]
    curve: Mapping[str, Sequence[float | None]]
    gain: Mapping[str, float]
    wrong: Mapping[str, float]
    ordinal: Mapping[str, float]
    references: Json
    examples: Sequence[Example]


@dataclass(slots=True)
class Run:
    """All that the report shows."""

    name: str
    status: str
    error: str | None
    record: RunRecord
    planned_rounds: int | None = None
    strategy: str | None = None
    parameters: int | None = None
    rounds: list[Round] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    final: Mapping[str, SideScores] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)
    diagnostics: Diagnostics | None = None
    dropped: list[Json] = field(default_factory=list)
    retried: list[Json] = field(default_factory=list)
    movements: list[Json] = field(default_factory=list)
    early_stop: Json | None = None
    resumed_at: list[int] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def standings(self) -> list[Standing]:
        """The final scores beside their references, unseen groups first."""
        references = self.diagnostics.references if self.diagnostics else {}
        return standings({side: scores.block for side, scores in self.final.items()}, references)

    @property
    def completed_rounds(self) -> int:
        """Rounds in the model at hand."""
        return max([self.record.completed_rounds, *(r.number for r in self.rounds)])


def read_run(run_dir: Path) -> Run:
    """Read a run directory, whatever state the run is in.

    Raises
    ------
    ArtefactError
        If run.json is missing or damaged, or of another schema.
    """
    record = _read_record(run_dir)
    run = Run(
        name=run_dir.resolve().name,
        status=record.status or "unknown",
        error=record.error,
        record=record,
    )
    for event in _read_events(run_dir / "metrics.jsonl", run):
        _take_event(run, event)
    summary = _read_optional(run_dir / "summary.json", run)
    evaluated = [e.sides for e in run.evaluations if e.sides]
    run.final = _sides(summary or {}) or (evaluated[-1] if evaluated else {})
    run.totals = _totals(run, summary or {})
    warnings = (summary or {}).get("warnings")
    run.warnings = [str(w) for w in warnings] if isinstance(warnings, list) else []
    if diagnostics := _read_optional(run_dir / "diagnostics.json", run):
        run.diagnostics = _diagnostics(diagnostics)
    if summary is None and run.status == "completed":
        run.notices.append("summary.json is absent: the last evaluation in metrics.jsonl is shown.")
    return run


def _read_record(run_dir: Path) -> RunRecord:
    remedy = "Name the folder of a run (<output-dir>/<run-name>) whose run.json is whole"
    try:
        record = RunRecord.read(run_dir)
    except ArtefactError as error:
        raise ArtefactError(f"{error} {remedy}, or run again.") from None
    if record.schema != SCHEMA:
        raise ArtefactError(
            f"{run_dir / 'run.json'} has schema {record.schema}; this version of PluralLLM-FL "
            f"reads schema {SCHEMA}. Use the version that wrote the run."
        )
    return record


def _read_optional(path: Path, run: Run) -> Json | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        run.notices.append(f"{path.name} cannot be read ({error}); this report does without it.")
        return None
    if not isinstance(content, dict):
        run.notices.append(f"{path.name} does not hold a JSON object; this report does without it.")
        return None
    return content


def _read_events(path: Path, run: Run) -> Iterator[Json]:
    if not path.is_file():
        run.notices.append("metrics.jsonl is absent: the run wrote no event.")
        return
    damaged: list[int] = []
    for line_number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if isinstance(event, dict):
            yield event
        elif line.strip():
            damaged.append(line_number)
    if damaged:
        lines = ", ".join(map(str, damaged[:10])) + (", …" if len(damaged) > 10 else "")
        run.notices.append(
            f"metrics.jsonl: skipped what cannot be read ({len(damaged)} in all: line {lines}). "
            "A torn last line is what a killed run leaves behind."
        )


def _take_event(run: Run, event: Json) -> None:
    match event.get("event"):
        case "run_started":
            _start(run, event)
        case "round":
            volume = [number(event.get(k)) or 0.0 for k in ("seconds", "bytes_up", "bytes_down")]
            run.rounds.append(Round(_round(event), number(event.get("train_loss")), *volume))
        case "evaluation":
            volume = [number(event.get(k)) or 0.0 for k in ("seconds", "bytes_up", "bytes_down")]
            run.evaluations.append(Evaluation(_round(event), _sides(event), *volume))
        case "reply_dropped":
            run.dropped.append(event)
        case "round_retried":
            run.retried.append(event)
        case "node_joined" | "node_back" | "message_resent":
            run.movements.append(event)
        case "node_refused":
            run.notices.append(f"Refused: {event.get('reason')}")
        case "early_stopped":
            run.early_stop = event
        case "run_finished" if run.status == "running" and event.get("status"):
            run.status = str(event["status"])
            run.error = run.error or (str(event["error"]) if event.get("error") else None)


def _start(run: Run, event: Json) -> None:
    first = int(number(event.get("first_round")) or 1)
    # A resumed run repeats what came after its checkpoint: the later account replaces the earlier.
    run.rounds = [r for r in run.rounds if r.number < first]
    run.evaluations = [e for e in run.evaluations if e.round < first and first > 1]
    run.early_stop = None
    if first > 1:
        run.resumed_at.append(first)
    planned, parameters = number(event.get("rounds")), number(event.get("parameters"))
    run.planned_rounds = None if planned is None else int(planned)
    run.parameters = None if parameters is None else int(parameters)
    run.strategy = None if event.get("strategy") is None else str(event["strategy"])


def _totals(run: Run, summary: Json) -> dict[str, float]:
    steps: list[Round | Evaluation] = [*run.rounds, *run.evaluations]
    summed = {
        "wall_seconds": math.fsum(step.seconds for step in steps),
        "bytes_up": math.fsum(step.bytes_up for step in steps),
        "bytes_down": math.fsum(step.bytes_down for step in steps),
    }
    given = {key: number(summary.get(key)) for key in summed}
    return {key: summed[key] if (value := given[key]) is None else value for key in summed}


def _diagnostics(content: Json) -> Diagnostics:
    curve = {
        side: [number(v) for v in values]
        for side, values in mapping(content.get("context_curve")).items()
        if isinstance(values, list)
    }
    sizes = content.get("context_sizes")
    examples = content.get("examples")
    return Diagnostics(
        sizes=[int(number(s) or 0) for s in sizes] if isinstance(sizes, list) else [],
        curve=curve,
        gain=_numbers(content.get("context_gain")),
        wrong=_numbers(content.get("wrong_context")),
        ordinal=_numbers(content.get("ordinal_alignment")),
        references=mapping(content.get("references")),
        examples=[e for e in map(_example, examples if isinstance(examples, list) else []) if e],
    )


def _example(content: object) -> Example | None:
    entry = mapping(content)
    parts = [entry.get(key) for key in ("options", "true", "predicted")]
    if not all(isinstance(part, list) for part in parts) or len({len(p or []) for p in parts}) != 1:
        return None
    options, true, predicted = (part or [] for part in parts)
    return Example(
        rank=str(entry.get("rank", "")),
        group=str(entry.get("group", "")),
        question=str(entry.get("question", "")),
        options=[str(option) for option in options],
        true=[number(v) or 0.0 for v in true],
        predicted=[number(v) or 0.0 for v in predicted],
        alignment=number(entry.get("alignment")),
    )


def _sides(event: Json) -> dict[str, SideScores]:
    found = {side: _scores(side, event.get(side)) for side in SIDES}
    return {side: scores for side, scores in found.items() if scores is not None}


def _scores(side: str, block: object) -> SideScores | None:
    measured = isinstance(block, dict) and number(block.get("alignment")) is not None
    return SideScores(side, block) if isinstance(block, dict) and measured else None


def _interval(value: object) -> tuple[float, float] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (low, high)


def _numbers(value: object) -> dict[str, float]:
    numbers = {key: number(entry) for key, entry in mapping(value).items()}
    return {key: entry for key, entry in numbers.items() if entry is not None}


def _round(event: Json) -> int:
    return int(number(event.get("round")) or 0)
