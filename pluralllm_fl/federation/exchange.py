"""Exchange of messages until enough good replies are there, with a report of every other one."""

import logging
from collections.abc import Callable, Sequence

from flwr.app import ArrayRecord, Message, RecordDict

from pluralllm_fl.arrays import Arrays
from pluralllm_fl.config import RunConfig
from pluralllm_fl.errors import FederationError
from pluralllm_fl.federation import reply_checks
from pluralllm_fl.federation.grid import GuardedGrid, Outcome
from pluralllm_fl.federation.outliers import far_from_others
from pluralllm_fl.federation.roster import Node
from pluralllm_fl.runs.events import Event
from pluralllm_fl.wire.messages import (
    ARRAYS,
    EVALUATE_KEYS,
    METRICS,
    QUESTIONS,
    SCORES,
    TRAIN_KEYS,
    WEIGHT,
)
from pluralllm_fl.wire.reading import BadReply
from pluralllm_fl.wire.records import to_arrays

logger = logging.getLogger("flwr.pluralllm_fl")

Replies = list[tuple[Outcome, RecordDict]]


class Exchange:
    """Asks nodes, again where it may, and keeps the replies that pass the checks.

    Parameters
    ----------
    grid : GuardedGrid
        The federation.
    config : RunConfig
        Least number of nodes, retries and limits of updates.
    weight_key : str
        Metric that the strategy weighs training replies by.
    emit : callable
        ``(event, **fields)``: told of nodes lost and back, dropped replies and retries.
    """

    def __init__(
        self, grid: GuardedGrid, config: RunConfig, weight_key: str, emit: Callable[..., Event]
    ) -> None:
        self.grid = grid
        self.config = config
        self.weight_key = weight_key
        self.emit = emit
        self._dropped: dict[str, str] = {}
        self._absent: set[str] = set()
        # Strategies send one record to every node, which so is decoded once.
        self._base: tuple[ArrayRecord, Arrays] | None = None

    def gather(
        self,
        messages: list[Message],
        server_round: int,
        *,
        train: bool,
        attempts: int,
        passengers: Sequence[Message] = (),
    ) -> tuple[Replies, Replies]:
        """Exchange messages until enough good replies are there.

        A retry asks again only the nodes without a good reply: nodes keep no state, so a second
        answer of the others would be the same.

        Parameters
        ----------
        messages : list of Message
            Addressed by rank.
        server_round : int
        train : bool
            Whether the messages ask for training or for evaluations.
        attempts : int
            How often a node is asked at most.
        passengers : sequence of Message
            Evaluations of the model that comes in, asked once, on the way.

        Returns
        -------
        replies, scores : list of (Outcome, RecordDict)
            Good replies to the messages, and evaluations by passengers and by training replies.

        Raises
        ------
        FederationError
            If a training round has fewer good replies than ``min-nodes``.
        """
        needed = min(self.config.min_nodes, len(messages)) if train else len(messages)
        good: Replies = []
        scored: dict[str, tuple[Outcome, RecordDict]] = {}
        for attempt in range(attempts):
            if attempt:
                if train:
                    self.emit("round_retried", round=server_round, attempt=attempt,
                              good=len(good), needed=needed)  # fmt: skip
                messages = self._still_missing(messages, good)
            own = {id(message) for message in messages}
            outcomes = self.grid.exchange([*messages, *passengers])
            self._tell(outcomes, server_round)
            asked = [outcome for outcome in outcomes if id(outcome.message) in own]
            riders = [o for o in outcomes if id(o.message) not in own] + _ridden(asked)
            for outcome, content in self._checked(riders, server_round - 1, train=False):
                scored[outcome.node.group] = (outcome, content)
            passengers = ()
            good += self._checked(asked, server_round, train=train)
            good = self._consistent(good, server_round, train=train)
            if train:
                good = self._alike(good, server_round)
            if len(good) >= needed:
                break
        if train and len(good) < needed:
            raise FederationError(
                f"Round {server_round}: only {len(good)} good replies of {needed} needed "
                f"(min-nodes) after {attempts} attempt(s). Reasons: {self._reasons}. Mend these "
                "nodes and resume, or lower min-nodes."
            )
        scores = self._consistent(list(scored.values()), server_round - 1, train=False)
        return _by_group(good), _by_group(scores)

    def drop(self, group: str, reason: str, server_round: int, *, train: bool) -> None:
        """Report a reply that is not used."""
        self._dropped[group] = reason
        phase = "train" if train else "evaluate"
        logger.warning(
            "Round %d: dropped the %s reply of '%s': %s", server_round, phase, group, reason
        )
        self.emit("reply_dropped", round=server_round, phase=phase, group=group, reason=reason)

    def check_scored(self, server_round: int) -> None:
        """Refuse a final model after an evaluation without a good reply.

        Nodes that are silent say nothing of the model.

        Raises
        ------
        FederationError
            If nodes answered, and none of them could score it.
        """
        if self._dropped.keys() - self._absent:
            raise FederationError(
                f"No node could score the final model, of round {server_round}. Reasons: "
                f"{self._reasons}. If it predicts no finite numbers, an update or noise was too "
                "large: resume with smaller max-update-norm and max-update-ratio, or start "
                "again with gentler strategy-args."
            )

    def _still_missing(self, messages: list[Message], good: Replies) -> list[Message]:
        """Return the messages without a good reply, once their nodes are online again."""
        done = {id(outcome.message) for outcome, _ in good}
        messages = [message for message in messages if id(message) not in done]
        nodes = self.grid.roster.nodes
        missing = [nodes[message.metadata.dst_node_id - 1].group for message in messages]
        self.grid.await_nodes(missing, self.config.join_timeout)
        return messages

    def _checked(self, outcomes: list[Outcome], server_round: int, *, train: bool) -> Replies:
        good = []
        self._dropped = {}
        for outcome in outcomes:
            try:
                good.append((outcome, self._content(outcome, train=train)))
            except BadReply as reason:
                self.drop(outcome.node.group, str(reason), server_round, train=train)
            outcome.content = None  # free the arrays that were received
        return good

    def _content(self, outcome: Outcome, *, train: bool) -> RecordDict:
        if outcome.content is None:
            raise BadReply(outcome.problem)
        if not train:
            return reply_checks.evaluate_reply(outcome.content)
        content, outcome.norms = reply_checks.train_reply(
            outcome.content,
            self._sent(outcome),
            weight_key=self.weight_key,
            claims=self._claims(outcome.node),
            config=self.config,
        )
        return content

    def _claims(self, node: Node) -> dict[str, float]:
        """Return what a node must say of itself: it told its number of answers to the roster."""
        weight = 1 if self.config.client_weight == "uniform" else node.train_questions
        return {WEIGHT: weight, QUESTIONS: node.train_questions}

    def _sent(self, outcome: Outcome) -> Arrays:
        """Return the model that a node was sent."""
        record = outcome.message.content.array_records[ARRAYS]
        if self._base is None or self._base[0] is not record:
            self._base = record, to_arrays(record)
        return self._base[1]

    def _consistent(self, good: Replies, server_round: int, *, train: bool) -> Replies:
        expected = TRAIN_KEYS if train else EVALUATE_KEYS
        odd = reply_checks.odd_keys({o.node.group: content for o, content in good}, expected)
        for group, reason in odd.items():
            self.drop(group, reason, server_round, train=train)
        return [(o, content) for o, content in good if o.node.group not in odd]

    def _alike(self, good: Replies, server_round: int) -> Replies:
        """Drop the updates that lie far outside the others' norms."""
        if not good or not self.config.max_update_ratio:
            return good
        norms = {outcome.node.group: outcome.norms for outcome, _ in good}
        sizes = {name: array.size for name, array in self._sent(good[0][0]).items()}
        far = far_from_others(norms, sizes, self.config.max_update_ratio)
        for group, reason in far.items():
            self.drop(group, reason, server_round, train=True)
        return [(o, content) for o, content in good if o.node.group not in far]

    def _tell(self, outcomes: list[Outcome], server_round: int) -> None:
        """Report nodes that were lost on the way and nodes that are back."""
        while self.grid.resent:
            self.emit("message_resent", round=server_round, group=self.grid.resent.pop(0))
        answered = {outcome.node.group for outcome in outcomes if outcome.content is not None}
        for group in sorted(answered & self._absent):
            self.emit("node_back", round=server_round, group=group)
        silent = {o.node.group for o in outcomes if o.content is None and o.unreachable}
        self._absent = (self._absent - answered) | silent

    @property
    def _reasons(self) -> str:
        return "; ".join(f"{group}: {reason}" for group, reason in sorted(self._dropped.items()))


def _by_group(replies: Replies) -> Replies:
    return sorted(replies, key=lambda pair: pair[0].node.group)


def _ridden(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Take the evaluation part out of training replies, as outcomes of its own."""
    riders = []
    for outcome in outcomes:
        if outcome.content is not None and SCORES in outcome.content.metric_records:
            metrics = outcome.content.metric_records.pop(SCORES)
            content = RecordDict({METRICS: metrics})
            riders.append(Outcome(outcome.message, outcome.node, content))
    return riders
