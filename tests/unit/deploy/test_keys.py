"""Which node may be whom: the list that deploy init wrote against the keys that Flower knows."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.cli.supernode.register import try_load_public_key
from flwr.proto.node_pb2 import NodeInfo

from pluralllm_fl.deploy import grow
from pluralllm_fl.deploy.layout import create
from pluralllm_fl.errors import FederationError
from pluralllm_fl.federation.keys import NodeKeys
from pluralllm_fl.wire.messages import Introduction

GERMANY, JAPAN, BRAZIL, KENYA, STRANGER = range(11, 16)
FILES = {GERMANY: "germany", JAPAN: "group", BRAZIL: "brazil"}


def claim(group: str, role: str, groups: int = 0) -> Introduction:
    return Introduction(group, role, 3, "model", "cpu", "float32", groups, groups, "data", 10, 8)


@pytest.fixture
def server(tmp_path: Path) -> Path:
    create(
        tmp_path / "fed", seen='Germany;"日本"', unseen="Brazil", servers="localhost", port=8443,
        years=1,
    )  # fmt: skip
    return tmp_path / "fed" / "server"


def grid(server: Path, files: Mapping[int, str] = FILES) -> Any:
    """A grid that knows keys as Flower registers them, and a node with a key of its own."""
    known = {
        node: try_load_public_key(server / "keys" / f"{name}.pub") for node, name in files.items()
    } | {STRANGER: b"-----BEGIN PUBLIC KEY-----\n"}

    def nodes() -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node, public_key=key) for node, key in known.items()]

    return SimpleNamespace(get_nodes=nodes)


@pytest.mark.parametrize(
    ("node", "group", "role", "words"),
    [
        (GERMANY, "Germany", "train", ""),
        (JAPAN, '"日本"', "train", ""),
        (BRAZIL, "Brazil", "evaluate", ""),
        (BRAZIL, "Germany", "train", "key of 'Brazil' (evaluate) says it is 'Germany' (train)"),
        (BRAZIL, "Brazil", "train", "key of 'Brazil' (evaluate) says it is 'Brazil' (train)"),
        (GERMANY, "Germany", "evaluate", "key of 'Germany' (train) says it is"),
        (GERMANY, "germany", "train", "key of 'Germany' (train) says it is"),
        (STRANGER, "Germany", "train", "has a key that is not in"),
        (99, "Germany", "train", "left before Flower could tell its key"),
    ],
)
def test_a_key_is_one_group_in_one_role(
    server: Path, node: int, group: str, role: str, words: str
) -> None:
    keys = NodeKeys(grid(server), str(server / "nodes.toml"), print)
    problem = keys.problem(node, claim(group, role))
    assert words in problem
    assert bool(words) == bool(problem)


def test_a_deployed_node_does_not_pass_for_a_simulated_one(server: Path) -> None:
    keys = NodeKeys(grid(server), str(server / "nodes.toml"), print)
    assert "simulated" in keys.problem(GERMANY, claim("Germany", "train", groups=3))


def test_without_a_list_every_claim_is_taken() -> None:
    assert NodeKeys(SimpleNamespace(), "", print).problem(1, claim("Germany", "train")) == ""  # type: ignore[arg-type]


def test_keys_come_and_go_while_a_run_goes_on(server: Path) -> None:
    keys = NodeKeys(grid(server), str(server / "nodes.toml"), print)
    assert not keys.problem(JAPAN, claim('"日本"', "train"))
    (server / "keys" / "group.pub").unlink()
    assert keys.problem(JAPAN, claim('"日本"', "train"))

    grow.add(server.parent, seen="", unseen="Kenya")
    files = {GERMANY: "germany", BRAZIL: "brazil", KENYA: "kenya"}
    later = NodeKeys(grid(server, files), str(server / "nodes.toml"), print)
    assert not later.problem(KENYA, claim("Kenya", "evaluate"))
    assert later.problem(KENYA, claim("Kenya", "train"))
    assert not later.problem(GERMANY, claim("Germany", "train"))

    # A second key for a group, as after a change of machines.
    with (server / "nodes.toml").open("a") as file:
        file.write('\n[second]\ngroup = "Germany"\nrole = "train"\n')
    shutil.copy(server.parent / "nodes" / "brazil" / "node.pub", server / "keys" / "second.pub")
    (server / "keys" / "brazil.pub").unlink()
    assert not later.problem(BRAZIL, claim("Germany", "train"))
    assert not later.problem(GERMANY, claim("Germany", "train"))


def test_a_federation_without_a_list_gets_none_by_growing(server: Path) -> None:
    (server / "nodes.toml").unlink()
    grow.add(server.parent, seen="Kenya", unseen="")
    assert not (server / "nodes.toml").exists()


@pytest.mark.parametrize(
    "text", ["[germany", "germany = 3", '[germany]\ngroup = "Germany"\n', None]
)
def test_a_list_that_cannot_be_read_is_named(server: Path, text: str | None) -> None:
    path = server / "nodes.toml"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(FederationError, match=r"node-keys = '.*nodes\.toml' cannot be read"):
        NodeKeys(grid(server), str(path), print)


@pytest.mark.parametrize("text", ["ssh-rsa AAAA", "ssh-none AAAACHNzaC1ub25l", ""])
def test_a_file_that_is_no_key_is_named(server: Path, text: str) -> None:
    network = grid(server)
    (server / "keys" / "germany.pub").write_text(text)
    with pytest.raises(FederationError, match="cannot be read"):
        NodeKeys(network, str(server / "nodes.toml"), print)


def test_a_flower_that_does_not_tell_keys_is_named(server: Path) -> None:
    with pytest.raises(FederationError, match="does not tell nodes' keys"):
        NodeKeys(SimpleNamespace(), str(server / "nodes.toml"), print)  # type: ignore[arg-type]
