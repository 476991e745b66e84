"""Which training group owns which prototype of the model, and how averaging treats them."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import NDArray

from pluralllm_fl.config import RunConfig
from pluralllm_fl.federation import results
from pluralllm_fl.federation.guard import GuardedGrid, Outcome
from pluralllm_fl.federation.records import Arrays, to_arrays
from pluralllm_fl.federation.roster import Roster
from pluralllm_fl.federation.updates import own
from pluralllm_fl.memory import OWNED, undiluted


class Prototypes:
    """The prototypes of the training groups in one round.

    A reply carries no prototype but its node's own; strategies see the whole model, in which the
    other prototypes are as they were sent. Models without prototypes stay as they are.

    Parameters
    ----------
    of_group : mapping of str to int
        The prototype of every training group, see `assign`.
    server_round : int
        From 1.
    """

    def __init__(self, of_group: Mapping[str, int], server_round: int) -> None:
        self.of_group = of_group
        self.server_round = server_round
        # Strategies send one record to every node, which so is decoded once. Only the last is
        # kept: those that send each node another would fill the memory.
        self._last: tuple[ArrayRecord, Arrays] | None = None

    def address(self, messages: Sequence[Message], grid: GuardedGrid) -> list[Message]:
        """Tell every training node which prototype is its own; arrays are shared, not copied."""
        result = []
        for message in messages:
            content = RecordDict(dict(message.content.items()))
            prototype = self.of_group[grid.node(message).group]
            for key, record in message.content.config_records.items():
                content[key] = ConfigRecord({**record, "prototype": prototype})
            metadata = message.metadata
            result.append(
                Message(content, metadata.dst_node_id, metadata.message_type,
                        ttl=metadata.ttl, group_id=metadata.group_id)
            )  # fmt: skip
        return result

    def base(self, outcome: Outcome) -> Arrays:
        """Return the part of the model sent to a node that its reply is the new version of."""
        return own(self._model(outcome), self.of_group[outcome.node.group])

    def side_by_side(self, replies: Sequence[tuple[Outcome, RecordDict]], weight_key: str) -> None:
        """Complete the arrays of replies, in place, and undo what averaging does to prototypes."""
        mine = [self.of_group[outcome.node.group] for outcome, _ in replies]
        weights = [results.weight(content, weight_key) for _, content in replies]
        # What nobody has filled yet is no part of a mean: there, those who replied count as all.
        new = {p: mine.count(p) for p in self._empty(replies)}
        owners = {**Counter(self.of_group.values()), **new}
        factors = undiluted(mine, weights, owners, self.server_round)
        for (outcome, content), prototype, factor in zip(replies, mine, factors, strict=True):
            model, base = self._model(outcome), self.base(outcome)
            record = content.array_records["arrays"]
            for name in base.keys() & set(OWNED):
                moved: NDArray[Any] = base[name]
                moved = moved + factor * (record[name].numpy() - moved)
                record[name] = _Completed(model[name], prototype, moved)

    def _empty(self, replies: Sequence[tuple[Outcome, RecordDict]]) -> set[int]:
        """Return the prototypes that were sent without anything in them."""
        return {
            self.of_group[outcome.node.group]
            for outcome, _ in replies
            if not all(a.any() for name, a in self.base(outcome).items() if name in OWNED)
        }

    def _model(self, outcome: Outcome) -> Arrays:
        record = outcome.message.content.array_records["arrays"]
        if self._last is None or self._last[0] is not record:
            self._last = record, to_arrays(record)
        return self._last[1]


def assign(config: RunConfig, roster: Roster) -> dict[str, int]:
    """Return the prototype of every training group.

    With ``seen-groups`` their order decides, so that a node which joins late changes no other's.
    """
    named, seen = sorted(config.seen), roster.seen
    groups = named if set(seen) <= set(named) else seen
    return {group: place % config.prototypes for place, group in enumerate(groups)}


class _Completed(Array):
    """An array of the model with another entry in one place, put together when it is read.

    All replies share the rest of the array: whole copies of many prototypes from as many nodes
    would not fit a server's memory, and averages read one reply after the other.
    """

    def __init__(self, model: NDArray[Any], prototype: int, entry: NDArray[Any]) -> None:
        self.dtype, self.shape, self.stype = str(model.dtype), model.shape, "numpy.ndarray"
        self._parts = model, prototype, entry

    def numpy(self) -> NDArray[Any]:
        """Return the whole array, the caller's own."""
        model, prototype, entry = self._parts
        whole = model.copy()
        whole[prototype : prototype + 1] = entry
        return whole

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The whole array as Flower serialises it."""
        buffer = io.BytesIO()
        np.save(buffer, self.numpy(), allow_pickle=False)
        return buffer.getvalue()
