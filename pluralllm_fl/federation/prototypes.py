"""Which training group owns which prototype of the model, and how averaging treats them."""

from collections import Counter
from collections.abc import Mapping, Sequence

from flwr.app import ConfigRecord, Message, RecordDict

from pluralllm_fl.config import RunConfig
from pluralllm_fl.federation import results
from pluralllm_fl.federation.guard import GuardedGrid, Outcome
from pluralllm_fl.federation.records import to_arrays, to_record
from pluralllm_fl.federation.roster import Roster
from pluralllm_fl.memory import OWNED, undiluted


def assign(config: RunConfig, roster: Roster) -> dict[str, int]:
    """Return the prototype of every training group.

    With ``seen-groups`` their order decides, so that a node which joins late changes no other's.
    """
    named, seen = sorted(config.seen), roster.seen
    groups = named if set(seen) <= set(named) else seen
    return {group: place % config.prototypes for place, group in enumerate(groups)}


def address(
    messages: Sequence[Message], grid: GuardedGrid, prototypes: Mapping[str, int]
) -> list[Message]:
    """Tell every training node which prototype is its own; the arrays are shared, not copied."""
    result = []
    for message in messages:
        content = RecordDict(dict(message.content.items()))
        prototype = prototypes[grid.node(message).group]
        for key, record in message.content.config_records.items():
            content[key] = ConfigRecord({**record, "prototype": prototype})
        metadata = message.metadata
        result.append(
            Message(content, metadata.dst_node_id, metadata.message_type,
                    ttl=metadata.ttl, group_id=metadata.group_id)
        )  # fmt: skip
    return result


def side_by_side(
    replies: Sequence[tuple[Outcome, RecordDict]],
    prototypes: Mapping[str, int],
    weight_key: str,
    server_round: int,
) -> None:
    """Undo, in place, what averaging would do to the prototypes; a node moves none but its own.

    Models without prototypes stay as they are.
    """
    own = [prototypes[outcome.node.group] for outcome, _ in replies]
    weights = [results.weight(content, weight_key) for _, content in replies]
    factors = undiluted(own, weights, Counter(prototypes.values()), server_round)
    for (outcome, content), prototype, factor in zip(replies, own, factors, strict=True):
        sent = outcome.message.content.array_records["arrays"]
        arrays = to_arrays(content.array_records["arrays"])
        for name in arrays.keys() & set(OWNED):
            moved, arrays[name] = arrays[name][prototype], sent[name].numpy().copy()
            arrays[name][prototype] += factor * (moved - arrays[name][prototype])
        content["arrays"] = to_record(arrays)
