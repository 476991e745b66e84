"""A federation with a list of keys: who lies about group or role is named and takes no part."""

import logging
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo

from pluralllm_fl.deploy.certificates import node_keys
from pluralllm_fl.errors import FederationError
from pluralllm_fl.report.reading import read_run
from tests.integration.inprocess import (
    GROUPS,
    UNSEEN,
    Fault,
    InProcessGrid,
    events,
    final_arrays,
    tiny_app,
    tiny_config,
    tiny_run,
)

BY_PARTITION = sorted(GROUPS, reverse=True)  # as tiny_app deals them out
LIAR = len(GROUPS)


class KeyedGrid(InProcessGrid):
    """Knows a key of every node, as Flower does; one list says whose it is."""

    def __init__(self, folder: Path, fault: Fault) -> None:
        super().__init__(tiny_app(), len(GROUPS), fault=fault)
        # The liar's process is Elbonia's, with a key that is listed for another group.
        self.join(LIAR, {"partition-id": 0, "num-partitions": LIAR})
        self.path = folder / "nodes.toml"
        (folder / "keys").mkdir()
        self.keys = {}
        entries = []
        for partition, group in enumerate([*BY_PARTITION, "Fredonia"]):
            _, public = node_keys(group)
            (folder / "keys" / f"{group.lower()}.pub").write_bytes(public)
            self.keys[partition] = serialization.load_ssh_public_key(public).public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            role = "evaluate" if group in (*UNSEEN, "Fredonia") else "train"
            entries.append(f'[{group.lower()}]\ngroup = "{group}"\nrole = "{role}"\n')
        self.path.write_text("\n".join(entries))

    def get_nodes(self) -> list[NodeInfo]:
        return [
            NodeInfo(node_id=node, public_key=self.keys[self.partitions[node]])
            for node in self.get_node_ids()
        ]


def lying(group: str, role: str) -> Fault:
    """Let every node speak as a deployed one, and the liar as a group that it is not."""

    def fault(request: Message, reply: Message, partition: int) -> Message:
        if request.metadata.message_type == "query":
            said = reply.content.config_records["roster"]
            said["groups"] = said["supernodes"] = 0
            if partition == LIAR:
                said["group"], said["role"] = group, role
        return reply

    return fault


@pytest.mark.parametrize(
    ("group", "role"), [("Grand Fenwick", "train"), ("Fredonia", "train"), ("Aland", "train")]
)
def test_the_honest_nodes_run_completes_and_the_liar_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, group: str, role: str
) -> None:
    grid = KeyedGrid(tmp_path, lying(group, role))
    config = tiny_config(tmp_path, num_server_rounds=2, expected_nodes=5,
                         node_keys=str(grid.path))  # fmt: skip
    with caplog.at_level(logging.WARNING, logger="flwr.pluralllm_fl"):
        run = tiny_run(config, grid=grid)
    assert f"key of 'Fredonia' (evaluate) says it is '{group}' ({role})" in caplog.text
    assert [node["group"] for node in events(run, "roster")[0]["nodes"]] == list(GROUPS)
    assert not events(run, "node_joined")
    (refused,) = events(run, "node_refused")
    assert refused["reason"] in caplog.text
    assert refused["reason"] in read_run(run).notices[0]
    alone = tiny_run(tiny_config(tmp_path, num_server_rounds=2, run_name="alone"))
    assert final_arrays(run) == final_arrays(alone)


def test_a_liar_does_not_end_the_wait_for_honest_nodes(tmp_path: Path) -> None:
    grid = KeyedGrid(tmp_path, lying("Aland", "train"))
    late = next(node for node, p in grid.partitions.items() if BY_PARTITION[p % LIAR] == "Aland")
    grid.offline.add(late)
    timer = threading.Timer(0.5, grid.offline.clear)
    timer.start()
    config = tiny_config(tmp_path, num_server_rounds=1, expected_nodes=5, join_timeout=20.0,
                         node_keys=str(grid.path))  # fmt: skip
    run = tiny_run(config, grid=grid)
    timer.join()
    assert len(events(run, "roster")[0]["nodes"]) == 5
    grid.offline.add(late)
    absent = tiny_config(tmp_path, run_name="b", expected_nodes=5, node_keys=str(grid.path))
    with pytest.raises(FederationError, match=r"Waited .*key of 'Fredonia'"):
        tiny_run(absent, grid=grid)


def test_a_key_taken_off_the_list_counts_in_the_same_round(tmp_path: Path) -> None:
    honest = lying("Fredonia", "evaluate")

    def fault(request: Message, reply: Message, partition: int) -> Message:
        order = request.content.config_records.get("config", {})
        if order.get("server-round") == 2 and request.metadata.message_type == "train":
            (tmp_path / "keys" / "borduria.pub").unlink(missing_ok=True)
        return honest(request, reply, partition) or reply

    grid = KeyedGrid(tmp_path, fault)
    config = tiny_config(tmp_path, num_server_rounds=3, expected_nodes=6,
                         node_keys=str(grid.path), round_retries=0)  # fmt: skip
    run = tiny_run(config, grid=grid)
    dropped = [e for e in events(run, "reply_dropped") if e["phase"] == "train"]
    assert {(e["round"], e["group"]) for e in dropped} == {(2, "Borduria"), (3, "Borduria")}
    assert all("has a key that is not in" in e["reason"] for e in dropped)
    assert ["Borduria" in e["by_group"] for e in events(run, "round")] == [True, False, False]


def test_without_a_list_the_run_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config(tmp_path, num_server_rounds=1, expected_nodes=6)
    with caplog.at_level(logging.WARNING, logger="flwr.pluralllm_fl"):
        tiny_run(config, grid=KeyedGrid(tmp_path, lying("Fredonia", "train")))
    assert "keys are not bound to groups" in caplog.text
    caplog.clear()
    tiny_run(tiny_config(tmp_path, num_server_rounds=1, run_name="simulated"))
    assert "keys are not bound" not in caplog.text
