"""Changes of an update, one after the other: what a node makes of it, the server undoes."""

from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from pluralllm_fl.arrays import Arrays
from pluralllm_fl.wire import changes, rounding
from pluralllm_fl.wire.changes import Change, changed, in_use, received
from pluralllm_fl.wire.messages import ARRAYS, METRICS, ORDER
from pluralllm_fl.wire.reading import BadReply, Layout, layout_of
from pluralllm_fl.wire.records import to_arrays, to_record

MASK = np.uint16(0xA5A5)


def masked_layout(arrays: Mapping[str, Layout]) -> dict[str, Layout]:
    return {f"masked/{name}": layout for name, layout in arrays.items()}


def mask(arrays: Arrays, received: Arrays) -> Arrays:
    del received
    return {f"masked/{name}": value ^ MASK for name, value in arrays.items()}


def unmask(encoded: Arrays, received: Arrays) -> Arrays:
    del received
    return {name.removeprefix("masked/"): value ^ MASK for name, value in encoded.items()}


# As a module with these names would be.
MASKING = SimpleNamespace(KEY="masks", OFF="none", layout=masked_layout, encode=mask, decode=unmask)
ROUNDED = {"update-dtype": "bfloat16", "masks": "none"}
BOTH = {"update-dtype": "bfloat16", "masks": "fixed"}


@pytest.fixture(autouse=True)
def two_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "CHANGES", (rounding, MASKING))
    # As Flower's processes do before their first message.
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def model(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    shapes = {"w": (3, 4), "b": (5,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def sent(settings: dict[str, str], kind: str = "train") -> Arrays:
    """Return the arrays of a reply after the node's end: model 0 came, model 1 was trained."""

    def train(message: Message, context: Context) -> Message:
        del context
        content = RecordDict({ARRAYS: to_record(model(1)), METRICS: MetricRecord()})
        return Message(content, reply_to=message)

    content = RecordDict({ARRAYS: to_record(model(0)), ORDER: ConfigRecord()})
    message = Message(content, dst_node_id=1, message_type=kind)
    context = Context(1, 1, {}, RecordDict(), dict(settings))
    return to_arrays(changed(message, context, train).content.array_records[ARRAYS])


def undone(arrays: Arrays, settings: dict[str, str]) -> Arrays:
    return received(to_record(arrays), model(0), in_use(settings))


def test_the_server_undoes_one_after_the_other() -> None:
    once, twice = sent(ROUNDED), sent(BOTH)
    assert twice.keys() == {f"masked/{name}" for name in once}
    (key,) = once
    np.testing.assert_array_equal(twice[f"masked/{key}"], once[key] ^ MASK)
    result = undone(twice, BOTH)
    assert layout_of(result) == layout_of(model(0))
    for name, value in undone(once, ROUNDED).items():
        np.testing.assert_array_equal(result[name], value)
        np.testing.assert_allclose(value, model(1)[name], atol=0.02)


def test_without_a_change_the_model_travels_as_it_is() -> None:
    none = {"update-dtype": "float32", "masks": "none"}
    for name, value in undone(sent(none), none).items():
        np.testing.assert_array_equal(value, model(1)[name])


def test_only_training_replies_are_changed() -> None:
    assert sent(BOTH, "evaluate").keys() == model(1).keys()


@pytest.mark.parametrize("made", [{}, ROUNDED])
def test_a_node_that_leaves_a_change_out_is_refused(made: dict[str, str]) -> None:
    arrays = sent(made) if made else model(1)
    with pytest.raises(BadReply, match="array names differ"):
        undone(arrays, BOTH)


def test_changes_are_in_order_and_named_by_their_key() -> None:
    listed: list[Change] = in_use(BOTH)
    assert [change.KEY for change in listed] == ["update-dtype", "masks"]
    assert in_use(ROUNDED) == [rounding]
