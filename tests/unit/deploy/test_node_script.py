"""The script that starts a node, with a Flower that only shows what it was given."""

import shlex
import subprocess
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args
from hypothesis import given, settings

from pluralllm_fl.deploy.layout import NodePlan, node_files
from tests.unit.deploy.federation import GROUP_NAMES


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node's folder whose Flower only shows what it was given."""
    folder = tmp_path_factory.mktemp('a "node" \\ here')
    programs = folder / "venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("flower-supernode", "python"):
        (programs / name).write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
        (programs / name).chmod(0o755)
    (folder / "answers.jsonl").write_text("")
    write_node(folder, "A")
    return folder


def write_node(folder: Path, group: str) -> None:
    node = NodePlan(group=group, slug="x", role="train", superlink="h:1", runtime_port=9101)
    for name, content in node_files(node, b"").items():
        path = folder / name.removeprefix("nodes/x/")
        if name.startswith("nodes/x/") and content is not None:
            path.write_bytes(content)
            path.chmod(0o700 if path.suffix == ".sh" else 0o600)
    with (folder / "node.env").open("a") as file:
        file.write(f"VENV={shlex.quote(str(folder / 'venv'))}\n")


def start(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [folder / "supernode.sh", "--once"]
    return subprocess.run(command, cwd="/", capture_output=True, text=True)


@settings(max_examples=60)
@given(group=GROUP_NAMES)
def test_any_group_name_reaches_flower(node: Path, group: str) -> None:
    write_node(node, group)
    answer = start(node)
    assert answer.returncode == 0, answer.stderr
    arguments = answer.stdout.split("\0")
    given_config = arguments[arguments.index("--node-config") + 1]
    assert parse_config_args([given_config]) == {
        "dataset-path": str(node / "answers.jsonl"),
        "group": group,
        "role": "train",
        "embedding-cache": str(node / "state" / "embeddings"),
        "reward-answers": 0,
    }


def test_a_node_without_its_data_says_so(node: Path) -> None:
    write_node(node, "A")
    with (node / "node.env").open("a") as file:
        file.write("DATASET_PATH=/no/such/file.jsonl\n")
    answer = start(node)
    assert answer.returncode == 1
    assert "There is no readable data file /no/such/file.jsonl: set DATASET_PATH" in answer.stderr


def test_a_key_that_others_may_read_is_refused(node: Path) -> None:
    write_node(node, "A")
    (node / "node.key").chmod(0o640)
    answer = start(node)
    assert answer.returncode == 1
    assert "chmod 600 node.key" in answer.stderr


def test_a_missing_key_is_named_as_missing(node: Path) -> None:
    write_node(node, "A")
    (node / "node.key").unlink()
    answer = start(node)
    assert answer.returncode == 1
    assert f"There is no {node}/node.key" in answer.stderr
    assert "Others may read" not in answer.stderr


def test_a_missing_environment_is_named(node: Path) -> None:
    write_node(node, "A")
    with (node / "node.env").open("a") as file:
        file.write("VENV=/no/such\nPATH=/usr/bin:/bin\n")
    answer = start(node)
    assert answer.returncode == 1
    assert "flower-supernode is not installed, or VENV in" in answer.stderr
