"""Aggregation that ends sound: a reply that spoils the aggregate is found and left out."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from flwr.serverapp.strategy import Strategy

from pluralllm_fl.arrays import Arrays, sound
from pluralllm_fl.federation.exchange import Replies
from pluralllm_fl.federation.grid import Outcome
from pluralllm_fl.strategies import state as strategy_state

# How many replies are left out in turn, the largest first, before the largest goes anyway.
MOST_SUSPECTS = 16


class Aggregate(NamedTuple):
    """What came of a round.

    Arrays may have any shape. None: they were never sound; empty: the strategy made none.
    """

    arrays: Arrays | None
    replies: Replies
    culprits: list[Outcome]


def aggregate(
    attempt: Callable[[Replies], Arrays], strategy: Strategy, replies: Replies
) -> Aggregate:
    """Aggregate all replies, or if that is not sound (`arrays.sound`), those whose aggregate is.

    Parameters
    ----------
    attempt : callable
        Lets the strategy aggregate to a model's arrays, any shape; may use up what it is given.
    strategy : Strategy
        Set back to its state before each further attempt: momentum must not keep what overflowed.
    replies : list of (Outcome, RecordDict)
        Good by every check.
    """
    tree, arrays = strategy_state.capture(strategy)
    culprits: list[Outcome] = []

    def tried(some: Replies) -> Arrays | None:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            result = attempt([(outcome, _copy(content)) for outcome, content in some])
        if all(map(sound, result.values())):
            return result
        strategy_state.restore(strategy, tree, arrays)
        return None

    result = tried(replies)
    while result is None and len(replies) > 1:
        suspects = sorted(replies, key=_suspicion, reverse=True)[:MOST_SUSPECTS]
        for suspect in suspects:
            result = tried(_without(replies, suspect))
            if result is not None:
                break
        culprit = suspects[0] if result is None else suspect
        replies = _without(replies, culprit)
        culprits.append(culprit[0])
    return Aggregate(result, replies, culprits)


def _suspicion(reply: tuple[Outcome, RecordDict]) -> float:
    """Return how far the reply moves the model."""
    return math.hypot(*reply[0].norms.values())


def _without(replies: Replies, left_out: tuple[Outcome, RecordDict]) -> Replies:
    return [reply for reply in replies if reply is not left_out]


def _copy(content: RecordDict) -> RecordDict:
    """Copy the records, which strategies empty to save memory, but not the arrays' bytes."""
    result = RecordDict(dict(content.items()))
    for name, record in content.array_records.items():
        result[name] = ArrayRecord(dict(record.items()))
    return result
