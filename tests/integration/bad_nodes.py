"""Nodes that lie: what they train on, or what they send. For tests and benchmarks."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from unittest.mock import patch

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from pluralllm_fl.arrays import Arrays
from pluralllm_fl.federation.node import LocalNode
from pluralllm_fl.predictor.episodes import GroupTable
from pluralllm_fl.wire.packing import unpacked
from pluralllm_fl.wire.records import to_arrays, to_record
from pluralllm_fl.workspace import Workspace

Rng = np.random.Generator
NodeApp = Callable[[Message, Context], Message]
SMALL_PART = "network.covariance"


@dataclass(frozen=True)
class Attack:
    """What a bad node does in place of the honest thing.

    Parameters
    ----------
    answers : callable, optional
        ``(table, rng) -> (N,)``: the answers that it trains on, the same in every round.
    update : callable, optional
        ``(update, rng) -> update``: what it sends, by name of the array.
    """

    answers: Callable[[GroupTable, Rng], NDArray[np.float32]] | None = None
    update: Callable[[Arrays, Rng], Arrays] | None = None


def with_bad_nodes(app: ClientApp, bad: Collection[int], attack: Attack) -> NodeApp:
    """Return an app whose nodes of these partitions attack whenever they train."""

    def answer(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        if partition not in bad or message.metadata.message_type != "train":
            return app(message, context)
        reply = _trained(app, message, context, attack, np.random.default_rng(partition))
        if attack.update is not None:
            _falsify(message, reply, attack.update, partition)
        return reply

    return answer


def _trained(
    app: ClientApp, message: Message, context: Context, attack: Attack, rng: Rng
) -> Message:
    if attack.answers is None:
        return app(message, context)
    node = LocalNode.from_context(context)
    table = node.workspace.table(node.group)
    false = replace(table, distribution=attack.answers(table, rng))
    with patch.object(Workspace, "table", lambda *_: false):
        return app(message, context)


def _falsify(
    message: Message, reply: Message, change: Callable[[Arrays, Rng], Arrays], partition: int
) -> None:
    server_round = int(message.content["config"]["server-round"])
    sent = to_arrays(message.content["arrays"])
    reply.content = unpacked(reply.content)
    new = to_arrays(reply.content["arrays"])
    update = {name: new[name] - value for name, value in sent.items()}
    false = change(update, np.random.default_rng([partition, server_round]))
    reply.content["arrays"] = to_record(
        {name: (sent[name] + value).astype(np.float32) for name, value in false.items()}
    )


def _scaled(factor: float) -> Attack:
    return Attack(update=lambda update, _: {k: factor * v for k, v in update.items()})


def _noise(update: Arrays, rng: Rng) -> Arrays:
    return {k: v + rng.normal(scale=0.1, size=v.shape) for k, v in update.items()}


def _small_part(shift: float) -> Attack:
    return Attack(update=lambda update, _: update | {SMALL_PART: update[SMALL_PART] + shift})


def _not_finite(update: Arrays, _: Rng) -> Arrays:
    return {k: np.full_like(v, np.nan if v.ndim > 1 else np.inf) for k, v in update.items()}


def _constant(table: GroupTable, _: Rng) -> NDArray[np.float32]:
    answers = np.zeros_like(table.distribution)
    answers[np.cumsum(table.size) - table.size] = 1
    return answers


def _permuted(table: GroupTable, rng: Rng) -> NDArray[np.float32]:
    """Give every question the answers to another one with as many options, options shuffled."""
    answers = np.empty_like(table.distribution)
    start = np.cumsum(table.size) - table.size
    for size in np.unique(table.size):
        cells = start[table.size == size][:, None] + np.arange(size)
        answers[cells] = rng.permuted(rng.permutation(table.distribution[cells]), axis=1)
    return answers


# An honest node moves a weight by about 0.005 a round.
ATTACKS = {
    "sign flip x10": _scaled(-10),
    "sign flip x4": _scaled(-4),  # passes the check of updates' lengths
    "noise": Attack(update=_noise),
    "permuted answers": Attack(answers=_permuted),
    "constant answer": Attack(answers=_constant),
    "small part": _small_part(1.0),  # a step of 50 in the logarithms of the covariance's numbers
    "small part, slowly": _small_part(0.035),  # passes the check, in every round
    "not finite": Attack(update=_not_finite),
}
