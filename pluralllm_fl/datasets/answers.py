"""Questions as they are asked, and a group's answers as they are handed over."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pluralllm_fl.arrays import BoolArray, FloatArray
from pluralllm_fl.datasets import load_dataset
from pluralllm_fl.datasets.collect import Collector
from pluralllm_fl.datasets.fields import BadRow, options_of, text_of
from pluralllm_fl.datasets.files import table_rows
from pluralllm_fl.errors import ConfigError, nearest
from pluralllm_fl.preferences import GroupPreferences, PreferenceDataset, Question

Key = tuple[str, tuple[str, ...]]  # a question's text and its options
Asked = Question | tuple[str, Sequence[str]]
Offered = Mapping[Key, Sequence[str]]


@runtime_checkable
class Table(Protocol):
    """A table of pandas, polars, pyarrow, DuckDB, …: whatever hands out Arrow data."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return an Arrow C stream."""
        ...


Answers = Mapping[Key, Sequence[float]] | Sequence[Mapping[str, Any]] | Table | str | Path
_FORMS = (
    "{(question, options): distribution or counts}, a list of rows as dicts, a table of pandas, "
    "polars or Arrow, or a path"
)
NAMELESS = "the group"  # of rows without a column `group`


def asked(question: Asked) -> Question:
    """Read a question as the data loaders do.

    Raises
    ------
    ConfigError
        For fewer than two options, empty or repeated ones, an empty question, or options that are
        one text instead of a list.
    """
    if isinstance(question, Question):
        return question
    if not isinstance(question, tuple) or len(question) != 2:
        raise ConfigError(f"A question is a pair (text, list of options), not {question!r:.80}.")
    text, options = question
    if isinstance(options, str):
        raise ConfigError(
            f"The options of a question are a list of texts, not one text: {options!r:.80}."
        )
    listed = tuple(options)
    if all(type(part) is str for part in (text, *listed)):
        return _read(text, listed)
    return _read.__wrapped__(text, listed)


@lru_cache(maxsize=2**14)  # of texts alone: 1 and True are the same key, and not the same option
def _read(text: Any, options: tuple[Any, ...]) -> Question:
    try:
        listed = options_of({"options": list(options)}, "options")
        return Question(text_of({"question": text}, "question", chat=True), listed)
    except BadRow as bad:
        raise ConfigError(f"A question cannot be asked: {bad}.") from None


def offered_mask(
    question: Question, offered: Sequence[str], shares: FloatArray | None = None
) -> BoolArray:
    """Mark the options offered, shape (options,); the answer's `shares` have the same shape.

    Raises
    ------
    ConfigError
        If they are fewer than two, none of the options, or lack one that has a share.
    """
    if unknown := [text for text in offered if text not in question.options]:
        raise ConfigError(
            f"'{unknown[0]}' is offered, but is none of the options of '{question.text}': "
            f"{list(question.options)}.{nearest(unknown[0], question.options)}"
        )
    mask = np.array([option in offered for option in question.options])
    if mask.sum() < 2:
        raise ConfigError(f"At least two options of '{question.text}' must be offered.")
    if shares is not None and (shares[~mask] > 0).any():
        raise ConfigError(
            f"The answer to '{question.text}' has a share on an option that was not offered."
        )
    return mask


def read_answers(
    answers: Answers | GroupPreferences, offered: Offered | None = None, group: str | None = None
) -> GroupPreferences:
    """Read one group's answers in any of the forms that `Pluralist.fit` takes.

    Raises
    ------
    ConfigError, DatasetError
        For answers that are none, to options that were not offered, or of several groups of which
        `group` names none.
    """
    if isinstance(answers, GroupPreferences):
        return answers
    if isinstance(answers, Mapping):
        return _from_mapping(answers, offered or {})
    if isinstance(answers, str | Path):
        return one_group(load_dataset(str(answers)), group)
    if isinstance(answers, Table):
        rows: Iterable[Any] = _table(answers)
    elif isinstance(answers, Sequence):
        rows = enumerate(answers, start=1)
    else:
        raise ConfigError(f"Answers are {_FORMS}, not {type(answers).__name__}.")
    listed = list(rows)
    return one_group(_from_rows(listed), group) if listed else GroupPreferences(NAMELESS, {})


def _table(answers: Table) -> Iterable[Any]:
    try:
        return table_rows(pa.table(answers))
    except (pa.ArrowException, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigError(
            f"The table cannot be read ({reason}). Every column needs one type: lists in each cell "
            "of options, distribution and counts."
        ) from None


def _from_mapping(answers: Mapping[Key, Sequence[float]], offered: Offered) -> GroupPreferences:
    found, masks, people = {}, {}, {}
    for key, values in answers.items():
        question = asked(key)
        given = _numbers(question, values)
        total = given.sum()
        found[question] = given / total
        if given.dtype.kind in "iu" and total > 1:
            people[question] = float(total)
        if key in offered:
            masks[question] = offered_mask(question, offered[key], found[question])
    if unknown := [key for key in offered if key not in answers]:
        raise ConfigError(f"Options are offered of a question without an answer: {unknown[0]}.")
    return GroupPreferences(NAMELESS, found, people, masks)


def _numbers(question: Question, values: Sequence[float]) -> NDArray[Any]:
    """Read probabilities, or counts: whole numbers, by their type, of more than one person.

    Whole numbers that sum to 1 are the same shares in both readings.
    """
    try:
        p = np.asarray(values)
        fits = (
            p.shape == (len(question.options),) and p.dtype.kind in "iuf" and bool((p >= 0).all())
        )
    except (TypeError, ValueError):
        fits = False
    total = p.sum() if fits else 0.0
    if not (fits and (abs(total - 1) <= 0.01 or (p.dtype.kind in "iu" and total > 1))):
        raise ConfigError(
            f"The answer to '{question.text}' must be {len(question.options)} "
            f"probabilities that sum to 1, or counts as whole numbers (int), not {values}."
        )
    return p


def _from_rows(rows: Iterable[tuple[int, Any]]) -> PreferenceDataset:
    collector = Collector("The answers", "row ", raise_on_bad=True)
    for number, row in rows:
        if isinstance(row, BadRow):
            collector.add_all([(number, row)])
        elif isinstance(row, Mapping):
            named = {"group": NAMELESS, **row}
            collector.add_all([(number, named)])
        else:
            raise ConfigError(f"Answers are {_FORMS}; row {number} is {row!r:.80}.")
    return collector.dataset("answers")


def one_group(dataset: PreferenceDataset, group: str | None) -> GroupPreferences:
    """Return the group of this name, or the only one there is."""
    held = dataset.groups
    name = group or (next(iter(held)) if len(held) == 1 else "")
    if name not in held:
        wanted = f"no group '{name}'.{nearest(name, held)}" if name else "several groups."
        raise ConfigError(f"{dataset.name} holds {wanted} Name one as group: {'; '.join(held)}.")
    return held[name]
