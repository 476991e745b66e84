"""What happens beside training: event log, checkpoints, early stopping."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from flwr.serverapp.strategy import Strategy

from pluralllm_fl.arrays import Arrays
from pluralllm_fl.federation import results
from pluralllm_fl.federation.roster import Roster
from pluralllm_fl.runs import checkpoint
from pluralllm_fl.runs.artefacts import RunDirectory
from pluralllm_fl.runs.checkpoint import Checkpoint, RunState
from pluralllm_fl.runs.events import Event
from pluralllm_fl.strategies import state as strategy_state

logger = logging.getLogger("flwr.pluralllm_fl")


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a run stands when a callback is called.

    `last` says that no round follows, `chosen` that what is evaluated is the final model.
    ``emit(event, **fields)`` tells every callback of an event.
    """

    progress: RunState
    strategy: Strategy
    last: bool
    chosen: bool
    emit: Callable[..., Event]


class Callback:
    """Base: do nothing. Events are those of metrics.jsonl."""

    def on_event(self, event: Event, moment: Moment) -> None:
        """Take note of an event; called in order."""

    def on_round_end(self, moment: Moment) -> bool:
        """Act after a round (0: before the first) is complete; return whether to stop."""
        del moment
        return False


class MetricsLog(Callback):
    """Append every event to metrics.jsonl and say the main ones in the log."""

    def __init__(self, directory: RunDirectory, rounds: int) -> None:
        self.directory = directory
        self.rounds = rounds

    def on_event(self, event: Event, moment: Moment) -> None:
        """Append the event."""
        del moment
        self.directory.append_event(event)
        total = self.rounds
        if event["event"] == "round":
            loss = event["train_loss"]
            shown = "no training" if loss is None else f"train loss {loss:.4f}"
            logger.info("Round %d/%d: %s", event["round"], total, shown)
        elif event["event"] == "warning":
            logger.warning("%s", event["text"])
        elif event["event"] == "evaluation":
            parts = [
                f"{side} {event[side]['alignment']:.4f}"
                for side in ("seen", "unseen")
                if event[side]
            ]
            logger.info("Round %d/%d: alignment %s", event["round"], total, ", ".join(parts))


class Membership(Callback):
    """Write down who takes part when a node joins late, so that a resumed run waits for it.

    Parameters
    ----------
    roster : Roster
        Of the run; grows when a node joins.
    keep : callable
        Stores it.
    """

    def __init__(self, roster: Roster, keep: Callable[[Roster], None]) -> None:
        self.roster = roster
        self.keep = keep

    def on_event(self, event: Event, moment: Moment) -> None:
        """Store the new roster."""
        del moment
        if event["event"] == "node_joined":
            self.keep(self.roster)


class EarlyStopping(Callback):
    """Stop when validation alignment of the seen groups does not rise; keep the best model.

    An evaluation that lacks groups of the best one is not compared with it; one with more groups
    takes its place.

    Parameters
    ----------
    patience : int
        Evaluations without improvement before the run stops.

    Attributes
    ----------
    best_arrays : dict of str to ndarray, any shape
        The best model's; empty before the first evaluation.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best: float | None = None
        self.best_round = 0
        self.best_arrays: Arrays = {}
        self.best_evaluation: Event | None = None
        self.without_gain = 0
        self.stopped = False

    def on_event(self, event: Event, moment: Moment) -> None:
        """Compare an evaluation with the best one."""
        score = event.get("validation_alignment")
        if event["event"] != "evaluation" or score is None or moment.chosen:
            return
        best, now = self.best_evaluation, results.groups(event, ["seen"])
        then = results.groups(best, ["seen"]) if best else set()
        if lacking := then - now:
            names = ", ".join(sorted(lacking))
            logger.warning("Round %d: no early stopping without %s.", event["round"], names)
            return
        if self.best is None or score > self.best or now > then:
            self.best, self.best_round, self.without_gain = score, event["round"], 0
            self.best_arrays = dict(moment.progress.arrays)
            self.best_evaluation = event
        else:
            self.without_gain += 1
            self.stopped = self.without_gain >= self.patience

    def on_round_end(self, moment: Moment) -> bool:
        """Say so once the score has not risen for long enough."""
        if self.stopped:
            done = moment.progress.round
            moment.emit("early_stopped", round=done, best_round=self.best_round)
        return self.stopped

    def state(self) -> Event:
        """Return what a checkpoint must hold, arrays aside."""
        names = ("best", "best_round", "best_evaluation", "without_gain", "stopped")
        return {name: getattr(self, name) for name in names}

    def load(self, state: Event, best_arrays: Arrays) -> None:
        """Set the state from a checkpoint, with the best model's arrays, any shape."""
        for name, value in state.items():
            setattr(self, name, value)
        self.best_arrays = best_arrays


class CheckpointWriter(Callback):
    """Write a checkpoint every so many rounds, and on demand the last completed round's.

    Register it after `EarlyStopping`, whose state it saves.
    """

    def __init__(
        self, directory: RunDirectory, every: int, stopping: EarlyStopping | None = None
    ) -> None:
        self.directory = directory
        self.every = every
        self.stopping = stopping
        self.pending: Checkpoint | None = None
        self.last_round: int | None = None
        self._warned = False

    def on_round_end(self, moment: Moment) -> bool:
        """Copy the state; write it if due."""
        p = moment.progress
        tree, arrays = strategy_state.capture(moment.strategy)
        if not self._warned and (names := strategy_state.unsupported(tree)):
            self._warned = True
            logger.warning(
                "Strategy state in %s cannot be saved: this run cannot be resumed.",
                ", ".join(names),
            )
        self.pending = Checkpoint(
            progress=RunState(**{name: getattr(p, name) for name in RunState.__slots__}),
            strategy=tree,
            strategy_arrays=arrays,
            stopping=self.stopping.state() if self.stopping else {},
            best_arrays=self.stopping.best_arrays if self.stopping else {},
        )
        if p.round % self.every == 0 or moment.last:
            self.flush(moment.emit)
        return False

    def flush(self, emit: Callable[..., Event]) -> None:
        """Write the last completed round's state unless that was done."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            checkpoint.write(self.directory.checkpoints, pending)
            self.last_round = pending.progress.round
            emit("checkpoint", round=self.last_round)
