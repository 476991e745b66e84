"""Federated reward: each group scores a policy's rollouts at home, the server sees numbers.

In a ServerApp's main function (`examples/federated_reward.py` is whole)::

    reward = FederatedReward.open(grid, context, mode="deficit")
    reward(["Tea?", "Tea?"], ["Yes", "No"], options=[["Yes", "No"]] * 2)  # [0.71, 0.29]
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid

from pluralllm_fl.alignment.aggregate import Rewards, mean
from pluralllm_fl.config import RunConfig
from pluralllm_fl.errors import ConfigError, FederationError, nearest
from pluralllm_fl.evaluation.opening import require_same_embedding
from pluralllm_fl.federation.grid import GuardedGrid, Outcome
from pluralllm_fl.federation.keys import NodeKeys
from pluralllm_fl.federation.reply_checks import reward_reply
from pluralllm_fl.federation.roster import collect
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.preferences import Question
from pluralllm_fl.reward import Mode, Row, check_mode, read_rows
from pluralllm_fl.wire.messages import REWARD, RewardRequest, Rollouts, task
from pluralllm_fl.wire.reading import BadReply

logger = logging.getLogger("flwr.pluralllm_fl")


class _Part(NamedTuple):
    """What a node is asked: a message's content, and the places of the rewards that it returns."""

    content: RecordDict
    places: list[int]


@dataclass
class FederatedReward:
    """A reward function for TRL whose groups score at home, each with its own answers.

    Parameters
    ----------
    grid : GuardedGrid
        The federation.
    arrays : ArrayRecord, any shape
        The predictor's, sent with every request: nodes keep no state.
    config : RunConfig
        Of the run that trained the predictor.
    mode, nearest, unmatched
        As in `reward.PluralisticReward`.
    aggregate : callable
        Many groups' rewards into one (`alignment.aggregate`), for rows without a group.
    groups : sequence of str
        Whose rewards are aggregated; empty: every node's.

    Attributes
    ----------
    missing : dict of str to str
        Groups that gave no reward when they were last asked, with the reason.

    Notes
    -----
    A node that falls silent is asked once more within ``join-timeout``, then left out until it
    answers again. One that is new takes part from the next call on.
    """

    grid: GuardedGrid
    arrays: ArrayRecord
    config: RunConfig
    mode: Mode = "likelihood"
    aggregate: Callable[[Rewards], list[float | None]] = mean
    groups: Sequence[str] = ()
    unmatched: float | None = None
    nearest: bool = False
    missing: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        check_mode(self.mode, nearest=self.nearest)

    @classmethod
    def open(cls, grid: Grid, context: Context, **options: Any) -> Self:
        """Meet the nodes of a ServerApp whose run config continues a finished run.

        Parameters
        ----------
        grid, context
            As the ServerApp gets them; the run config's ``resume`` names the finished run.
        options
            `mode`, `aggregate`, `groups`, `unmatched`, `nearest`.

        Raises
        ------
        ConfigError, ArtefactError, FederationError
            If no run is named, its model cannot be used, or nodes are missing or embed texts
            with another language model than it was trained on.
        """
        config = RunConfig.from_run_config(context.run_config)
        if not config.resume:
            raise ConfigError(
                "resume is empty: name the finished run whose model rewards. "
                "`pluralllm align federated RUN SCRIPT` does."
            )
        predictor = PreferencePredictor.from_pretrained(Path(config.resume) / "model")
        roster = collect(
            grid,
            expected_nodes=config.expected_nodes,
            join_timeout=config.join_timeout,
            answer_timeout=config.round_timeout,
            seen=config.seen,
            unseen=config.unseen,
            keys=NodeKeys(
                grid, config.node_keys, lambda reason: logger.warning("Refused: %s", reason)
            ),
        )
        require_same_embedding(predictor, roster.embedding)
        guarded = GuardedGrid(grid, roster, config.round_timeout)
        return cls(guarded, ArrayRecord(predictor.state_dict()), config, **options)

    @property
    def __name__(self) -> str:
        """Name in TRL's logs."""
        return f"federated_{self.mode}"

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        options: Sequence[Sequence[str]] | None = None,
        group: Sequence[str | None] | None = None,
        question: Sequence[Any] | None = None,
        **columns: Any,  # noqa: ARG002 - TRL passes every column of the data set
    ) -> list[float | None]:
        """Score a batch: one message to each node.

        Parameters
        ----------
        prompts, completions, options, question
            As in `reward.PluralisticReward`.
        group : sequence of str or None, optional
            Given, each completion goes to its own group's node and to no other; None: to nobody.
            Left out, every node scores every completion, and `aggregate` makes one reward of them.

        Returns
        -------
        list of float or None
            None where nobody who was asked answered, and `unmatched` for what cannot be scored.

        Raises
        ------
        ConfigError
            For an unknown group or columns that cannot be used.
        FederationError
            If every group is missing, with the reasons.
        """
        n = len(prompts)
        self.grid.admit(self.config.seen, self.config.unseen)
        named = [""] * n if group is None else group
        rows = read_rows(prompts, completions, named, options, question)
        if not rows:
            return [None] * n
        if group is None:
            everyone = self._part(rows)
            found = self._ask(dict.fromkeys(self.groups or self._known, everyone))
            given = {name: [own.get(i) for i in range(n)] for name, own in found.items()}
            rewards: list[float | None] = list(self.aggregate(given))
        else:
            found = self._ask(self._parts(rows))
            rewards = [found.get(name or "", {}).get(i) for i, name in enumerate(group)]
        for row in rows:
            if not self._can_be_scored(row) and (group is None or row.group in found):
                rewards[row.place] = self.unmatched
        return rewards

    @property
    def _known(self) -> list[str]:
        return [node.group for node in self.grid.roster.nodes]

    def _parts(self, rows: Sequence[Row]) -> dict[str, _Part]:
        """Return what each group is asked that rows name."""
        by_group: defaultdict[str, list[Row]] = defaultdict(list)
        for row in rows:
            by_group[row.group].append(row)
        return {name: self._part(own) for name, own in by_group.items()}

    def _part(self, rows: Sequence[Row]) -> _Part:
        prompts: defaultdict[tuple[str, Question], list[Row]] = defaultdict(list)
        for row in rows:
            prompts[row.prompt, row.question].append(row)
        asked_of = [
            Rollouts(question.text, question.options, tuple(row.completion for row in own))
            for (_, question), own in prompts.items()
        ]
        request = RewardRequest(self.mode, self.nearest, tuple(asked_of))
        ordered = [row for own in prompts.values() for row in own]
        places = [row.place for row in ordered if self._can_be_scored(row)]
        return _Part(task(self.arrays, request.record()), places)

    def _can_be_scored(self, row: Row) -> bool:
        free = self.nearest or self.mode == "centred"
        return bool(row.completion) if free else row.choice is not None

    def _ask(self, parts: Mapping[str, _Part]) -> dict[str, dict[int, float]]:
        """Return the rewards of each group that answers, by place; tell who does not."""
        for name in parts.keys() - {*self._known}:
            raise ConfigError(
                f"Unknown group '{name}'.{nearest(name, self._known)} Nodes: "
                f"{'; '.join(self._known)}."
            )
        self.grid.open_phase(train=False)
        ranks = {name: rank for rank, name in enumerate(self._known, 1)}
        messages = [Message(part.content, ranks[name], REWARD) for name, part in parts.items()]
        found: dict[str, dict[int, float]] = {}
        reasons: dict[str, str] = {}
        for again in (True, False):
            outcomes = self.grid.exchange(messages)
            for outcome in outcomes:
                name = outcome.node.group
                try:
                    found[name] = self._read(outcome, parts[name].places)
                except BadReply as reason:
                    reasons[name] = str(reason)
            # What answered badly would do so again, and a node that was away is not awaited twice.
            silent = [
                o for o in outcomes
                if o.content is None and o.unreachable and o.node.group not in self.missing
            ]  # fmt: skip
            if not (silent and again):
                break
            messages = [outcome.message for outcome in silent]
            self.grid.await_nodes({o.node.group for o in silent}, self.config.join_timeout)
        self._remember({name: reasons[name] for name in parts if name not in found}, found)
        return found

    def _read(self, outcome: Outcome, places: Sequence[int]) -> dict[int, float]:
        if outcome.content is None:
            raise BadReply(outcome.problem)
        rewards = reward_reply(outcome.content, self.mode, len(places))
        return dict(zip(places, rewards, strict=True))

    def _remember(self, missing: Mapping[str, str], found: Collection[str]) -> None:
        self.missing = {k: v for k, v in self.missing.items() if k not in found} | dict(missing)
        if not missing:
            return
        told = "; ".join(f"{name}: {reason}" for name, reason in sorted(missing.items()))
        # A batch may be all of one group's, which is away while others are there.
        if not found and self.missing.keys() >= {*(self.groups or self._known)}:
            raise FederationError(f"No node gave rewards. Reasons: {told}")
        logger.warning(
            "Rewards without %d of %d groups. %s", len(missing), len(missing) + len(found), told
        )
