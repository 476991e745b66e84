"""A trained predictor as a reward function, with the signature that TRL's trainers call.

>>> from pluralllm_fl import Pluralist
>>> pluralist = Pluralist.from_pretrained("runs/my-run")
>>> spain = pluralist.fit({("Do you like rain?", ("Yes", "No")): (0.3, 0.7)})
>>> reward = PluralisticReward({"Spain": spain}, mode="likelihood")
>>> found = reward(["Tea?"] * 2, ["Yes", "B"], group=["Spain"] * 2, options=[["Yes", "No"]] * 2)
>>> all(log_p < 0 for log_p in found)
True
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np

from pluralllm_fl.arrays import FloatArray
from pluralllm_fl.datasets.answers import asked
from pluralllm_fl.datasets.completions import quoted_option, spoken, stated_option
from pluralllm_fl.embedding import TextEmbedder
from pluralllm_fl.embedding.nearest import nearest_options
from pluralllm_fl.errors import ConfigError, nearest
from pluralllm_fl.preferences import Question

Mode = Literal["likelihood", "deficit", "centred"]


class Reader(Protocol):
    """What embeds texts: a `Pluralist`."""

    @property
    def embedder(self) -> TextEmbedder:
        """The language model."""
        ...


class Group(Protocol):
    """What rewards: a `ConditionedGroup`."""

    @property
    def answers(self) -> int:
        """How many questions the group answered."""
        ...

    @property
    def pluralist(self) -> Reader:
        """What read them."""
        ...

    def predict_log_proba(self, questions: Sequence[Question]) -> list[FloatArray]:
        """Return the natural logarithms of the options' shares, (options,) for each question."""
        ...


class Row(NamedTuple):
    """A completion to score: its place in the batch, whose reward it gets, and what it says.

    `prompt` is what the policy read, `question` what the predictor reads; `choice` is the index of
    the option that the completion is, None if it is none of them.
    """

    place: int
    group: str
    prompt: str
    question: Question
    completion: str
    choice: int | None


@dataclass(frozen=True)
class PluralisticReward:
    """Reward completions by what a group is predicted to prefer.

    Parameters
    ----------
    groups : mapping of str to ConditionedGroup
        The groups that the column `group` can name; of one alone the column may be left out.
    mode : {"likelihood", "deficit", "centred"}
        `likelihood`, `deficit` or `centred` of this module: each says what it optimises.
    unmatched : float or None, default None
        Reward of a completion that is empty or none of the options. With None TRL neither rewards
        nor punishes it (beside other reward functions it counts as 0, more than any log p): give a
        penalty where the policy can write anything.
    nearest : bool, default False
        Read a completion that is none of the options as the only option whose words it contains
        (`datasets.completions.quoted_option`), else as the one whose embedding is nearest
        (`embedding.nearest.nearest_options`). So the wording of an answer takes no part in its
        reward.

    Notes
    -----
    A completion is read as an option by its exact text, else by its letter (A, B, …), see
    `datasets.completions.stated_option`. In mode ``centred`` it need not be an option.
    """

    groups: Mapping[str, Group]
    mode: Mode = "likelihood"
    unmatched: float | None = None
    nearest: bool = False

    def __post_init__(self) -> None:
        if not self.groups:
            raise ConfigError("A reward needs at least one group.")
        check_mode(self.mode, nearest=self.nearest)

    @property
    def __name__(self) -> str:
        """Name in TRL's logs."""
        return f"pluralistic_{self.mode}"

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        group: Sequence[str | None] | None = None,
        options: Sequence[Sequence[str]] | None = None,
        question: Sequence[Any] | None = None,
        **columns: Any,  # noqa: ARG002 - TRL passes every column of the data set
    ) -> list[float | None]:
        """Score a batch, each group's completions in one pass.

        Parameters
        ----------
        prompts, completions : sequence of length n
            Texts, or conversations as lists of ``{"role", "content"}``.
        group : sequence of str or None
            Whose reward each completion gets; None: nobody's. Needed where there are several.
        options : sequence of lists of str
            The answers that each prompt offers; in mode ``centred`` those to compare with.
        question : sequence, optional
            What the predictor reads where that is not the prompt itself.

        Returns
        -------
        list of float or None
            None where the row has no group or its group gave no answers: it has no reward.

        Raises
        ------
        ConfigError
            For an unknown group, missing columns or options that are no list of distinct texts.
        """
        if group is None and len(self.groups) == 1:
            group = [*self.groups] * len(prompts)
        rows = read_rows(
            prompts, completions, group, options, question,
            wanted=lambda name: self._group(name).answers > 0,
        )  # fmt: skip
        score = {"likelihood": likelihood, "deficit": deficit, "centred": centred}[self.mode]
        found: list[float | None] = [None] * len(prompts)
        for row, reward in zip(rows, score(self.groups, self._matched(rows)), strict=True):
            found[row.place] = self.unmatched if reward is None else reward
        return found

    def _group(self, name: str) -> Group:
        if name not in self.groups:
            known = "; ".join(self.groups)
            raise ConfigError(
                f"Unknown group '{name}'.{nearest(name, self.groups)} The reward knows: {known}."
            )
        return self.groups[name]

    def _matched(self, rows: list[Row]) -> list[Row]:
        """Give rows that are no option the one that they quote or are nearest to, if asked for."""
        if not self.nearest:
            return rows
        rows = [
            row._replace(choice=quoted_option(row.completion, row.question.options))
            if row.choice is None
            else row
            for row in rows
        ]
        unread = [i for i, row in enumerate(rows) if row.choice is None and row.completion]
        if not unread:
            return rows
        embedder = next(iter(self.groups.values())).pluralist.embedder
        pairs = [(rows[i].question, rows[i].completion) for i in unread]
        for i, choice in zip(unread, nearest_options(embedder, pairs), strict=True):
            rows[i] = rows[i]._replace(choice=choice)
        return rows


def read_rows(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    group: Sequence[str | None] | None,
    options: Sequence[Sequence[str]] | None,
    question: Sequence[Any] | None,
    wanted: Callable[[str], bool] = lambda _: True,
) -> list[Row]:
    """Read the columns of `PluralisticReward`, without rows of no group or of one not `wanted`.

    Raises
    ------
    ConfigError
        For missing columns, or options that are no list of distinct texts.
    """
    n = len(prompts)
    cells = zip(
        _column("group", group, n),
        prompts,
        _column("question", prompts if question is None else question, n),
        _column("options", options, n),
        _column("completions", completions, n),
        strict=True,
    )
    known: dict[str, Question] = {}  # the completions of a prompt share a question
    rows = []
    for place, (name, prompt, text, offered, completion) in enumerate(cells):
        if name is None or not wanted(name):
            continue
        if (key := repr((text, offered))) not in known:
            known[key] = asked((text, offered))
        said = spoken(completion)
        choice = stated_option(said, known[key].options)
        rows.append(Row(place, name, repr(prompt), known[key], said, choice))
    return rows


def check_mode(mode: str, *, nearest: bool) -> None:
    """Refuse a mode that there is not, or with which `nearest` makes no sense."""
    if mode not in get_args(Mode):
        raise ConfigError(f"mode = '{mode}': must be one of {', '.join(get_args(Mode))}.")
    if nearest and mode == "centred":
        raise ConfigError("Mode 'centred' scores any text as it is: leave out nearest.")


def _column(name: str, values: Sequence[Any] | None, n: int) -> Sequence[Any]:
    """Return a column of a batch of n rows; refuse one that is absent or of another length."""
    if values is None:
        raise ConfigError(f"The reward needs the column '{name}' in the data set.")
    if len(values) != n:
        raise ConfigError(f"{len(values)} {name} for {n} prompts.")
    return values


def likelihood(groups: Mapping[str, Group], rows: Sequence[Row]) -> list[float | None]:
    """Reward ``log p[o]``, p the group's predicted distribution over the options, o the one given.

    Alone it optimises agreement: the policy collapses on the most popular option. With an entropy
    bonus of 1 (or a KL of 1 to a uniform policy) it optimises the reverse KL(policy ‖ p), and the
    optimum is p.
    """
    log_p = _log_probability(groups, [(row.group, row.question) for row in rows])
    return [
        None if row.choice is None else float(p[row.choice])
        for row, p in zip(rows, log_p, strict=True)
    ]


def deficit(groups: Mapping[str, Group], rows: Sequence[Row]) -> list[float | None]:
    """Reward ``p[o] − share of o among the other completions of the same prompt and group``.

    It optimises the Brier score: its policy gradient without a baseline is an unbiased estimate of
    −½ ∇ Σ (policy − p)², so the optimum is p. A completion that is no option counts among the
    others. A trainer that subtracts the mean reward of the n completions moves the optimum to
    ``p + (p − 1/K) / (n − 2)`` for K options: a little sharper.

    Raises
    ------
    ConfigError
        For a prompt with a single completion.
    """
    log_p = _log_probability(groups, [(row.group, row.question) for row in rows])
    kin = [(row.group, row.prompt, row.question) for row in rows]
    given: defaultdict[Hashable, Counter[int | None]] = defaultdict(Counter)
    for key, row in zip(kin, rows, strict=True):
        given[key][row.choice] += 1
    found: list[float | None] = []
    for key, row, p in zip(kin, rows, log_p, strict=True):
        others = given[key].total() - 1
        if not others:
            raise ConfigError(
                f"'{row.question.text:.80}' has one completion for {row.group}: the deficit needs "
                "at least two of a prompt in a batch (num_generations)."
            )
        share = (given[key][row.choice] - 1) / others
        found.append(None if row.choice is None else float(np.exp(p[row.choice])) - share)
    return found


def centred(groups: Mapping[str, Group], rows: Sequence[Row]) -> list[float | None]:
    """Reward the completion's logit minus ``log mean exp`` of the logits of the row's options.

    It optimises preference over a fixed reference set, for texts that are no options: logits have
    no scale of their own, and a set that differs by prompt would. The completion and the options
    are scored as one set (a completion that is an option: the options). Like the likelihood it
    collapses on the best text without an entropy bonus or a KL.
    """
    pairs = [(row.group, _with_completion(row)) for row in rows if row.completion]
    log_p = iter(_log_probability(groups, pairs))
    return [_above_references(row, next(log_p)) if row.completion else None for row in rows]


def _above_references(row: Row, log_p: FloatArray) -> float:
    references = log_p[-len(row.question.options) :]
    own = log_p[0] if row.choice is None else references[row.choice]
    return float(own - np.logaddexp.reduce(references) + np.log(len(references)))


def _with_completion(row: Row) -> Question:
    """Put a completion that is no option in front of the options."""
    if row.choice is not None:
        return row.question
    return Question(row.question.text, (row.completion, *row.question.options))


def _log_probability(
    groups: Mapping[str, Group], pairs: Sequence[tuple[str, Question]]
) -> list[FloatArray]:
    """Predict each (group, question) once, a group's questions in one pass."""
    wanted: defaultdict[str, dict[Question, None]] = defaultdict(dict)
    for group, question in pairs:
        wanted[group][question] = None
    found = {
        (group, question): log_p
        for group, questions in wanted.items()
        for question, log_p in zip(
            questions, groups[group].predict_log_proba(list(questions)), strict=True
        )
    }
    return [found[pair] for pair in pairs]
