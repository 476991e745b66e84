"""Replies carry one prototype: what is on the wire, what strategies see, and the same aggregate."""

import copy
import io
import json
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from pluralllm_fl.config import RunConfig
from pluralllm_fl.embedding.models import PACKAGED
from pluralllm_fl.errors import FederationError
from pluralllm_fl.federation.guard import Outcome
from pluralllm_fl.federation.node import LocalNode
from pluralllm_fl.federation.packing import packed
from pluralllm_fl.federation.prototypes import Prototypes
from pluralllm_fl.federation.records import Arrays, count_bytes, to_arrays, to_record
from pluralllm_fl.federation.roster import Node
from pluralllm_fl.predictor import initial_predictor
from pluralllm_fl.training import learning_rate_at, round_seed, train_group
from pluralllm_fl.workspace import open_workspace
from tests.integration.inprocess import events, final_arrays
from tests.integration.test_node import context
from tests.integration.test_updates import (
    HOSTILE_RUN,
    deployment,
    federate,
    others_alone,
    reason_of_the_bad_node,
    settings,
    trains,
)

pytestmark = pytest.mark.integration
pytest.importorskip(PACKAGED, reason="the extra 'offline' is not installed")

MEMORY, COVERAGE, MIXING = "network.memory", "network.coverage", "network.mixing"
# One prototype of MiniLM's 384 dimensions with 32 coverage features, and the mixing.
OWN = {MEMORY: (1, 385, 768), COVERAGE: (1, 32), MIXING: (10,)}
VALUES = sum(math.prod(shape) for shape in OWN.values())


def by_hand(config: RunConfig) -> dict[str, bytes]:
    """Train the groups apart, give every one a whole reply, and average those."""
    workspace = open_workspace(config)
    predictor = initial_predictor(
        config, workspace.vectors.shape[1], workspace.embedding_fingerprint
    )
    prototypes = [place % config.prototypes for place in range(len(workspace.seen))]
    tables = [workspace.table(group) for group in workspace.seen]
    answers = [float(len(table.members("train"))) for table in tables]
    weights = answers if config.client_weight == "answers" else [1.0] * len(answers)
    for server_round in range(1, config.num_server_rounds + 1):
        received = {k: v.clone() for k, v in predictor.state_dict().items()}
        replies = []
        for group, table, prototype, weight in zip(
            workspace.seen, tables, prototypes, weights, strict=True
        ):
            predictor.load_state_dict(received)
            train_group(
                predictor, table, config, prototype=prototype, local_steps=config.local_steps,
                learning_rate=learning_rate_at(config, server_round),
                seed=round_seed(config.seed, server_round, group),
            )  # fmt: skip
            reply = {k: v.numpy().copy() for k, v in predictor.state_dict().items()}
            # A prototype is to move by the mean over those who have it.
            factor = sum(weights) / (weight * prototypes.count(prototype))
            for name in (MEMORY, COVERAGE):
                before = received[name][prototype].numpy()
                reply[name][prototype] = before + factor * (reply[name][prototype] - before)
            replies.append(reply)
        shares = [weight / sum(weights) for weight in weights]
        mean = {k: v * shares[0] for k, v in replies[0].items()}
        for reply, share in zip(replies[1:], shares[1:], strict=True):
            mean = {k: v + reply[k] * share for k, v in mean.items()}
        predictor.load_state_dict({k: torch.from_numpy(v) for k, v in mean.items()})
    return {k: v.numpy().tobytes() for k, v in predictor.state_dict().items()}


@pytest.mark.parametrize(
    ("prototypes", "weight"), [(1, "uniform"), (2, "uniform"), (2, "answers"), (3, "uniform")]
)
def test_aggregate_has_the_bits_of_whole_replies(
    tmp_path: Path, prototypes: int, weight: str
) -> None:
    """Three groups train, so two prototypes are fewer than groups."""
    changes: dict[str, Any] = {"prototypes": prototypes, "client_weight": weight}
    config = settings(tmp_path, num_server_rounds=2, **changes)
    assert final_arrays(federate(config)) == by_hand(config)


@pytest.mark.parametrize(
    ("dtype", "wire"),
    [
        ("float32", {name: (shape, "float32") for name, shape in OWN.items()}),
        ("bfloat16", {"update/bfloat16": ((VALUES,), "uint16")}),
        ("int8", {"update/int8": ((VALUES,), "int8"), "update/scales": ((1157,), "float32")}),
    ],
)
def test_a_reply_carries_its_nodes_own_prototype_alone(
    tmp_path: Path, dtype: str, wire: dict[str, Any]
) -> None:
    found, sizes = [], []

    def fault(request: Message, reply: Message, _: int) -> Message:
        if request.metadata.message_type == "train":
            record = reply.content["arrays"]
            found.append({name: (a.numpy().shape, a.dtype) for name, a in record.items()})
            sizes.append(count_bytes(packed(reply.content)))
        return reply

    config = settings(tmp_path, num_server_rounds=1, prototypes=3, update_dtype=dtype)
    run = federate(config, fault)
    assert found == [wire] * 3
    data = sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in wire.values())
    assert data < max(sizes) < data + 1000
    assert abs(events(run, "round")[0]["bytes_up"] - sum(sizes)) < 1000
    # Down goes the whole model.
    assert events(run, "round")[0]["bytes_down"] > 3 * 3 * 4 * 385 * 768


def test_a_published_model_travels_whole(tmp_path: Path) -> None:
    def fault(request: Message, reply: Message, _: int) -> Message:
        if request.metadata.message_type == "train":
            record = request.content["arrays"]
            shapes = {name: array.shape for name, array in record.items()}
            assert {k: a.shape for k, a in reply.content["arrays"].items()} == shapes
        return reply

    config = {"architecture": "published", "width": 16, "layers": 1, "feed_forward": 16}
    run = federate(settings(tmp_path, num_server_rounds=1, **config), fault)
    assert not events(run, "reply_dropped")


# -- what the server makes of replies


def _moved(array: NDArray[Any]) -> NDArray[Any]:
    """Return the whole memory, with another group's prototype moved too."""
    return np.concatenate([array, array + 1])


SHAPES: dict[str, tuple[str, Callable[[NDArray[Any]], NDArray[Any]]]] = {
    "the whole memory": (MEMORY, _moved),
    "no axis of prototypes": (MEMORY, lambda a: a[0]),
    "no prototype": (MEMORY, lambda a: a[:0]),
    "turned": (MEMORY, lambda a: a.transpose(0, 2, 1).copy()),
    "short coverage": (COVERAGE, lambda a: a[:, :-1]),
}


@pytest.fixture(scope="module")
def without_bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the final model of the others alone."""
    return others_alone(tmp_path_factory.mktemp("reference"), PLAIN)


PLAIN = HOSTILE_RUN | {"update_dtype": "float32"}


@pytest.mark.parametrize("kind", SHAPES)
def test_a_prototype_of_another_shape_is_dropped_and_named(
    tmp_path: Path, without_bad: dict[str, bytes], kind: str
) -> None:
    name, change = SHAPES[kind]

    def fault(request: Message, reply: Message, partition: int) -> Message:
        if trains(request, 1, partition):
            record = reply.content["arrays"]
            record[name] = Array(change(record[name].numpy()))
        return reply

    run = federate(settings(tmp_path, **PLAIN), fault)
    reason = reason_of_the_bad_node(run)
    assert f"array {name} has shape" in reason
    assert str(OWN[name]) in reason
    assert final_arrays(run) == without_bad


class Moved(FedAvg):
    """FedAvg that sends another model than the aggregate."""

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        """Add 1 to every value."""
        moved = {k: Array(np.asarray(v.numpy() + np.float32(1))) for k, v in arrays.items()}
        return super().configure_train(server_round, ArrayRecord(moved), config, grid)


def test_the_limit_of_the_norm_is_for_what_the_node_changed(tmp_path: Path) -> None:
    norms: dict[int, float] = {}

    def fault(request: Message, reply: Message, partition: int) -> Message:
        if trains(request, 1):
            mine = request.content["config"]["prototype"]
            squares = 0.0
            for name, array in reply.content["arrays"].items():
                sent = request.content["arrays"][name].numpy()
                sent = sent if name == MIXING else sent[mine : mine + 1]
                squares += float(np.square(array.numpy().astype(float) - sent).sum())
            norms[partition] = math.sqrt(squares)
        return reply

    config = PLAIN | {"strategy": f"{__name__}:Moved"}
    run = federate(settings(tmp_path / "free", **config, max_update_norm=0.0), fault)
    *_, second, first = sorted(norms, key=norms.__getitem__)
    limit = (norms[first] + norms[second]) / 2
    run = federate(settings(tmp_path / "limited", **config, max_update_norm=limit))
    (dropped,) = events(run, "reply_dropped")
    assert dropped["group"] == json.loads((run / "run.json").read_text())["seen"][first]
    assert f"update norm {norms[first]:.4g} exceeds" in dropped["reason"]


@pytest.mark.parametrize("key", ["arrayrecord_key", "configrecord_key"])
def test_records_by_another_name_are_refused_with_the_key(tmp_path: Path, key: str) -> None:
    config = settings(tmp_path, strategy_args=json.dumps({key: "weights"}))
    with pytest.raises(FederationError, match=f"'weights'.*nodes read 'arrays'.*{key}"):
        federate(config)


class Looking(FedAvg):
    """FedAvg that looks at whole replies in every way that Flower offers, and spoils its copies."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """Check every reply, then average."""
        replies = list(replies)
        for reply in replies:
            record = reply.content["arrays"]
            assert {name: array.shape for name, array in record.items()} == {
                name: (2, *shape[1:]) if shape[0] == 1 else shape for name, shape in OWN.items()
            }
            for name, array in copy.deepcopy(record).items():
                value = array.numpy()
                assert array.dtype == str(value.dtype) == "float32"
                np.testing.assert_array_equal(np.load(io.BytesIO(array.data)), value)
                np.testing.assert_array_equal(record.to_torch_state_dict()[name].numpy(), value)
                np.testing.assert_array_equal(Array(value).numpy(), record[name].numpy())
                value += 1
        return super().aggregate_train(server_round, replies)


def test_strategies_see_whole_arrays_of_their_own(tmp_path: Path) -> None:
    runs = [
        federate(settings(tmp_path / name[-5:], num_server_rounds=1, strategy=name))
        for name in ("fedavg", f"{__name__}:Looking")
    ]
    assert final_arrays(runs[0]) == final_arrays(runs[1])


def test_many_replies_do_not_fill_the_servers_memory() -> None:
    """32 replies of a model with 32 prototypes: whole, they would take 32 MB."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    groups = {f"group {place:02d}": place for place in range(32)}
    model: Arrays = {MEMORY: np.zeros((32, 64, 128), np.float32)}
    record, prototypes = to_record(model), Prototypes(groups, 1)
    replies = []
    for rank, (group, place) in enumerate(groups.items(), start=1):
        message = Message(RecordDict({"arrays": record}), dst_node_id=rank, message_type="train")
        node = Node(group, "train", rank, 3, "tiny", 0, 0, "", 10, 7)
        own = to_record({MEMORY: np.full((1, 64, 128), place + 1.0, np.float32)})
        metrics = MetricRecord({"num-examples": 1.0})
        replies.append((Outcome(message, node), RecordDict({"arrays": own, "metrics": metrics})))
    tracemalloc.start()
    prototypes.side_by_side(replies, "num-examples")
    contents = [Message(content, reply_to=outcome.message) for outcome, content in replies]
    aggregated, _ = FedAvg().aggregate_train(1, contents)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10e6
    assert aggregated is not None
    memory = to_arrays(aggregated)[MEMORY]
    np.testing.assert_allclose(memory, np.arange(1, 33)[:, None, None] * np.ones((64, 128)))


def test_models_sent_to_each_node_apart_do_not_fill_the_servers_memory() -> None:
    """32 models of 1 MB, of which only one prototype each is asked for."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    groups = {f"group {place:02d}": place for place in range(32)}
    prototypes = Prototypes(groups, 1)
    outcomes = []
    for rank, (group, place) in enumerate(groups.items(), start=1):
        record = to_record({MEMORY: np.full((32, 64, 128), float(place), np.float32)})
        message = Message(RecordDict({"arrays": record}), dst_node_id=rank, message_type="train")
        node = Node(group, "train", rank, 3, "tiny", 0, 0, "", 10, 7)
        outcomes.append(Outcome(message, node))
    tracemalloc.start()
    for outcome in outcomes:
        base = prototypes.base(outcome)[MEMORY]
        np.testing.assert_array_equal(base, np.full((1, 64, 128), groups[outcome.node.group]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10e6


@pytest.mark.parametrize("architecture", ["pluralistic", "published"])
def test_what_int8_owes_to_one_prototype_is_not_paid_to_another(
    tmp_path: Path, architecture: str
) -> None:
    """A node that joins late can move a group's place, and so its prototype, if there are any."""
    nodes = []
    small = {"architecture": architecture, "width": 16, "layers": 1, "feed_forward": 16}
    for folder in ("a", "b"):
        (own,) = deployment(tmp_path / folder, ("Peru",))
        nodes.append(LocalNode.from_context(context(own, **small)))
    predictor = initial_predictor(nodes[0].config, nodes[0].workspace.vectors.shape[1], "")
    start = ArrayRecord(predictor.state_dict())

    def train(node: LocalNode, server_round: int, prototype: int) -> dict[str, bytes]:
        orders = {
            "server-round": server_round, "learning-rate": 1e-3, "local-steps": 1, "seed": 0,
            "update-dtype": "int8", "run": "run", "run-id": "1", "prototype": prototype,
        }  # fmt: skip
        arrays = to_arrays(node.train(start, orders)[0])
        return {name: value.tobytes() for name, value in arrays.items()}

    train(nodes[0], 1, 0)
    owes_nothing = train(nodes[0], 2, 1) == train(nodes[1], 2, 1)
    assert owes_nothing == (architecture == "pluralistic")
    assert train(nodes[0], 2, 0) != train(nodes[1], 2, 0)


@pytest.mark.parametrize(("held", "share"), [(0.0, 1.0), (1.0, 0.5)])
def test_a_shared_prototype_that_is_empty_is_filled_at_once(held: float, share: float) -> None:
    """In round 2 one of its two owners is the first to reply, or half of a mean that exists."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    prototypes = Prototypes({"a": 0, "b": 0}, 2)
    model: Arrays = {
        MEMORY: np.full((1, 2, 2), held, np.float32), COVERAGE: np.full((1, 4), held, np.float32)
    }  # fmt: skip
    message = Message(RecordDict({"arrays": to_record(model)}), dst_node_id=1, message_type="train")
    node = Node("a", "train", 1, 3, "tiny", 0, 0, "", 10, 7)
    trained = to_record({name: np.full_like(array, 3.0) for name, array in model.items()})
    metrics = MetricRecord({"num-examples": 1.0})
    content = RecordDict({"arrays": trained, "metrics": metrics})
    prototypes.side_by_side([(Outcome(message, node), content)], "num-examples")
    for array in to_arrays(content["arrays"]).values():
        np.testing.assert_allclose(array, held + share * (3.0 - held))
