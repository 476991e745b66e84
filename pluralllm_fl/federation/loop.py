"""The round loop: a stock strategy's four hooks, with guarded replies and per-group results."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType, RecordDict
from flwr.serverapp.strategy import Strategy

from pluralllm_fl.arrays import TOO_LARGE, Arrays
from pluralllm_fl.config import RunConfig
from pluralllm_fl.errors import FederationError, PluralLLMError
from pluralllm_fl.federation import results
from pluralllm_fl.federation.aggregation import aggregate
from pluralllm_fl.federation.callbacks import Callback, Moment
from pluralllm_fl.federation.exchange import Exchange, Replies
from pluralllm_fl.federation.grid import GuardedGrid, Outcome
from pluralllm_fl.federation.memory import release_memory
from pluralllm_fl.runs.checkpoint import RunState
from pluralllm_fl.runs.events import Event
from pluralllm_fl.strategies import innermost, is_private
from pluralllm_fl.wire.messages import ARRAYS, METRICS, ORDER, WEIGHT, Order, parse_scores, task
from pluralllm_fl.wire.records import seeded, to_arrays, to_record

logger = logging.getLogger("flwr.pluralllm_fl")

LearningRate = Callable[[RunConfig, int], float]


class RoundLoop:
    """Trains and evaluates round by round from ``progress`` to the end.

    Parameters
    ----------
    grid : GuardedGrid
        The federation.
    strategy : Strategy
        Any Flower strategy; only its four hooks are called.
    config : RunConfig
        Rounds, limits, evaluation interval and seed.
    progress : RunState
        Where to start: the initial model, or a checkpoint's.
    learning_rate_at : callable
        ``(config, round) -> learning rate`` of a round.
    callbacks : sequence of Callback
        Called in this order.
    """

    def __init__(
        self,
        grid: GuardedGrid,
        strategy: Strategy,
        config: RunConfig,
        progress: RunState,
        learning_rate_at: LearningRate,
        callbacks: Sequence[Callback],
    ) -> None:
        self.grid = grid
        self.strategy = strategy
        self.config = config
        self.progress = progress
        self.learning_rate_at = learning_rate_at
        self.callbacks = callbacks
        self.stop = False
        self.finished = False
        self.fresh = progress.evaluation is None and progress.round == 0
        self._weight_key = str(getattr(innermost(strategy), "weighted_by_key", WEIGHT))
        self._exchange = Exchange(grid, config, self._weight_key, self.emit)

    def run(self) -> None:
        """Run the remaining rounds.

        Raises
        ------
        FederationError
            If a round has too few good replies after its retries, or the strategy fails.
        """
        rounds = self.config.num_server_rounds
        if self.fresh:
            self._end_round()
        for server_round in range(self.progress.round + 1, rounds + 1):
            if self.stop:
                break
            self.train(server_round)
            self.progress.round = server_round
            if server_round == rounds:
                self.evaluate(server_round)
            self._end_round()
        if not self.progress.aggregated_rounds:
            raise FederationError(
                f"Strategy '{self.config.strategy}' never aggregated a round: the model is the "
                "initial one. The log says why."
            )

    def finish(self, arrays: Arrays | None, evaluation: Event | None) -> None:
        """Choose the final model: the given one, else the last; evaluate it on every group.

        `arrays` are the given one's, by name, any shape.
        """
        self.finished = True
        chosen = self.progress.round
        if arrays is not None and evaluation is not None:
            self.progress.arrays, self.progress.evaluation = arrays, evaluation
            chosen = evaluation["round"]
        last, groups = self.progress.evaluation, {n.group for n in self.grid.roster.nodes}
        whole = chosen in (0, self.config.num_server_rounds)
        if last is None or last["round"] != chosen or not (whole or results.groups(last) == groups):
            self.evaluate(chosen)

    def emit(self, event: str, **fields: Any) -> Event:
        """Hand an event to every callback."""
        record = {"event": event, "time": time.time(), **fields}
        for callback in self.callbacks:
            callback.on_event(record, self._moment)
        return record

    def train(self, server_round: int) -> None:
        """Run a training round on the global model; its messages bring that model's scores too."""
        start = time.monotonic()
        self._admit(server_round)
        riding = self._rides(server_round)
        passengers = self._evaluation_messages(server_round - 1) if riding else []
        rate = self.learning_rate_at(self.config, server_round)
        self.grid.open_phase(train=True)
        order = Order(server_round, rate, evaluate=riding)
        messages = self._configure("train", order)
        trained = {message.metadata.dst_node_id for message in messages}
        passengers = [m for m in passengers if m.metadata.dst_node_id not in trained]
        replies, scores = self._exchange.gather(
            messages,
            server_round,
            attempts=1 + self.config.round_retries,
            train=True,
            passengers=passengers,
        )
        if riding:
            self._score(server_round - 1, scores, {"seconds": 0.0, "bytes_up": 0, "bytes_down": 0})
        replies = self._aggregate(server_round, replies)
        by_group = {
            o.node.group: results.training(content, self._weight_key) for o, content in replies
        }
        self.emit(
            "round",
            round=server_round,
            train_loss=results.weighted_loss(by_group),
            learning_rate=rate,
            by_group=by_group,
            **self._account(start),
        )

    def evaluate(self, server_round: int) -> None:
        """Evaluate the final model on every node, in a pass of its own.

        Raises
        ------
        FederationError
            If the final model is one that no node can score.
        """
        start = time.monotonic()
        messages = self._evaluation_messages(server_round, everyone=True)
        replies, _ = self._exchange.gather(
            messages, server_round, train=False, attempts=2 if server_round else 1
        )
        if server_round and not replies:
            self._exchange.check_scored(server_round)
        self._score(server_round, replies, self._account(start))

    def _rides(self, server_round: int) -> bool:
        """Return whether the model that comes into this round is evaluated by its messages."""
        before, last = server_round - 1, self.progress.evaluation
        due = before % self.config.evaluate_every == 0
        return due and (last is None or last["round"] != before)

    def _evaluation_messages(self, server_round: int, *, everyone: bool = False) -> list[Message]:
        order = Order(server_round)
        self.grid.open_phase(train=False)
        messages = self._configure("evaluate", order)
        asked = {message.metadata.dst_node_id for message in messages}
        required = self._required(everyone=everyone or server_round == 0)
        if missing := [rank for rank in required if rank not in asked]:
            content = task(to_record(self.progress.arrays), order.record())
            messages += [
                Message(content, dst_node_id=rank, message_type=MessageType.EVALUATE)
                for rank in missing
            ]
        return messages

    def _score(self, server_round: int, replies: Replies, account: Event) -> None:
        """Hand the scores of the global model to the strategy and to the callbacks."""
        if replies:
            self._call("aggregate_evaluate", server_round, [_reply(o, c) for o, c in replies])
        scores = {o.node.group: parse_scores(c.metric_records[METRICS]) for o, c in replies}
        self.progress.evaluation = self.emit(
            "evaluation",
            round=server_round,
            **account,
            **results.evaluation(scores, self.grid.roster),
        )

    def _admit(self, server_round: int) -> None:
        for node in self.grid.admit(self.config.seen, self.config.unseen):
            self.emit("node_joined", round=server_round, group=node.group, role=node.role,
                      questions=node.questions)  # fmt: skip

    def _required(self, *, everyone: bool) -> list[int]:
        """Return the ranks to evaluate whatever the strategy's fraction_evaluate.

        The initial and the last model are evaluated on every node; early stopping compares
        rounds, so it needs the same groups, the seen ones, in each.
        """
        if everyone or self.config.early_stopping_patience:
            return self.grid.roster.ranks(train=not everyone)
        return []

    def _configure(self, phase: str, order: Order) -> list[Message]:
        server_round, record = order.server_round, to_record(self.progress.arrays)
        with seeded(self.config.seed, server_round, phase):
            hook = f"configure_{phase}"
            messages = list(self._call(hook, server_round, record, order.record(), self.grid))
        for content in (message.content for message in messages):
            if ARRAYS not in content.array_records or ORDER not in content.config_records:
                raise FederationError(
                    f"Round {server_round}: strategy '{self.config.strategy}' sends the records "
                    f"{', '.join(map(repr, content))}; nodes read '{ARRAYS}' and '{ORDER}'. Leave "
                    "arrayrecord_key and configrecord_key out of strategy-args."
                )
        return messages

    def _aggregate(self, server_round: int, replies: Replies) -> Replies:
        """Set the new model; return the replies that went into it."""
        found = aggregate(partial(self._aggregated, server_round), self.strategy, replies)
        needed = min(self.config.min_nodes, len(replies))
        if found.arrays is None or len(found.replies) < needed:
            raise FederationError(
                f"Round {server_round}: strategy '{self.config.strategy}' produced NaN or infinite "
                f"values, or {TOO_LARGE}, and fewer than {needed} replies (min-nodes) give sound "
                "ones. Try gentler strategy-args."
            )
        for outcome in found.culprits:
            reason = f"the aggregate with it holds NaN or infinite values, or {TOO_LARGE}"
            self._exchange.drop(outcome.node.group, reason, server_round, train=True)
        if found.arrays:
            self.progress.arrays = found.arrays
            self.progress.aggregated_rounds += 1
        else:
            logger.warning("Round %d: the strategy did not aggregate.", server_round)
        return found.replies

    def _aggregated(self, server_round: int, replies: Replies) -> Arrays:
        """Return the strategy's aggregate in the model's order; empty if it made none."""
        # Noise for privacy comes from the operating system: the run's seed is no secret.
        entropy = np.random.SeedSequence().entropy if is_private(self.strategy) else ""
        messages = [_reply(o, content) for o, content in replies]
        with seeded(self.config.seed, server_round, "aggregate", entropy):
            record, _ = self._call("aggregate_train", server_round, messages)
        return {} if record is None else self._conform(record, server_round)

    def _conform(self, record: ArrayRecord, server_round: int) -> Arrays:
        """Return the aggregate in the model's order and dtypes (FedAdam computes in float64)."""
        arrays, model = to_arrays(record), self.progress.arrays
        if {k: v.shape for k, v in arrays.items()} != {k: v.shape for k, v in model.items()}:
            raise FederationError(
                f"Round {server_round}: strategy '{self.config.strategy}' changed the names or "
                "shapes of arrays."
            )
        return {k: arrays[k].astype(old.dtype, copy=False) for k, old in model.items()}

    def _call(self, hook: str, *args: Any) -> Any:
        try:
            return getattr(self.strategy, hook)(*args)
        except PluralLLMError:
            raise
        except Exception as error:
            raise FederationError(
                f"Strategy '{self.config.strategy}' failed in {hook} of round {args[0]}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _account(self, start: float) -> Event:
        seconds = time.monotonic() - start
        self.progress.seconds += seconds
        self.progress.bytes_up += self.grid.bytes_up
        self.progress.bytes_down += self.grid.bytes_down
        return {
            "seconds": seconds,
            "bytes_up": self.grid.bytes_up,
            "bytes_down": self.grid.bytes_down,
        }

    @property
    def _moment(self) -> Moment:
        last = self.stop or self.progress.round == self.config.num_server_rounds
        return Moment(self.progress, self.strategy, last, self.finished, self.emit)

    def _end_round(self) -> None:
        for callback in self.callbacks:
            self.stop |= callback.on_round_end(self._moment)
        release_memory()


def _reply(outcome: Outcome, content: RecordDict) -> Message:
    """Return the checked content as a reply from the node's rank."""
    return Message(content, reply_to=outcome.message)
