"""The roster: who takes part, and the errors before anything is trained."""

import json
import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Error, Message, MetricRecord

from pluralllm_fl.errors import ArtefactError, ConfigError, FederationError
from pluralllm_fl.federation.roster import collect
from tests.integration.inprocess import (
    GROUPS,
    InProcessGrid,
    events,
    tiny_app,
    tiny_config,
    tiny_run,
)


def on_query(change: Callable[[Message, int], Message | None]) -> object:
    def fault(request: Message, reply: Message, partition: int) -> Message | None:
        return change(reply, partition) if request.metadata.message_type == "query" else reply

    return fault


def deployed(reply: Message, _: int) -> Message:
    """Make the reply that of a deployed node, which knows no other group."""
    reply.content["roster"]["groups"] = reply.content["roster"]["supernodes"] = 0
    return reply


def test_roster_is_sorted_and_knows_roles() -> None:
    grid = InProcessGrid(tiny_app(), len(GROUPS))
    roster = collect(grid, expected_nodes=0, join_timeout=2)
    assert [node.group for node in roster.nodes] == list(GROUPS)
    assert roster.unseen == ["Elbonia"]
    assert roster.ranks(train=True) == [1, 2, 3, 4]
    again = collect(InProcessGrid(tiny_app(), len(GROUPS)), expected_nodes=0, join_timeout=2)
    assert roster.fingerprint == again.fingerprint


@pytest.mark.parametrize("nodes", [2, 4])
def test_wrong_number_of_supernodes_states_the_command_at_once(tmp_path: Path, nodes: int) -> None:
    start = time.monotonic()
    with pytest.raises(FederationError, match="num-supernodes=5 client-resources-num-cpus=1"):
        tiny_run(tiny_config(tmp_path, join_timeout=60.0), grid=InProcessGrid(tiny_app(), nodes))
    assert time.monotonic() - start < 10
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "failed"
    assert "num-supernodes=5" in record["error"]
    assert [e["status"] for e in events(tmp_path / "run")] == ["failed"]


def test_nodes_that_join_late_are_awaited(tmp_path: Path) -> None:
    grid = InProcessGrid(tiny_app(), len(GROUPS))
    late = [node_id for node_id, partition in grid.partitions.items() if partition >= 2]
    grid.offline.update(late)
    timer = threading.Timer(0.5, grid.offline.clear)
    timer.start()
    run = tiny_run(tiny_config(tmp_path, num_server_rounds=1), grid=grid)
    timer.join()
    assert len(events(run, "roster")[0]["nodes"]) == 5


def test_missing_nodes_are_counted_after_the_timeout(tmp_path: Path) -> None:
    grid = InProcessGrid(tiny_app(), 3, fault=on_query(deployed))  # type: ignore[arg-type]
    config = tiny_config(tmp_path, expected_nodes=4, join_timeout=0.5)
    with pytest.raises(FederationError, match=r"0.5 s for 4 nodes; joined: Cascadia, Dru.*, Elb"):
        tiny_run(config, grid=grid)


def test_no_node_at_all(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="for any node; joined: none"):
        tiny_run(tiny_config(tmp_path, join_timeout=0.2), grid=InProcessGrid(tiny_app(), 0))


def test_deployment_needs_expected_nodes(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="set expected-nodes"):
        tiny_run(tiny_config(tmp_path), fault=on_query(deployed))  # type: ignore[arg-type]
    run = tiny_run(
        tiny_config(tmp_path, run_name="b", expected_nodes=5),
        fault=on_query(deployed),  # type: ignore[arg-type]
    )
    assert events(run)[-1]["status"] == "completed"


def test_more_nodes_than_expected(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, expected_nodes=3)
    with pytest.raises(FederationError, match="5 nodes joined but expected-nodes = 3"):
        tiny_run(config, fault=on_query(deployed))  # type: ignore[arg-type]


def test_duplicate_groups_are_named(tmp_path: Path) -> None:
    def change(reply: Message, partition: int) -> Message:
        if partition in (1, 3):
            reply.content["roster"]["group"] = "Borduria"
        return reply

    with pytest.raises(FederationError, match=r"same group: Borduria\."):
        tiny_run(tiny_config(tmp_path), fault=on_query(change))  # type: ignore[arg-type]


def test_no_training_node(tmp_path: Path) -> None:
    grid = InProcessGrid(tiny_app(unseen=GROUPS), len(GROUPS))
    with pytest.raises(FederationError, match="No node trains"):
        tiny_run(tiny_config(tmp_path), grid=grid)


@pytest.mark.parametrize(
    ("key", "value"), [("dimension", 7), ("embedding", "other"), ("dtype", "bfloat16")]
)
def test_embeddings_must_agree(tmp_path: Path, key: str, value: int | str) -> None:
    def change(reply: Message, partition: int) -> Message:
        if partition == 1:
            reply.content["roster"][key] = value
        return reply

    with pytest.raises(FederationError, match="same embedding-model and version"):
        tiny_run(tiny_config(tmp_path), fault=on_query(change))  # type: ignore[arg-type]


def test_other_devices_are_told_and_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(reply: Message, partition: int) -> Message:
        if partition == 1:
            reply.content["roster"]["device"] = "cuda"
        return reply

    with caplog.at_level(logging.WARNING, logger="flwr.pluralllm_fl"):
        run = tiny_run(tiny_config(tmp_path, num_server_rounds=1), fault=on_query(change))  # type: ignore[arg-type]
    assert re.search(r"different devices \(cpu: \w+, cuda: Drusselstein\)", caplog.text)
    assert events(run)[-1]["status"] == "completed"


def test_a_nodes_reason_reaches_the_user(tmp_path: Path) -> None:
    app = tiny_app()
    original = app._registered_funcs["query.default"]

    def query(message: Message, context: object) -> Message:
        if context.node_config["partition-id"] == 2:  # type: ignore[attr-defined]
            from pluralllm_fl.errors import DatasetError

            raise DatasetError("/data/answers.jsonl is missing: check dataset-path.")
        return original(message, context)  # type: ignore[arg-type]

    app._registered_funcs["query.default"] = query  # type: ignore[assignment]
    with pytest.raises(FederationError) as caught:
        tiny_run(tiny_config(tmp_path), grid=InProcessGrid(app, len(GROUPS)))
    assert str(caught.value) == (
        "1 node(s) cannot take part: /data/answers.jsonl is missing: check dataset-path."
    )


def _broken_query(request: Message, reply: Message, partition: int) -> Message:
    """Answer as deployed nodes do, one of which ("Cascadia", which trains) cannot take part."""
    if request.metadata.message_type != "query":
        return reply
    if partition == 2:
        return Message(Error(2, "<class 'pluralllm_fl.errors.DatasetError'>:<'no data'>"),
                       reply_to=request)  # fmt: skip
    return deployed(reply, partition)


def test_broken_node_is_left_out_of_a_deployment_with_enough_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="flwr.pluralllm_fl"):
        run = tiny_run(tiny_config(tmp_path, expected_nodes=4), fault=_broken_query)
    assert "1 node(s) are left out: no data" in caplog.text
    groups = [node["group"] for node in events(run, "roster")[0]["nodes"]]
    assert groups == ["Aland", "Borduria", "Drusselstein", "Elbonia"]
    assert events(run)[-1]["status"] == "completed"


def test_broken_node_ends_a_run_that_needs_it(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="cannot take part: no data"):
        tiny_run(tiny_config(tmp_path, expected_nodes=5), fault=_broken_query)

    def simulated(request: Message, reply: Message, partition: int) -> Message:
        return _broken_query(request, reply, partition) if partition == 2 else reply

    with pytest.raises(FederationError, match="cannot take part: no data"):
        tiny_run(tiny_config(tmp_path, run_name="b", expected_nodes=4), fault=simulated)


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"unseen_groups": "Aland"}, "'Aland' is in unseen-groups but its node's role is 'train'"),
        ({"seen_groups": "Alland;Borduria"}, "no node holds: 'Alland' Did you mean 'Aland'"),
        ({"unseen_groups": "Zzz"}, r"no node holds: 'Zzz'\. Joined: Aland, Borduria"),
    ],
)
def test_groups_and_roles_must_be_those_of_the_lists(
    tmp_path: Path, lists: dict[str, str], words: str
) -> None:
    with pytest.raises(FederationError, match=words):
        tiny_run(tiny_config(tmp_path, **lists))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_an_organisation_may_opt_out_of_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lists = {"seen_groups": "Aland;Borduria;Elbonia", "num_server_rounds": 1}
    with caplog.at_level(logging.WARNING, logger="flwr.pluralllm_fl"):
        run = tiny_run(tiny_config(tmp_path, **lists))
    assert "Group 'Elbonia' is in seen-groups but its node is evaluate-only" in caplog.text
    assert "Elbonia" not in events(run, "round")[0]["by_group"]


@pytest.mark.parametrize(("partition", "trains"), [(1, True), (0, False)])
def test_training_node_needs_training_questions(
    tmp_path: Path, partition: int, trains: bool
) -> None:
    def change(reply: Message, index: int) -> Message:
        if index == partition:
            reply.content["metrics"]["train-questions"] = 0
        return reply

    config = tiny_config(tmp_path, num_server_rounds=1)
    if trains:
        with pytest.raises(FederationError, match=r"left of: Drusselstein\. Lower test-fraction"):
            tiny_run(config, fault=on_query(change))  # type: ignore[arg-type]
    else:
        tiny_run(config, fault=on_query(change))  # type: ignore[arg-type]


def test_unreadable_introduction(tmp_path: Path) -> None:
    def change(reply: Message, partition: int) -> Message:
        if partition == 0:
            reply.content["metrics"] = MetricRecord({"questions": -1})
        return reply

    with pytest.raises(FederationError, match="unreadable introduction"):
        tiny_run(tiny_config(tmp_path), fault=on_query(change))  # type: ignore[arg-type]


def test_a_node_that_just_left_is_no_error(tmp_path: Path) -> None:
    """SuperLinks list a stopped node for a while and then answer in its place."""
    grid = InProcessGrid(tiny_app(), len(GROUPS))
    ghost = grid.join(9, {"partition-id": 0, "num-partitions": 5})
    asked = 0

    def fault(request: Message, reply: Message, partition: int) -> Message:
        nonlocal asked
        if partition != 9:
            return reply
        asked += 1
        if asked > 2:
            grid.offline.add(ghost)
        return Message(Error(5, "Node unavailable"), reply_to=request)

    grid.fault = fault
    # Message ids are those of the request, which is what the fault answered.
    run = tiny_run(tiny_config(tmp_path, num_server_rounds=1), grid=grid)
    assert len(events(run, "roster")[0]["nodes"]) == 5


def test_used_run_directory_is_refused(tmp_path: Path) -> None:
    tiny_run(tiny_config(tmp_path, num_server_rounds=1))
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(ArtefactError, match=r"not empty.*resume"):
        tiny_run(tiny_config(tmp_path))
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}


def test_run_name_must_be_a_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run-name"):
        tiny_run(tiny_config(tmp_path, run_name="../elsewhere"))


def test_default_run_name_tells_data_and_seed(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, run_name="", dataset="/x/my answers.csv", seed=4)
    assert tiny_run(config).name.startswith("my-answers-2")
    assert next(tmp_path.iterdir()).name.endswith("-seed4")


def test_a_broken_node_does_not_end_the_wait_for_others(tmp_path: Path) -> None:
    """Two nodes and a broken one are there at once, the fourth and the fifth come later."""
    grid = InProcessGrid(tiny_app(), len(GROUPS), fault=_broken_query)
    late = [node_id for node_id, partition in grid.partitions.items() if partition >= 3]
    grid.offline.update(late)
    timer = threading.Timer(0.5, grid.offline.clear)
    timer.start()
    run = tiny_run(tiny_config(tmp_path, expected_nodes=4, join_timeout=20.0), grid=grid)
    timer.join()
    assert len(events(run, "roster")[0]["nodes"]) == 4


def test_a_node_that_came_back_mended_is_no_error(tmp_path: Path) -> None:
    """The broken node restarts under another id while one that is needed has yet to come."""
    grid = InProcessGrid(tiny_app(), len(GROUPS))
    mended = threading.Event()

    def fault(request: Message, reply: Message, partition: int) -> Message:
        if partition == 2 and mended.is_set() and request.metadata.message_type == "query":
            return deployed(reply, partition)
        return _broken_query(request, reply, partition)

    def mend() -> None:
        mended.set()
        grid.leave(2)
        grid.join(2, {"partition-id": 2, "num-partitions": len(GROUPS)})

    grid.fault = fault
    late = [node_id for node_id, partition in grid.partitions.items() if partition == 4]
    grid.offline.update(late)
    timers = (
        threading.Timer(0.5, mend),
        threading.Timer(1.5, grid.offline.difference_update, [late]),
    )
    for timer in timers:
        timer.start()
    run = tiny_run(tiny_config(tmp_path, expected_nodes=5, join_timeout=20.0), grid=grid)
    for timer in timers:
        timer.join()
    assert [node["group"] for node in events(run, "roster")[0]["nodes"]] == list(GROUPS)
