"""The domain: questions, answer distributions, groups and their splits. No torch, no flwr."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np

from pluralllm_fl.arrays import BoolArray, FloatArray
from pluralllm_fl.errors import ConfigError, nearest

QuestionSplit = Literal["train", "validation", "test"]
Role = Literal["train", "evaluate"]


def _digest(*parts: str) -> str:
    """Hash text parts so that no two different tuples of parts share a hash input."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


@lru_cache(maxsize=2**14)  # a reward asks the same questions again and again
def _question_id(text: str, options: tuple[str, ...]) -> str:
    return _digest(text, *options)[:16]


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and its candidate answers.

    Parameters
    ----------
    text : str
        The prompt.
    options : tuple of str
        At least two distinct candidate answers.
    ordinal : tuple of float or None
        Position of every option on a scale; None for categorical options.
    topic, source : str
        Free labels; they take no part in identity.
    """

    text: str
    options: tuple[str, ...]
    ordinal: tuple[float, ...] | None = field(default=None, compare=False)
    topic: str = field(default="", compare=False)
    source: str = field(default="", compare=False)

    @property
    def id(self) -> str:
        """Stable 16-hex-digit identity of text and options (in their order)."""
        return _question_id(self.text, self.options)


@dataclass(frozen=True)
class GroupPreferences:
    """One group's answers.

    Parameters
    ----------
    group : str
        Name of the group.
    answers : mapping of Question to ndarray, shape (options,)
        The group's distribution over the options of each question: shares, with sum 1.
    respondents : mapping of Question to float
        How many people's answers make up each distribution (weighted ones by their effective
        number); a question is absent where the source does not say.
    offered : mapping of Question to ndarray of bool, shape (options,)
        Which options the group's questionnaire offered, for the questions where that is stated:
        at least two, and every option with a share among them.
    """

    group: str
    answers: Mapping[Question, FloatArray]
    respondents: Mapping[Question, float] = field(default_factory=dict)
    offered: Mapping[Question, BoolArray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.answers)

    def __post_init__(self) -> None:
        ordered = dict(sorted(self.answers.items(), key=lambda item: item[0].id))
        object.__setattr__(self, "answers", ordered)

    def offers(self, questions: Sequence[Question]) -> BoolArray | None:
        """Lay out what was offered, (N,): all where nothing is stated; None: nowhere stated."""
        if not self.offered:
            return None
        return np.concatenate(
            [self.offered.get(q, np.ones(len(q.options), bool)) for q in questions]
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the group's name, answers and, where stated, the options offered."""
        digest = hashlib.sha256(_digest(self.group).encode())
        for question, distribution in self.answers.items():
            digest.update(question.id.encode())
            digest.update(np.round(distribution, 9).astype("<f8").tobytes())
            if question in self.offered:
                digest.update(b"offered" + self.offered[question].tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class PreferenceDataset:
    """All groups of one source, sorted by name.

    Parameters
    ----------
    name : str
        Source name or path.
    groups : mapping of str to GroupPreferences
    default_seen, default_unseen : tuple of str
        The source's own split of groups; empty when it has none.
    skipped : mapping of str to int
        Rows left out, by reason.
    """

    name: str
    groups: Mapping[str, GroupPreferences]
    default_seen: tuple[str, ...] = ()
    default_unseen: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", dict(sorted(self.groups.items())))

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """Every question that any group answered, sorted by id."""
        found = {q for group in self.groups.values() for q in group.answers}
        return tuple(sorted(found, key=lambda q: q.id))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the whole content; independent of the order of files and rows."""
        return _digest(*(group.fingerprint for group in self.groups.values()))


def zeros_not_offered(dataset: PreferenceDataset) -> PreferenceDataset:
    """Read shares of exactly 0 as options that were not offered, where nothing is stated.

    An answer with fewer than two other options stays as it is.
    """

    def read(group: GroupPreferences) -> GroupPreferences:
        found = {q: p > 0 for q, p in group.answers.items() if 1 < (p > 0).sum() < len(p)}
        return replace(group, offered=found | dict(group.offered))

    return replace(dataset, groups={name: read(group) for name, group in dataset.groups.items()})


def unit_interval(digest: str) -> float:
    """Read a hexadecimal digest as a number in [0, 1), uniform over digests."""
    return int(digest[:13], 16) / 16**13


def question_split(
    question: Question, seed: int, validation_fraction: float, test_fraction: float
) -> QuestionSplit:
    """Assign a question to train, validation or test: the same for every group and machine.

    The hash is of the text alone, so that one prompt with two lists of options never lands
    on both sides.
    """
    draw = unit_interval(_digest("split", str(seed), question.text))
    if draw < test_fraction:
        return "test"
    return "validation" if draw < test_fraction + validation_fraction else "train"


def _meant(name: str, groups: Collection[str]) -> str:
    parts = [part.strip() for part in name.split(",")]
    if len(parts) > 1 and any(part in groups for part in parts):
        return f" Separate groups with ';', not with ',': '{'; '.join(parts)}'."
    return nearest(name, groups)


def split_groups(
    dataset: PreferenceDataset,
    seen: Sequence[str],
    unseen: Sequence[str],
    unseen_fraction: float,
    seed: int,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (seen, unseen) groups, each sorted.

    Explicit lists win; with only one list the other holds the rest; with none the source's
    own split counts, and without that a seeded hash of the names takes `unseen_fraction`.

    Raises
    ------
    ConfigError
        For unknown names, names on both sides, or an empty side of seen groups.
    """
    for name in (*seen, *unseen):
        if name not in dataset.groups:
            listed = "; ".join(list(dataset.groups)[:20])
            more = f"; … ({len(dataset.groups)} in all)" if len(dataset.groups) > 20 else ""
            raise ConfigError(
                f"Unknown group '{name}' in {dataset.name}.{_meant(name, dataset.groups)} "
                f"It holds: {listed}{more}."
            )
    if both := sorted(set(seen) & set(unseen)):
        raise ConfigError(f"Groups are both seen and unseen: {'; '.join(both)}. Name each once.")
    if not seen and not unseen:
        seen, unseen = dataset.default_seen, dataset.default_unseen
    if not seen and not unseen:
        ranked = sorted(dataset.groups, key=lambda g: _digest("group", str(seed), g))
        count = round(unseen_fraction * len(ranked))
        seen, unseen = ranked[count:], ranked[:count]
    seen = seen or [g for g in dataset.groups if g not in set(unseen)]
    unseen = unseen or [g for g in dataset.groups if g not in set(seen)]
    if not seen:
        raise ConfigError("No seen group is left to train on; name fewer unseen groups.")
    return tuple(sorted(set(seen))), tuple(sorted(set(unseen)))
