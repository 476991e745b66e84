"""Public data of texts judged by several raters, each in its own form -> rows of n-best lists.

None of these forms says itself how far apart two scores are; what is declared here says it: MQM's
weights, else each group's own standard deviation within a list, so that a rater who uses half of
the scale counts like one who uses all of it. Equal scores stay ties.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pluralllm_fl.datasets.collect import RowStream
from pluralllm_fl.datasets.fields import BadRow, Row, text_of, visible
from pluralllm_fl.datasets.files import RowFile, open_rows
from pluralllm_fl.datasets.mqm import judged_translations
from pluralllm_fl.errors import DatasetError

MQM_POINTS = 5.0  # of one major error: they make a translation e times less likely
ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


class Judgement(NamedTuple):
    """What one group says of one response; judgements with the same `key` are one list."""

    group: str
    key: tuple[str, ...]
    prompt: str
    response: str
    score: float


@dataclass(slots=True)
class _List:
    """A prompt's responses as they look, with their texts and all their scores."""

    line: int
    prompt: str
    texts: dict[str, str] = field(default_factory=dict)
    scores: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def means(self) -> dict[str, float]:
        """Return the mean score of every response: several systems may have written the same."""
        return {text: math.fsum(s) / len(s) for text, s in self.scores.items()}


def n_best(
    stream: Iterator[tuple[int, Judgement | BadRow]], temperature: float | None
) -> RowStream:
    """Gather judgements into rows with `scores` and `score_temperature`; None: group's own."""
    lists: dict[tuple[str, tuple[str, ...]], _List] = {}
    for line, found in stream:
        if isinstance(found, BadRow):
            yield line, found
            continue
        own = lists.setdefault((found.group, found.key), _List(line, found.prompt))
        seen = visible(found.response)
        own.texts.setdefault(seen, found.response)
        own.scores[seen].append(found.score)
    spread = _spread(lists)
    for (group, _), own in lists.items():
        yield (
            own.line,
            {
                "group": group,
                "prompt": own.prompt,
                "responses": list(own.texts.values()),
                "scores": list(own.means().values()),
                "score_temperature": temperature or spread[group],
            },
        )


def _spread(lists: Mapping[tuple[str, tuple[str, ...]], _List]) -> dict[str, float]:
    """Pooled standard deviation within a group's lists; 1 where all scores of a list are equal."""
    squares: defaultdict[str, float] = defaultdict(float)
    freedom: defaultdict[str, int] = defaultdict(int)
    for (group, _), own in lists.items():
        scores = list(own.means().values())
        mean = math.fsum(scores) / len(scores)
        squares[group] += math.fsum((score - mean) ** 2 for score in scores)
        freedom[group] += len(scores) - 1
    return {
        group: math.sqrt(total / freedom[group]) if total > 0 else 1.0
        for group, total in squares.items()
    }


def _mqm(path: Path) -> RowStream:
    found = (
        (line, one if isinstance(one, BadRow) else Judgement(*one))
        for line, one in judged_translations(path)
    )
    return n_best(found, MQM_POINTS)


def _squality(path: Path) -> RowStream:
    """SQuALITY's human_eval.jsonl (Wang et al. 2022, arXiv 2205.11465): `overall-rating`, 0..100.

    The questions' texts are not in the file; a prompt names story and question.
    """

    def read(row: Row) -> Iterator[Judgement]:
        for number, systems in row["questions"].items():
            asked = f"Story {row['passage-id']}, question {number}"
            for system in systems.values():
                for review in system["reviews"]:
                    group, score = f"worker {review['worker_id']}", review["overall-rating"]
                    response = text_of(system, "response")
                    yield Judgement(group, (asked,), asked, response, _score(score))

    return n_best(_judgements(path, read), None)


def _prism(path: Path) -> RowStream:
    """PRISM's utterances.jsonl (Kirk et al. 2024, arXiv 2404.16019): `score`, 1..100.

    A group is the column `group` if there is one, else the person (`user_id`). Only opening turns:
    what is said later has no meaning without what was said before.
    """

    def read(row: Row) -> Iterator[Judgement]:
        if row.get("turn") not in (0, "0"):
            raise BadRow("a later turn of a conversation", "only opening turns stand alone")
        group = text_of(row, "group" if row.get("group") else "user_id")
        key = text_of(row, "conversation_id")
        prompt, response = (text_of(row, column) for column in ("user_prompt", "model_response"))
        yield Judgement(group, (key,), prompt, response, _score(row.get("score")))

    return n_best(_judgements(path, read), None)


def _helpsteer(path: Path) -> RowStream:
    """HelpSteer and HelpSteer2 (Wang et al. 2023, arXiv 2311.09528; 2024, arXiv 2406.08673).

    Five attributes from 0 to 4; a group is one attribute: who likes nothing but that.
    """

    def read(row: Row) -> Iterator[Judgement]:
        prompt, response = text_of(row, "prompt"), text_of(row, "response")
        for attribute in ATTRIBUTES:
            yield Judgement(attribute, (prompt,), prompt, response, _score(row.get(attribute)))

    return n_best(_judgements(path, read), None)


def _judgements(
    path: Path, read: Callable[[Row], Iterator[Judgement]]
) -> Iterator[tuple[int, Judgement | BadRow]]:
    for line, row in open_rows(path).rows:
        if isinstance(row, BadRow):
            yield line, row
            continue
        try:
            yield from [(line, judgement) for judgement in read(row)]
        except BadRow as bad:
            yield line, bad
        except (KeyError, TypeError, AttributeError):
            yield line, BadRow("not of the source's form", "see docs/data.md for its columns")


def _score(value: Any) -> float:
    """Read a score, from a cell of a CSV file too."""
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise BadRow("a score is not a number", f"got {value!r:.40}; leave such rows out")
    return score


class Source(NamedTuple):
    """How a form is read, and where its file is to be had."""

    read: Callable[[Path], RowStream]
    origin: str


RATED = {
    "mqm": Source(_mqm, "a .tsv or .tar.gz of github.com/google/wmt-mqm-human-evaluation"),
    "squality": Source(_squality, "human_eval.jsonl of github.com/nyu-mll/SQuALITY"),
    "prism": Source(_prism, "utterances.jsonl of huggingface.co/HannahRoseKirk/prism-alignment"),
    "helpsteer": Source(_helpsteer, "train.jsonl of huggingface.co/nvidia/HelpSteer2, unpacked"),
}


def open_rated(name: str, path: Path) -> RowFile:
    """Open a file in the form of a named source.

    Raises
    ------
    DatasetError
        If there is no such file.
    """
    if not path.is_file():
        raise DatasetError(
            f"'{name}' needs the path of its file: give {name}:PATH, {RATED[name].origin}."
            + ("" if path == Path() else f" {path} is not a file.")
        )
    return RowFile(name, frozenset(), RATED[name].read(path))
